"""What a daemon does when the operating system signals it."""

from __future__ import annotations

import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import trio

from tunnelmux.cli.outcome import EXIT_CUT_SHORT
from tunnelmux.cli.service_manager import ServiceManager
from tunnelmux.errors import ConfigError
from tunnelmux.observability import get_logger

__all__ = ["Drainable", "run_until_signalled"]

_log = get_logger("cli")

_DRAIN_MARGIN = 5.0
"""Seconds that a drain may take to close what its grace period left open."""


class Drainable(Protocol):
    """A running daemon, as far as signals are concerned."""

    async def drain(self, grace: float) -> object:
        """Accept nothing new; return when running work has finished, or after `grace` seconds."""


D = TypeVar("D", bound=Drainable)


async def run_until_signalled(
    start: Callable[..., Awaitable[object]],
    *,
    grace: float,
    reload: Callable[[D], Awaitable[dict[str, object] | None]] | None = None,
    manager: ServiceManager | None = None,
) -> int:
    """Run a daemon until it ends by itself or by a signal; returns the exit status.

    `start` is a function for `nursery.start` that returns the running daemon. SIGTERM and SIGINT
    drain it within `grace` seconds; a second one ends it at once, with status 1. SIGHUP calls
    `reload`, whose ConfigError is logged and changes nothing, and whose fields go into the log's
    line; without `reload` SIGHUP keeps its usual meaning. What the daemon raises comes out of here,
    in the groups its nurseries make. `manager`, by default the one that the environment names, is
    told the state of the daemon.
    """
    wanted = [signal.SIGTERM, signal.SIGINT]
    if reload is not None:
        wanted.append(signal.SIGHUP)
    supervisor = _Supervisor(start, grace, reload, manager or ServiceManager())
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
        manager: ServiceManager,
    ) -> None:
        self._start = start
        self._grace = grace
        self._reload = reload
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
            if number not in (signal.SIGINT, signal.SIGTERM):
                await self._reload_now()
            elif self._is_stopping:
                _log.warning("stopped before the drain was over")
                self._status = EXIT_CUT_SHORT
                nursery.cancel_scope.cancel()
            else:
                self._is_stopping = True
                self._manager.stopping()
                _log.info("stopping", signal=signal.Signals(number).name, grace=self._grace)
                nursery.start_soon(self._drain, nursery.cancel_scope)

    async def _drain(self, scope: trio.CancelScope) -> None:
        if self._daemon is not None:  # else it is still starting, and has nothing to finish
            with trio.move_on_after(self._grace + _DRAIN_MARGIN):
                await self._daemon.drain(self._grace)
        _log.info("stopped")
        scope.cancel()

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
