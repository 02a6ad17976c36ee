"""What a daemon does when the operating system signals it."""

from __future__ import annotations

import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import trio

from tunnelmux.cli.outcome import EXIT_CUT_SHORT
from tunnelmux.cli.service_manager import ServiceManager
from tunnelmux.cli.upgrade_signal import UPGRADE_SIGNAL, tell_of_upgrade
from tunnelmux.descriptors import raise_descriptor_limit
from tunnelmux.errors import ConfigError
from tunnelmux.observability import get_logger

__all__ = ["Drainable", "run_until_signalled"]

_log = get_logger("cli")

_DRAIN_MARGIN = 5.0
"""Seconds that a drain may take to close what its grace period left open."""

_GARBAGE = (25_000, 4, 10)
"""`gc.set_threshold`: new objects after which Python looks through them for garbage, and which of
these looks go through older ones too. Each stops all traffic: with 10,000 sessions a look at all
takes up to 2 s. With Python's own (700, 10, 10) it came every 4 s while thousands of agents
connected; here it comes once in a million new objects, some 6,000 sessions. What garbage there can
be meanwhile is in the order of 100 MiB, and as a rule far less.
"""


class Drainable(Protocol):
    """A running daemon, as far as signals are concerned."""

    async def drain(self, grace: float) -> object:
        """Accept nothing new; return when running work has finished, or after `grace` seconds."""


class Follower(Protocol):
    """The program that serves in the place of this one."""

    @property
    def pid(self) -> int:
        """Its process id."""

    async def flush(self) -> None:
        """Return when it has all that it was given."""


D = TypeVar("D", bound=Drainable)


async def run_until_signalled(
    start: Callable[..., Awaitable[object]],
    *,
    grace: float,
    reload: Callable[[D], Awaitable[dict[str, object] | None]] | None = None,
    upgrade: Callable[[D, trio.Nursery], Awaitable[Follower]] | None = None,
    manager: ServiceManager | None = None,
) -> int:
    """Run a daemon until it ends by itself or by a signal; returns the exit status.

    `start` is a function for `nursery.start` that returns the running daemon. SIGTERM and SIGINT
    drain it within `grace` seconds; a second one ends it at once, with status 1. SIGHUP calls
    `reload`, whose ConfigError is logged and changes nothing, and whose fields go into the log's
    line; without `reload` SIGHUP keeps its usual meaning. SIGUSR2 calls `upgrade`, which starts the
    next program and returns once that serves; then this one drains. What the daemon raises comes
    out of here, in the groups its nurseries make. `manager`, by default the one that the
    environment names, is told what becomes of the daemon. The process may have as many files and
    sockets open as its user from now on.
    """
    raise_descriptor_limit()
    wanted = [signal.SIGTERM, signal.SIGINT]
    if reload is not None:
        wanted.append(signal.SIGHUP)
    if upgrade is not None:
        wanted.append(UPGRADE_SIGNAL)
    supervisor = _Supervisor(start, grace, reload, upgrade, manager or ServiceManager())
    # The receiver is open before the daemon starts, so that no signal is lost in between.
    with trio.open_signal_receiver(*wanted) as signals:
        return await supervisor.run(signals)


class _Supervisor(Generic[D]):
    """The daemon in one task, the signals in another, the drain in a third."""

    def __init__(
        self,
        start: Callable[..., Awaitable[object]],
        grace: float,
        reload: Callable[[D], Awaitable[dict[str, object] | None]] | None,
        upgrade: Callable[[D, trio.Nursery], Awaitable[Follower]] | None,
        manager: ServiceManager,
    ) -> None:
        self._start = start
        self._grace = grace
        self._reload = reload
        self._upgrade = upgrade
        self._upgrading: trio.CancelScope | None = None
        self._manager = manager
        self._daemon: D | None = None
        self._failure: Exception | None = None
        self._status = 0
        self._is_stopping = False

    async def run(self, signals: AsyncIterator[int]) -> int:
        # What was imported stays for good. Looking through it for garbage, now and then, would stop
        # all traffic for some 40 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GARBAGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, signals, nursery)
            nursery.start_soon(self._manager.watch)
            nursery.start_soon(self._run_daemon, nursery.cancel_scope)
        if self._failure is not None:
            raise self._failure
        return self._status

    async def _run_daemon(self, scope: trio.CancelScope) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._daemon = await nursery.start(self._start)
                if not self._is_stopping:
                    self._manager.ready()
        except Exception as error:  # noqa: BLE001  kept for run(), which raises it out of its nursery
            self._failure = error
        scope.cancel()

    async def _obey(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            if number == UPGRADE_SIGNAL:
                nursery.start_soon(self._upgrade_now, nursery)
            elif number == signal.SIGHUP:
                await self._reload_now()
            elif self._is_stopping:
                _log.warning("stopped before the drain was over")
                self._status = EXIT_CUT_SHORT
                nursery.cancel_scope.cancel()
            else:
                self._is_stopping = True
                if self._upgrading is not None:
                    self._upgrading.cancel(reason="this process is to end")
                self._manager.stopping()
                _log.info("stopping", signal=signal.Signals(number).name, grace=self._grace)
                nursery.start_soon(self._drain, nursery.cancel_scope)

    async def _drain(self, scope: trio.CancelScope, new: Follower | None = None) -> None:
        if self._daemon is not None:  # else it is still starting, and has nothing to finish
            with trio.move_on_after(self._grace + _DRAIN_MARGIN):
                await self._daemon.drain(self._grace)
                if new is not None:
                    await new.flush()
        _log.info("stopped")
        scope.cancel()

    async def _upgrade_now(self, nursery: trio.Nursery) -> None:
        if self._upgrade is None or self._daemon is None or self._is_stopping:
            tell_of_upgrade(None, "the proxy is starting or ending; try again in a moment")
            return
        if self._upgrading is not None:
            return  # its end is told
        problem = "this process was told to end meanwhile"
        new: Follower | None = None
        self._manager.reloading()
        try:
            with trio.CancelScope() as self._upgrading:
                new = await self._upgrade(self._daemon, nursery)
        except ConfigError as error:
            problem = str(error)
        self._upgrading = None
        tell_of_upgrade(new.pid if new is not None else None, problem)
        if new is None:
            self._manager.reload_failed(problem)
            _log.error("not upgraded; this process goes on", cause=problem)
            return
        self._is_stopping = True
        self._manager.followed_by(new.pid)
        _log.info("upgraded", pid=new.pid, grace=self._grace)
        await self._drain(nursery.cancel_scope, new)

    async def _reload_now(self) -> None:
        if self._reload is None or self._daemon is None or self._is_stopping:
            return
        self._manager.reloading()
        try:
            # No deadline: it reads files and opens local sockets, and waits for no peer.
            fields = await self._reload(self._daemon) or {}
        except ConfigError as error:
            self._manager.reload_failed(str(error))
            _log.error("configuration not reloaded; the one before stays", error=error)
        else:
            self._manager.ready()
            _log.info("configuration reloaded", **fields)
