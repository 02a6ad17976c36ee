"""Find a target for a command and run it there: devices behind the tunnel, and added targets.

A "device" of the internal API is a name here. A name stands for one target or several: any agent of
a group serves the group's machines, and a command goes to the least busy.
"""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Protocol

import trio

from tunnelmux.commands import (
    CommandRequest,
    Event,
    EventOrder,
    Exited,
    InvalidEvent,
    Started,
    failure,
)
from tunnelmux.errors import TunnelmuxError
from tunnelmux.limits import IngressLimits, InternalLimits, most_of_one_tenant
from tunnelmux.observability import AuditLog, get_logger
from tunnelmux.proxy.commands.audit_trail import AuditTrail
from tunnelmux.proxy.commands.device_target import DeviceTarget, tunnel_name
from tunnelmux.proxy.commands.figures import CommandFigures, PooledConnections
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.proxy.visitors.routing import Router
from tunnelmux.proxy.visitors.visit import VisitRegister
from tunnelmux.registry.names import tenant_in_label
from tunnelmux.sessions import DeviceStore

__all__ = ["EVERYTHING", "NOT_RUN", "Dispatcher", "Target", "UnknownDevices"]

_log = get_logger("proxy.commands")

EVERYTHING = "all"
"""The selector for all devices."""

NOT_RUN = frozenset({"busy", "device-busy", "device-draining", "device-offline", "undelivered"})
"""Reasons that guarantee that the command has not run, so that it may be given to another target.
`undelivered` is for targets whose connection broke before they took the command. If a target may
have taken it, the reason is `lost`, and it is not run again.
"""

_AGENT_SLACK = 30.0
# Seconds beyond a command's own timeout until its agent is given up: opening a stream takes time
# (reconnect_wait and connect_timeout), and so may ending the command on the SSH server.

Emit = Callable[[Event], Awaitable[None]]


class Target(Protocol):
    """An agent that runs commands.

    Its events end with Exited, as an Executor's do; a reason of NOT_RUN, without Started before
    it, moves the command to another target of the same name.
    """

    @property
    def name(self) -> str:
        """Its name, unique among targets."""

    @property
    def busy(self) -> int:
        """Commands it has in progress."""

    def execute(
        self, request: CommandRequest, *, asked_by: str
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """As in `Executor`."""


class UnknownDevices(TunnelmuxError):
    """A selector matches no known device. `selector` is the first such one."""

    def __init__(self, selector: str) -> None:
        super().__init__(f"there is no device {selector!r} here")
        self.selector = selector


class Dispatcher:
    """Finds targets by name and runs commands on them; the audit records each."""

    def __init__(
        self,
        store: DeviceStore,
        devices: DeviceRegister,
        *,
        audit: AuditLog | None = None,
        visits: VisitRegister | None = None,
        limits: InternalLimits | None = None,
        http_limits: IngressLimits | None = None,
    ) -> None:
        self.audit = audit or AuditLog()
        self.figures = CommandFigures()
        self._pooled = PooledConnections()
        self._store = store
        self._devices = devices
        self._router = Router(store, devices)
        self.visits = visits if visits is not None else VisitRegister()
        self._places = trio.CapacityLimiter(1)
        self._targets: dict[str, Target] = {}
        self._groups: dict[str, list[Target]] = {}
        self._busy: Counter[str] = Counter()
        self._expected: dict[str, str | None] = {}
        self._lost_at: dict[str, float] = {}
        self._shares: dict[str, trio.CapacityLimiter] = {}
        self._arrival = trio.Event()
        self.configure(limits or InternalLimits(), http_limits or IngressLimits())

    def configure(self, limits: InternalLimits, http_limits: IngressLimits) -> None:
        """Use these limits for new commands."""
        self._places.total_tokens = limits.max_commands
        self._http_limits = http_limits

    # -- targets -------------------------------------------------------------------------

    def expect(self, agents: Mapping[str, str | None]) -> None:
        """Set the targets that come and go, each with its group or None. They and their groups are
        known while they are away, and a command for a target that was just lost waits for it.
        """
        self._expected = dict(agents)
        known = self._expected_names
        self._lost_at = {name: at for name, at in self._lost_at.items() if name in known}

    def are_expected(self, names: Sequence[str]) -> bool:
        """Whether one of these names is that of such a target, or of a group of them."""
        return not self._expected_names.isdisjoint(names)

    @property
    def _expected_names(self) -> set[str]:
        groups = {group for group in self._expected.values() if group is not None}
        return self._expected.keys() | groups

    def add(self, target: Target, *, groups: Iterable[str] = ()) -> None:
        """Add `target`, under its name and those of its groups. A target of the same name is
        replaced.
        """
        self.remove(self._targets.get(target.name, target))
        self._targets[target.name] = target
        for group in groups:
            self._groups.setdefault(group, []).append(target)
            self._lost_at.pop(group, None)
        self._lost_at.pop(target.name, None)
        self._arrival.set()
        self._arrival = trio.Event()

    def remove(self, target: Target) -> None:
        """Remove `target`; commands that it runs go on. An unknown one is no error."""
        gone = []
        if self._targets.get(target.name) is target:
            del self._targets[target.name]
            gone.append(target.name)
        for group, members in list(self._groups.items()):
            if target in members:
                members.remove(target)
            if not members:
                del self._groups[group]
                gone.append(group)
        for name in gone:
            if name in self._expected_names:  # bounds the memory for lost targets
                self._lost_at[name] = trio.current_time()

    @property
    def names(self) -> list[str]:
        """The names that `all` stands for, sorted.

        Devices that may connect, groups, and targets in no group: the members of a group are left
        out, because the command would reach its machines twice.
        """
        grouped = {target.name for members in self._groups.values() for target in members}
        known = (device for name in self._devices.names if (device := self._devices.find(name)))
        enabled = {device.name for device in known if device.enabled}
        away = {group or name for name, group in self._expected.items()}
        return sorted(enabled | self._groups.keys() | (self._targets.keys() - grouped) | away)

    def select(self, selectors: Sequence[str]) -> list[str]:
        """The names that match these names, globs and `all`, each once, in their order. Raises
        UnknownDevices for the first selector without a match: a typing mistake in one name must not
        let the command run on the others.
        """
        chosen: dict[str, None] = {}
        for selector in selectors:
            if selector == EVERYTHING:
                found = self.names
            elif any(mark in selector for mark in "*?["):
                found = fnmatch.filter(self.names, selector)
            else:
                found = [selector] if self._is_known(selector) else []
            if not found:
                raise UnknownDevices(selector)
            chosen.update(dict.fromkeys(found))
        return list(chosen)

    def _is_known(self, name: str) -> bool:
        return (
            self._devices.knows(name)
            or name in self._groups
            or name in self._targets
            or name in self._expected_names
        )

    def gauges(self) -> dict[str, tuple[str, float]]:
        """The gauges of commands."""
        waiting = self._places.statistics().tasks_waiting
        return {
            "tunnelmux_commands_running": ("Commands in progress.", self._places.borrowed_tokens),
            "tunnelmux_commands_waiting": ("Commands over limits.max_commands.", waiting),
            "tunnelmux_command_agents": ("Agents without a tunnel.", len(self._targets)),
            "tunnelmux_audit_failures": ("Records no sink took.", self.audit.failures),
            "tunnelmux_ssh_pooled_connections": (
                "SSH connections that connected devices keep for commands, as they last said.",
                self._pooled.count(lambda device: self._busy[tunnel_name(device)] > 0),
            ),
        }

    # -- running ------------------------------------------------------------------------------

    async def run(self, name: str, request: CommandRequest, *, asked_by: str, emit: Emit) -> Exited:
        """Run one command on the least busy target of this name. Returns its last event. `emit` is
        called with each event before it; their figures on SSH connections are counted and removed.
        Waits while `limits.max_commands` run; each of those ends within its timeout. Cancelling
        ends the command.
        """
        trail = AuditTrail(self.audit, request, device=name, asked_by=asked_by)
        told: set[str] = set()

        async def pass_on(event: Event) -> None:
            trail.see(event)
            if isinstance(event, Started):
                self.figures.started(trail.duration)
                self._note_ssh(name, event, told)
                event = replace(event, ssh=None)
            await emit(event)

        end: Exited | None = None
        try:
            async with self._share_of(name), self._places:
                end = await self._run(name, request, asked_by, pass_on)
            self._note_ssh(name, end, told)
            end = replace(end, ssh=None)
            if not end.duration:  # a target's failure has no time of its own
                end = replace(end, duration=trail.duration)
            trail.see(end)
            return end
        finally:
            trail.close()
            self.figures.ended(end, trail.duration)

    @asynccontextmanager
    async def _share_of(self, name: str) -> AsyncIterator[None]:
        """Hold one of the places that the devices of one tenant may take: commands that do not end
        keep no other tenant's out."""
        tenant = tenant_in_label(name)
        if not tenant:
            yield
            return
        most = most_of_one_tenant(int(self._places.total_tokens))
        share = self._shares.setdefault(tenant, trio.CapacityLimiter(most))
        try:
            async with share:
                yield
        finally:
            now = share.statistics()
            if not now.borrowed_tokens and not now.tasks_waiting:
                self._shares.pop(tenant, None)

    def _note_ssh(self, name: str, event: Started | Exited, told: set[str]) -> None:
        """Count the agent's report on its SSH connections, once per command."""
        use = event.ssh
        if use is None:
            return
        if use.came_by is not None and not told:
            told.add(use.came_by)
            self.figures.came_by(use.came_by, use.seconds)
        session = self._store.live_device(name)
        if session is not None:
            self._pooled.note(session, use)

    async def _run(self, name: str, request: CommandRequest, asked_by: str, emit: Emit) -> Exited:
        refused: Exited | None = None
        tried: list[Target] = []
        give_up = trio.current_time() + self._http_limits.reconnect_wait
        while (target := await self._find(name, tried, give_up)) is not None:
            if refused is not None:
                self.figures.moved()
                _log.info("command moved", command=request.command_id, to=target.name)
            tried.append(target)
            attempt = _Attempt(emit)
            self._busy[target.name] += 1
            try:
                end = await attempt.run(target, request, asked_by)
            finally:
                self._busy[target.name] -= 1
                if not self._busy[target.name]:
                    del self._busy[target.name]
            if attempt.has_started or end.reason not in NOT_RUN:
                return end
            refused = end
        return refused or failure("device-offline", f"{name} is not connected")

    async def _find(self, name: str, tried: list[Target], give_up: float) -> Target | None:
        """The next target to try, after waiting for a lost one if need be; None when there
        is none."""
        target = await self._choose(name, tried)
        until = (
            give_up
            if tried
            else self._lost_at.get(name, -math.inf) + (self._http_limits.reconnect_wait)
        )
        while target is None and name in self._expected_names:
            arrival = self._arrival
            with trio.move_on_at(until):
                await arrival.wait()
            if not arrival.is_set():
                break
            target = await self._choose(name, tried)
        return target

    async def _choose(self, name: str, tried: list[Target]) -> Target | None:
        """The least busy target of this name that was not tried yet."""
        candidates = [*self._groups.get(name, ())]
        if name in self._targets:
            candidates.append(self._targets[name])
        candidates = [t for t in candidates if not any(t is other for other in tried)]
        is_tried = any(target.name == tunnel_name(name) for target in tried)
        if self._devices.knows(name) and not is_tried:
            online = await self._store.find_device(name) is not None
            if online or not candidates:
                busy = self._busy[tunnel_name(name)]
                candidates.append(
                    DeviceTarget(name, busy, self._router, self.visits, self._http_limits)
                )
        return min(candidates, key=lambda target: target.busy, default=None)


class _Attempt:
    """One command on one target."""

    def __init__(self, emit: Emit) -> None:
        self.has_started = False
        self._emit = emit

    async def run(self, target: Target, request: CommandRequest, asked_by: str) -> Exited:
        """Run the attempt. Returns the command's last event; a target that sends none in time is
        given up. Exceptions of a target are logged and end only its command.
        """
        patience = request.timeout + _AGENT_SLACK
        with trio.move_on_after(patience) as scope:
            try:
                order = EventOrder(request.command_id)
                async with target.execute(request, asked_by=asked_by) as events:
                    end = await self._read(events, order, scope)
                if end is not None:
                    return end
            except InvalidEvent as invalid:
                return failure("lost", f"{target.name} sent an invalid event: {invalid}")
            except Exception:  # noqa: BLE001  the other commands of the call have nothing to do with it
                _log.exception("unhandled error in a command", target=target.name)
                return failure("lost", f"the proxy failed while {target.name} ran the command")
        problem = "did not report how the command ended"
        if scope.cancelled_caught:
            problem = f"did not end the command within {patience:g} s"
        return failure("lost", f"{target.name} {problem}")

    async def _read(
        self, events: AsyncIterator[Event], order: EventOrder, scope: trio.CancelScope
    ) -> Exited | None:
        """Pass events on until the last one; returns that."""
        try:
            async for event in events:
                order.check(event)
                if isinstance(event, Exited):
                    return event
                await self._pass_on(event, scope)
            return None
        finally:
            if isinstance(events, AsyncGenerator):  # nothing else ends the target's iterator
                await events.aclose()

    async def _pass_on(self, event: Event, scope: trio.CancelScope) -> None:
        self.has_started = True  # any event other than the last means that the command has begun
        # Time that the caller takes does not count against the target.
        left, scope.deadline = scope.deadline - trio.current_time(), math.inf
        await self._emit(event)
        scope.deadline = trio.current_time() + left
