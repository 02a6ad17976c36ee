"""One worker of a proxy, as its parent starts it: a descriptor, a name and an incarnation stand
behind the arguments that the parent itself was given."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from tunnelmux.cli.outcome import EXIT_CUT_SHORT, run_command
from tunnelmux.cli.proxy import proxy as command
from tunnelmux.cli.service_manager import ServiceManager
from tunnelmux.cli.signals import run_until_signalled
from tunnelmux.cli.starts import WorkerStart
from tunnelmux.config import ProxyConfig
from tunnelmux.errors import TunnelmuxError
from tunnelmux.observability import configure_logs
from tunnelmux.observability.logs import name_process
from tunnelmux.proxy import RunningProxy, run_proxy
from tunnelmux.proxy.names import node_name
from tunnelmux.proxy.tunnels.enrolment import Enrolment
from tunnelmux.proxy.workers.parent import worker_names
from tunnelmux.proxy.workers.words import Reloaded
from tunnelmux.proxy.workers.worker import Worker

__all__ = ["main", "run_worker"]

_PROGRAM = "tunnelmux-proxy"

_Load = Callable[[Callable[[str], None]], ProxyConfig]


def run_worker(
    start: WorkerStart, load: _Load, state_dir: Path | None, enrolment: Enrolment | None = None
) -> int:
    """Serve as one of the workers until the parent ends it, or a signal does; returns the exit
    status. With *enrolment*, devices that hold an invitation may join."""
    config = load(_say_nothing)
    configure_logs(config.log.level, config.log.format)
    name_process(worker=start.name)
    running = _WorkerProcess(start, config, load, state_dir, enrolment)
    silent, grace = ServiceManager({}), config.drain.grace  # the parent tells the service manager
    try:
        return trio.run(partial(run_until_signalled, running.run, grace=grace, manager=silent))
    except* _NotBegun:
        pass
    return EXIT_CUT_SHORT


class _NotBegun(TunnelmuxError):
    """The proxy ends before this worker has begun to serve."""


class _WorkerProcess:
    def __init__(
        self,
        start: WorkerStart,
        config: ProxyConfig,
        load: _Load,
        state_dir: Path | None,
        enrolment: Enrolment | None,
    ) -> None:
        self._start = start
        self._config = config
        self._load = load
        self._state_dir = state_dir
        self._enrolment = enrolment
        self._proxy: RunningProxy | None = None

    async def run(
        self, *, task_status: trio.TaskStatus[RunningProxy] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the proxy of this worker until it was drained."""
        start, config = self._start, self._config
        node = node_name(config) if config.cluster is not None else ""
        others = worker_names(config.proxy.count, node)
        worker = Worker(start.link, start.name, start.incarnation, others=others)
        worker.keep_events(config.limits.internal.event_history)
        worker.on_reload = self._reload

        def announced(proxy: RunningProxy) -> None:
            self._proxy = proxy
            worker.ready()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            nursery.start_soon(self._drain_when_told, worker)
            await run_proxy(
                config,
                enrolment=self._enrolment,
                state_dir=self._state_dir,
                announce=announced,
                worker=worker,
                task_status=task_status,
            )
            await worker.flush()
            nursery.cancel_scope.cancel(reason="the worker was drained")

    async def _drain_when_told(self, worker: Worker) -> None:
        await worker.drain_wanted.wait()  # no deadline: a worker runs until it is told to end
        if self._proxy is None:
            raise _NotBegun
        grace = self._proxy.config.drain.grace
        await self._proxy.drain(0 if worker.is_orphan else grace)

    async def _reload(self) -> Reloaded:
        new = self._load(_say_nothing)
        configure_logs(new.log.level, new.log.format)
        if self._proxy is None:  # it has just begun, and read the file a moment ago
            return Reloaded([], [])
        report = await self._proxy.reload(new)
        return Reloaded(report.kicked, [str(problem) for problem in report.problems])


def _say_nothing(_sentence: str) -> None:
    """The parent has told of it."""


def main() -> None:
    """What the parent starts."""
    *arguments, descriptor, name, incarnation = sys.argv[1:]
    # The parent asks for a reload by its link; a signal to the whole group reaches it too.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.set_inheritable(int(descriptor), False)
    link = socket.socket(fileno=int(descriptor))
    run_command(command, _PROGRAM, arguments, WorkerStart(link, name, incarnation))


if __name__ == "__main__":
    main()
