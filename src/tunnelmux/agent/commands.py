"""Run commands on this device: permission, limits and audit."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from tunnelmux.agent.allowed import AllowList
from tunnelmux.commands import CommandRequest, Event, Exited, failure
from tunnelmux.config import AgentConfig
from tunnelmux.config.state_dir import default_state_dir
from tunnelmux.observability import get_logger
from tunnelmux.observability.audit import AuditLog, AuditRecord

if TYPE_CHECKING:  # asyncssh takes longer to import than the rest of the agent
    from tunnelmux.ssh.connection import Login
    from tunnelmux.ssh.pool import SshPool

__all__ = ["CommandExecutor"]

_log = get_logger("agent")


class CommandExecutor:
    """An Executor that runs commands over SSH within the limits of [exec]. Outside of `serving()`,
    and where [exec] is off, every command is refused. Raises ConfigError when the audit's file
    cannot be written.
    """

    def __init__(self, config: AgentConfig) -> None:
        self.enabled = config.exec.enabled
        self.limits = config.exec.limits
        self.running = 0
        """Commands in progress."""
        self.reading = 0
        """Requests for commands whose bodies are being read."""
        self.refused = 0
        """Refused commands."""
        self._config = config
        self._device = config.device.name
        self._allowed = AllowList(config.exec)
        self._pool: SshPool | None = None
        self._unavailable = "this device is not running commands now"
        self._retired = False
        self._over = trio.Event()
        self._audit: AuditLog | None = None
        if self.enabled:
            self._audit = AuditLog.open(config.audit.file, config.audit.limits)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Within the block commands can be run; its end ends all of them. Exceptions of the block
        pass unchanged.
        """
        if not self.enabled:
            yield
            return
        try:
            from tunnelmux.ssh.pool import open_pool

            login = self._login()
        except Exception as exc:  # noqa: BLE001  any failure of its libraries: the rest works
            _log.exception("commands unavailable", effect="services can still be reached")
            self._unavailable = f"this device cannot run commands: {exc}"
            yield
            return
        async with open_pool(login) as pool:
            self._pool = pool
            try:
                yield
            finally:
                self._unavailable = "this device is shutting down"
                self._pool = None
                if self._audit is not None:
                    self._audit.tell_refusals(now=True)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run commands until `retire` was called and the running ones have ended."""
        async with self.serving():
            task_status.started()
            await self._over.wait()  # once retired, the commands' own timeouts bound this wait

    def retire(self) -> None:
        """Accept no new commands: another executor runs them."""
        self._retired = True
        self._look_whether_over()

    def _look_whether_over(self) -> None:
        if self._retired and not self.running:
            self._over.set()

    def share_audit(self, before: CommandExecutor) -> None:
        """Share the previous executor's audit: two writers would not agree on when to rotate the
        file.
        """
        if self._audit is not None and before._audit is not None:
            before._audit.take_over(self._audit)
            self._audit = before._audit

    @contextmanager
    def reading_request(self) -> Iterator[None]:
        """Count a request while its body is read."""
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1

    def refusal(self, request: CommandRequest) -> Exited | None:
        """The Exited of a refused command, or None if it may run."""
        if not self.enabled:
            return failure("forbidden", "this device runs no commands: exec.enabled is off there")
        objection = self._allowed.objection(request)
        if objection is not None:
            return failure("forbidden", objection)
        most = self.limits.max_timeout
        if request.timeout > most:
            message = (
                f"this device allows a command at most {most:g} s: ask for less, or raise "
                "exec.max_timeout in the agent's configuration"
            )
            return failure("forbidden", message)
        if self.running >= self.limits.max_concurrent:
            most_commands = self.limits.max_concurrent
            return failure("busy", f"this device runs {most_commands} commands already: try later")
        if self._pool is None:
            return failure("failed", self._unavailable)
        return None

    @asynccontextmanager
    async def execute(
        self, request: CommandRequest, *, asked_by: str
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Run one command, or refuse it. See `tunnelmux.commands.Executor`."""
        start, began = datetime.now(UTC), trio.current_time()
        watched: _Watched | None = None
        refused = self.refusal(request)
        try:
            if refused is not None:
                yield _only(refused)
                return
            assert self._pool is not None  # refusal() has checked it
            self.running += 1
            try:
                async with self._pool.execute(request, asked_by=asked_by) as events:
                    watched = _Watched(events)
                    yield watched
            finally:
                self.running -= 1
                self._look_whether_over()
        finally:
            end = refused or (watched.end if watched is not None else None)
            if refused is not None:
                self.refused += 1
            self._record(
                request,
                asked_by,
                start,
                trio.current_time() - began,
                end,
                is_refusal=refused is not None,
            )

    def figures(self) -> dict[str, object]:
        """The counters of commands for /v1/info."""
        if self._pool is None:
            return {"enabled": self.enabled, "running": self.running, "refused": self.refused}
        pool, figures = self._pool, self._pool.figures
        return {
            "enabled": True,
            "running": self.running,
            "refused": self.refused,
            "commands": figures.commands,
            "connections": pool.connection_count,
            "connects": figures.connects,
            "connect_failures": figures.connect_failures,
            "reused": figures.reused,
            "killed": figures.killed,
            "not_killed": figures.not_killed,
        }

    def _login(self) -> Login:
        from tunnelmux.ssh import HostKeys
        from tunnelmux.ssh.connection import Login

        config = self._config
        folder = config.device.state_dir or default_state_dir("tunnelmux-agent", os.environ)
        keys = HostKeys(
            config.exec.host_keys,
            known_hosts=config.exec.known_hosts,
            store=folder / f"{self._device}.known_hosts",
            algorithms=config.exec.algorithms,
        )
        return Login(config.exec.limits, keys, config.exec.ssh_agent, tuple(config.exec.algorithms))

    def _record(
        self,
        request: CommandRequest,
        asked_by: str,
        start: datetime,
        duration: float,
        end: Exited | None,
        *,
        is_refusal: bool,
    ) -> None:
        if self._audit is None:
            return
        if end is None:
            end = failure("cancelled", "the caller left before its end", duration=duration)
        self._audit.record(
            AuditRecord(
                time=datetime.now(UTC),
                command_id=request.command_id,
                asked_by=asked_by,
                device=self._device,
                host=request.host,
                user=request.username,
                command=request.command,
                start=start,
                duration=round(duration, 3),
                exit_code=end.exit_code,
                stdout_bytes=end.stdout_bytes,
                stderr_bytes=end.stderr_bytes,
                reason=end.reason,
            ),
            is_refusal=is_refusal,
        )


class _Watched(AsyncIterator[Event]):
    """Passes events on, and keeps the last one for the audit."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events
        self.end: Exited | None = None

    async def __anext__(self) -> Event:
        event = await self._events.__anext__()
        if isinstance(event, Exited):
            self.end = event
        return event


async def _only(event: Exited) -> AsyncIterator[Event]:
    yield event
