"""The sessions of an agent with its proxy: one, or two on different nodes of a cluster.

Each session has a *slot*, a task that makes it, serves it to its end, waits, and makes the next.
The first slot dials the proxy's URL. The others dial a node that the proxy has told of, and only
where the agent has no session yet.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime

import trio

from tunnelmux.agent.answer import falls_back, field_of, read_answer
from tunnelmux.agent.backoff import Backoff, ReplacedBackoff, new_backoff
from tunnelmux.agent.direct import DirectConnector
from tunnelmux.agent.figures import AgentFigures
from tunnelmux.agent.link import ProxyLink
from tunnelmux.agent.nodes import KnownNodes
from tunnelmux.agent.refusal import refused_for_good
from tunnelmux.agent.sessions import SessionNow, Successor, end_of, log_end, replaced_by
from tunnelmux.agent.streams import StreamServer
from tunnelmux.config import AgentConfig
from tunnelmux.endpoints import response_headers
from tunnelmux.errors import ConfigError, ConnectError, ConnectRefused, SessionError
from tunnelmux.mux import Session, open_session
from tunnelmux.observability import get_logger
from tunnelmux.pump.data_pump import DataPump, open_pump
from tunnelmux.wire import (
    BESIDE_FIELD,
    DEVICE_FIELD,
    INSTANCE_FIELD,
    NODES_FIELD,
    SESSIONS_FIELD,
)

__all__ = ["Dial", "Tunnels", "Uniform"]

_log = get_logger("agent")

_MOST_SESSIONS = 2
# Slots: as many as [proxy] sessions may say.

_UNHURRIED = 10
# How many times longer a slot waits while another session serves. When one of two nodes dies, all
# agents have lost a session at once, and the other node can only refuse them.

_MOST_NEXT = 4
# Next sessions beside the present one of a slot: a proxy ends the older ones within its drain.

Uniform = Callable[[float, float], float]
Dial = Callable[..., AbstractAsyncContextManager[trio.abc.Stream]]
Fields = Callable[[], Awaitable[list[tuple[bytes, bytes]]]]


class _Slot:
    """One session at a time, or two while the next is made before the present one ends."""

    def __init__(self, index: int, backoff: Backoff) -> None:
        self.index = index
        self.backoff = backoff
        self.session: Session | None = None
        self.now: SessionNow | None = None
        """About the session."""
        self.dials: str | None = None
        """The node that is being dialled; empty for the proxy's URL, None while there is none."""
        self.last = ""
        """The node of its latest session, which it dials again; empty where that has no name."""
        self.next: list[Successor] = []
        self.resting = trio.CancelScope()
        """Around all that is done without a session."""
        self.renewing = False
        self.was_up = False
        self.tries_node = False
        """Whether the proxy's URL led nowhere, so that a node that is known is dialled next."""

    @property
    def node(self) -> str:
        """The node of its session; empty where there is none, or it has no name."""
        return self.now.node if self.now is not None else ""

    @property
    def nodes(self) -> set[str]:
        """That node, and the one that is being dialled."""
        return {self.node, self.dials or ""} - {""}


class Tunnels:
    """Holds the sessions while `run` runs. `more_fields` returns what a handshake says of this
    device beside its name and token."""

    def __init__(
        self,
        config: AgentConfig,
        instance: str,
        streams: StreamServer,
        figures: AgentFigures,
        uniform: Uniform,
        dial: Dial,
        more_fields: Fields,
        *,
        reaches_targets: bool,
    ) -> None:
        self.link: ProxyLink | None = None
        """The settings of a session, from the configuration."""
        self.nodes = KnownNodes()
        """The nodes of the proxy's cluster."""
        self._config = config
        self._instance = instance.encode("ascii")
        self._streams = streams
        self._figures = figures
        self._uniform = uniform
        self._dial = dial
        self._more_fields = more_fields
        self._reaches_targets = reaches_targets
        self._slots = [
            _Slot(index, new_backoff(config.backoff, uniform)) for index in range(_MOST_SESSIONS)
        ]
        self._replaced = ReplacedBackoff(config.backoff.replaced, uniform=uniform)
        self._replaced_until = -math.inf
        self._serving: dict[Session, trio.CancelScope] = {}
        self._direct: dict[Session, DirectConnector] = {}
        self._change = trio.Event()
        self._told = 0  # times that a session told of nodes
        self._pump: DataPump | None = None
        self._was_connected = False
        self._is_draining = False
        self._problem: ConnectError | ConfigError | None = None

    # -- what there is ----------------------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """A session with the proxy, that of the first slot before others; None without any."""
        return next((slot.session for slot in self._slots if slot.session is not None), None)

    @property
    def sessions_now(self) -> list[SessionNow]:
        """All that are up."""
        return [slot.now for slot in self._slots if slot.now is not None]

    async def wait_connected(self) -> None:
        """Return once there is a session."""
        while self.session is None:
            await self._change.wait()

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()

    # -- what is asked of them --------------------------------------------------------------------

    async def drain(self, grace: float) -> None:
        """Take no new streams, and let the live ones finish for at most `grace` seconds. Returns
        when no session is left; then `run` ends."""
        self._is_draining = True
        for slot in self._slots:
            if slot.session is None and not slot.next:
                slot.resting.cancel(reason="the agent is draining")
        sessions = list(self._serving)
        if not sessions:
            return
        count = sum(session.stream_count for session in sessions)
        _log.info("draining", streams=count, grace=grace)
        for session in sessions:
            session.go_away()
        with trio.move_on_after(grace):
            for session in sessions:
                await session.wait_closed()
        self._leave_sessions("the grace period is over")

    def _leave_sessions(self, reason: str) -> None:
        for scope in self._serving.values():
            scope.cancel(reason=reason)

    def configure(self, config: AgentConfig) -> None:
        """Use this configuration from now on, with the sessions that there are."""
        before, self._config = self._config, config
        if config.backoff != before.backoff:
            self._replaced = ReplacedBackoff(config.backoff.replaced, uniform=self._uniform)
            for slot in self._slots:
                slot.backoff = new_backoff(config.backoff, self._uniform)
        timeout = config.limits.ingress.connect_timeout
        for direct in self._direct.values():
            direct.configure(self._streams.services, timeout)

    def renew(self, link: ProxyLink) -> None:
        """Replace all sessions at once, by those of this link."""
        self.link = link
        self.nodes = KnownNodes()
        for slot in self._slots:
            slot.last = ""
            if slot.session is not None:
                slot.renewing = True
            elif not slot.next:
                slot.resting.cancel(reason="the configuration changed")
        self._leave_sessions("the configuration changed")

    def learn_nodes(self, session: Session, value: str) -> None:
        """The proxy tells on this session of the nodes of its cluster."""
        here = self._learn(value)
        self.nodes.try_all()
        self._told += 1
        for slot in self._slots:
            if slot.session is session and slot.now is not None:
                slot.now, slot.last = replace(slot.now, node=here), here
            elif slot.session is None:
                # A node that was away for long has all agents dial at once, and refuses some.
                slot.backoff.start_again()
        self._changed()

    def _learn(self, value: str) -> str:
        """Returns the name of the node that tells."""
        link = self.link
        assert link is not None  # there was a session
        return self.nodes.learn(value, link.objection)

    async def move(self, session: Session, *, away: bool = False) -> bool:
        """Make the session that follows this one, which goes on meanwhile; whether it is there. The
        proxy asks for it before it makes way for another process, or stops, and ends this session
        itself. With `away`, or where the same node takes none, it is made with another node.
        """
        slot = next((slot for slot in self._slots if slot.session is session), None)
        if slot is None or self._is_draining:
            return False
        if not away:
            is_up = await self._make_next(slot, session, leaves=None)
            if is_up or slot.session is not session or self._choose(slot, slot.node) is None:
                return is_up
        return await self._make_next(slot, session, leaves=slot.node)

    async def _make_next(self, slot: _Slot, session: Session, leaves: str | None) -> bool:
        if not slot.next or slot.next[-1].is_up:
            if len(slot.next) >= _MOST_NEXT:
                return False
            slot.next.append(Successor(leaves))
            self._nursery.start_soon(self._hold_next, slot, slot.next[-1], session)
        successor = slot.next[-1]
        await successor.began.wait()  # bounded by the time for a handshake
        return successor.is_up

    async def _hold_next(self, slot: _Slot, successor: Successor, before: Session) -> None:
        now = slot.now
        try:
            with successor.scope:
                successor.replaced_by = await self._hold_session(slot, successor)
        except (ConnectError, ConfigError) as error:
            successor.problem = error
            write = _log.info if _is_double(error) else _log.warning
            write("not moved", cause=str(error), effect="the session before goes on")
        finally:
            successor.end()
        if successor not in slot.next or before not in self._serving:
            return  # the session before it is over, and what served that goes on from here
        slot.next.remove(successor)
        if successor.is_up and before.is_draining:
            self._serving[before].cancel(reason="the session after it is over")
        else:
            slot.session, slot.now = before, now  # its proxy has not gone after all
            self._changed()

    # -- the loop of a slot -----------------------------------------------------------------------

    async def run(self) -> None:
        """Hold sessions until drained. Raises AgentRefused when trying again cannot help."""
        async with open_pump() as self._pump, trio.open_nursery() as self._nursery:
            for slot in self._slots:
                self._nursery.start_soon(self._hold, slot)
        if self._problem is not None:
            raise self._problem  # outside of the nursery, which would wrap it in a group

    async def _hold(self, slot: _Slot) -> None:
        try:
            while not self._is_draining:
                # Cancelled by a drain or a reload, and only while no session is there.
                with trio.CancelScope() as slot.resting:
                    await self._wait_turn(slot)
                    delay = await self._attempt(slot)
                    if not self._is_draining:
                        await self._rest(delay)
            for successor in slot.next:
                successor.scope.cancel(reason="the agent is draining")
        except (ConnectError, ConfigError) as error:
            self._problem = error
            self._nursery.cancel_scope.cancel(reason="the proxy refused this agent for good")

    async def _rest(self, delay: float) -> None:
        """Wait so long before the next attempt. While another session serves, that ends soon after
        the proxy has told of nodes, or that session is over."""
        if not self.sessions_now:
            await trio.sleep(delay)
            return
        told, backoff = self._told, self._config.backoff
        with trio.move_on_after(delay):
            while self.sessions_now and self._told == told:
                await self._change.wait()
            await trio.sleep(self._uniform(0.0, min(backoff.early, backoff.maximum)))

    def _hurry(self, delay: float) -> float:
        """That wait, or a longer one while another session serves."""
        return delay if self.session is None else delay * _UNHURRIED

    async def _wait_turn(self, slot: _Slot) -> None:
        """Return when there is a session for this slot to make."""
        while True:  # while there is no other node, or the configuration wants no more sessions
            # Sleeping until a time that has passed costs as much as any sleep.
            if trio.current_time() < self._replaced_until:
                await trio.sleep_until(self._replaced_until)
            if not slot.index:
                return
            wanted = self._config.proxy is not None and slot.index < self._config.proxy.sessions
            # Where the proxy's URL leads to is known after that handshake only.
            if wanted and self._slots[0].dials != "" and self._choose(slot) is not None:
                return
            await self._change.wait()

    def _others(self, slot: _Slot) -> set[str]:
        """The nodes of the other slots."""
        return {name for other in self._slots if other is not slot for name in other.nodes}

    def _choose(self, slot: _Slot, leaves: str = "") -> tuple[str, str] | None:
        """Name and URL of the node to dial for this slot, beside those of the others."""
        theirs = {other.last for other in self._slots if other is not slot}
        node = self.nodes.choose((self._others(slot) | theirs | {leaves}) - {""})
        return (node.name, node.url) if node is not None else None

    def _destination(self, slot: _Slot, successor: Successor | None) -> tuple[str, str]:
        """Name and URL of the node to dial; the name is empty for the proxy's URL. Raises
        ConnectError where there is none."""
        assert self.link is not None  # set before this is called
        leaves = successor.leaves if successor is not None else ""
        if leaves is None and slot.index and slot.now is not None:
            return slot.node, slot.now.dialled
        if slot.index or slot.tries_node:
            if (chosen := self._choose(slot, leaves or "")) is not None:
                return chosen
            if slot.index:
                raise ConnectError("the proxy has told of no other node")
        return "", self.link.dialled

    async def _attempt(self, slot: _Slot) -> float:
        """Make one session and serve it to its end. Returns the seconds to wait before the next
        attempt.
        """
        started = trio.current_time()
        try:
            replacer = await self._hold_session(slot)
            while slot.next:
                successor = slot.next.pop(0)
                await successor.over.wait()  # no deadline: it is the session of now
                if successor.problem is not None:
                    raise successor.problem
                replacer = successor.replaced_by
        except ConnectError as error:
            return await self._note_failure(slot, error)
        except ConfigError as error:
            # A token file that is being replaced must not end a running agent.
            if not self._was_connected:
                raise
            self._figures.attempt_failed(error)
            delay = slot.backoff.next_delay()
            _log.error("not connected", cause=str(error), retry_in=round(delay, 3))
            return delay
        if slot.renewing:
            slot.renewing = False
            _log.info("connecting again", retry_in=0.0)
            return 0.0
        held = trio.current_time() - started
        if replacer is not None and not self._is_draining:
            return self._note_replaced(replacer, held)
        slot.backoff.held(held)
        delay = self._hurry(slot.backoff.next_delay())
        if not self._is_draining:
            _log.info("connecting again", retry_in=round(delay, 3))
        return delay

    async def _note_failure(self, slot: _Slot, error: ConnectError) -> float:
        """Returns the seconds to wait. Raises AgentRefused when trying again cannot help."""
        assert self.link is not None  # a link exists when it was dialled
        is_double = _is_double(error)
        if not is_double:
            self._figures.attempt_failed(error)
        # While another node has a session, the device is known: this one may know it soon.
        is_final = not error.retryable and self.session is None
        if is_final and (slot.index or not await falls_back(self.link, error)):
            source = self.link.credentials.source
            raise refused_for_good(error, credential=source) from error
        delay = slot.backoff.next_delay(error.retry_after, is_ours=error.is_ours)
        if not (slot.tries_node and self.nodes.is_left(self._others(slot))):
            delay = self._hurry(delay)
        if is_double:
            _log.debug("already connected there", cause=str(error), retry_in=round(delay, 3))
        else:
            _log.warning("not connected", cause=str(error), retry_in=round(delay, 3))
        return delay

    def _note_replaced(self, replacer: str, held: float) -> float:
        """Returns the seconds to wait: for all slots, since all were replaced."""
        now = trio.current_time()
        if now < self._replaced_until:
            return self._replaced_until - now
        delay = self._replaced.next_delay(held)
        self._replaced_until = now + delay
        _log.warning(
            "replaced by another agent",
            device=self._config.device.name,
            by=replacer,
            fix="it has this device's token; stop one of the two, or give each machine a name "
            "and a token of its own",
            retry_in=round(delay, 3),
        )
        return delay

    # -- one session ------------------------------------------------------------------------------

    async def _hold_session(self, slot: _Slot, successor: Successor | None = None) -> str | None:
        """Serve one session to its end. Returns the address of the agent that replaced it, if one
        did. A `successor` is told when the session begins.
        """
        link = self.link
        assert link is not None  # set before this is called
        name, url = self._destination(slot, successor)
        slot.dials = name
        is_up = False
        try:
            async with self._dial(
                url,
                token=link.token().reveal(),
                headers=await self._fields(link, slot),
                ssl_context=link.context_for(url),
                timeout=self._config.limits.ingress.handshake_timeout,
                way=link.way_to(url),
            ) as transport:
                answer = response_headers(transport)
                await read_answer(link, answer)
                node = self._learn(field_of(answer, NODES_FIELD) or "")
                async with open_session(
                    transport,
                    is_client=True,
                    limits=self._config.limits.session,
                    pump=self._pump,
                ) as session:
                    is_up, slot.dials, slot.tries_node = True, None, False
                    if successor is not None:
                        successor.begin()
                    now = SessionNow(node or name, url, datetime.now(UTC))
                    await self._serve(slot, link, session, now)
                return replaced_by(transport)
        except ConnectError:
            if name:
                self.nodes.failed(name)
            slot.tries_node = not name
            raise
        finally:
            if not is_up:
                slot.dials = None
                self._changed()

    async def _fields(self, link: ProxyLink, slot: _Slot) -> list[tuple[bytes, bytes]]:
        fields = [
            (DEVICE_FIELD, link.device.encode("ascii")),
            (INSTANCE_FIELD, self._instance),
            *await self._more_fields(),
        ]
        if self._config.proxy is not None and self._config.proxy.sessions > 1:
            fields.append((SESSIONS_FIELD, b"%d" % self._config.proxy.sessions))
            if beside := self._others(slot):
                fields.append((BESIDE_FIELD, ", ".join(sorted(beside)).encode("ascii")))
        return fields

    async def _serve(self, slot: _Slot, link: ProxyLink, session: Session, now: SessionNow) -> None:
        started = trio.current_time()
        slot.session, slot.now, slot.last = session, now, now.node
        self._figures.session_began(session, again=slot.was_up)
        self._was_connected = slot.was_up = True
        self._changed()
        _log.info("session started", device=link.device, proxy=now.url, **now.about)
        try:
            if self._is_draining or self.link is not link:  # requested after dialling
                slot.renewing = not self._is_draining
                return
            await self._serve_streams(slot, session)
        finally:
            self._serving.pop(session, None)
            self._direct.pop(session, None)
            if slot.session is session:
                slot.session = slot.now = None
                self._changed()
            self._figures.session_ended(session, end_of(session))
            log_end(link.device, now, session, trio.current_time() - started)

    async def _serve_streams(self, slot: _Slot, session: Session) -> None:
        with trio.CancelScope() as self._serving[session]:
            async with trio.open_nursery() as handlers:
                direct = self._direct[session] = DirectConnector(
                    session,
                    self._streams,
                    self._streams.services,
                    handlers,
                    self._config.limits.ingress.connect_timeout,
                )
                if self._reaches_targets:
                    session.on_offer = direct.take
                handlers.start_soon(direct.run)
                handlers.start_soon(self._leave_in_time, slot, session)
                try:
                    async for stream in session:
                        handlers.start_soon(self._streams.serve, stream)
                except SessionError:
                    pass  # log_end logs it from `session.error`
                # The streams have ended with their session; only connections to targets are left.
                handlers.cancel_scope.cancel(reason="the session is over")

    async def _leave_in_time(self, slot: _Slot, session: Session) -> None:
        """When the proxy is about to end the session, make the next one before it does."""
        await session.wait_draining()
        while not self._is_draining:  # until there is another, or the session is over
            await trio.sleep(slot.backoff.next_delay())
            if slot.index and self._choose(slot, slot.node) is None:
                await self._change.wait()
            elif await self.move(session, away=True):
                return


def _is_double(error: ConnectError | ConfigError) -> bool:
    """Whether the proxy's URL led to a node where the agent has a session already."""
    return isinstance(error, ConnectRefused) and error.reason == "already-here"
