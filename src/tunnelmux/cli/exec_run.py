"""One run of a command on devices: what is shown while it runs, and the exit status."""

from __future__ import annotations

import getpass
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from tunnelmux.backend import CommandEvents
from tunnelmux.cli.exec_output import JsonLines, ManyDevices, OneDevice, OutputClosed, Report
from tunnelmux.cli.fleet.errors import one_error
from tunnelmux.commands import CommandRequest, Exited

__all__ = ["Execution", "Runner"]

_EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
_EXIT_READER_GONE = 141  # 128 + SIGPIPE, the same

_NOT_ITS_OWN = frozenset({"aborted", "skipped"})
# Reasons of devices on which the command was ended because it failed on another.


class Runner(Protocol):
    """What runs commands: a proxy by its internal API, or tunnelmux-api."""

    def exec(
        self,
        devices: list[str],
        request: CommandRequest,
        *,
        concurrency: int | None,
        abort_on_error: bool,
        asked_by: str,
    ) -> AbstractAsyncContextManager[CommandEvents]:
        """See `ProxyClient.exec`."""


class Execution:
    """One run of `tunnelmux exec`."""

    def __init__(
        self,
        runner: Runner,
        devices: list[str],
        request: CommandRequest,
        *,
        concurrency: int | None,
        abort_on_error: bool,
        as_json: bool = False,
    ) -> None:
        self._runner = runner
        self._devices = devices
        self._request = request
        self._concurrency = concurrency
        self._abort_on_error = abort_on_error
        self._as_json = as_json
        self._ends: dict[str, Exited] = {}
        self._interrupted = False
        self._is_unread = False

    async def run(self) -> int:
        """The exit status. Ctrl-C and SIGTERM end the commands on the devices."""
        try:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._obey, signals, nursery.cancel_scope)
                    await self._follow()
                    nursery.cancel_scope.cancel()
        except* OutputClosed:
            self._is_unread = True
        if self._is_unread:
            return _EXIT_READER_GONE
        return _EXIT_INTERRUPTED if self._interrupted else self._status()

    async def _obey(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for _ in signals:
            self._interrupted = True
            scope.cancel(reason="interrupted")

    async def _follow(self) -> None:
        report: Report | None = None
        try:
            async with self._runner.exec(
                self._devices,
                self._request,
                concurrency=self._concurrency,
                abort_on_error=self._abort_on_error,
                asked_by=getpass.getuser(),
            ) as events:
                report = JsonLines() if self._as_json else _report_for(events.devices)
                async with one_error(), trio.open_nursery() as nursery:
                    nursery.start_soon(report.show_progress)
                    await self._read(events, report)
                    nursery.cancel_scope.cancel()
        finally:
            # By now the proxy is told to end what still runs.
            if report is not None:
                report.finish(self._ends, interrupted=self._interrupted)

    async def _read(self, events: CommandEvents, report: Report) -> None:
        async for device, event in events:
            if isinstance(event, Exited):
                self._ends[device] = event
            await report.see(device, event)

    def _status(self) -> int:
        codes = [end.exit_code for end in self._ends.values() if end.reason not in _NOT_ITS_OWN]
        return min(max(codes, default=0), 255)


def _report_for(devices: list[str]) -> Report:
    return OneDevice() if len(devices) == 1 else ManyDevices(devices)
