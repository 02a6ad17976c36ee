"""A proxy of several processes: its first process."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from functools import partial

import trio

from tunnelmux.cli.options import log_warning
from tunnelmux.cli.proxy import told_of_reload
from tunnelmux.cli.signals import run_until_signalled
from tunnelmux.cli.upgrade import follow, upgrader
from tunnelmux.config import ProxyConfig
from tunnelmux.config.changes import changes_between
from tunnelmux.observability import configure_logs
from tunnelmux.proxy.names import node_name
from tunnelmux.proxy.visitors.listeners import Binder
from tunnelmux.proxy.workers.parent import WorkersParent, worker_command

__all__ = ["run_parent"]


def _do_nothing(_parent: WorkersParent, _config: ProxyConfig) -> None:
    """A proxy with a file has no more to tell."""


def run_parent(
    config: ProxyConfig,
    load: Callable[[Callable[[str], None]], ProxyConfig],
    link: socket.socket | None = None,
    *,
    on_started: Callable[[WorkersParent, ProxyConfig], None] = _do_nothing,
    on_reloaded: Callable[[WorkersParent, ProxyConfig], None] = _do_nothing,
) -> int:
    """Start as many workers as the configuration says, and be their parent until a signal ends it;
    answers the exit status. `load` reads the configuration again, and `link` leads to the program
    before this one. *on_started* and *on_reloaded* are called with the parent and the
    configuration, once all workers serve and after each reload."""
    count = config.proxy.count
    history = config.limits.internal.event_history

    async def start(
        *,
        binder: Binder | None = None,
        task_status: trio.TaskStatus[WorkersParent] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        command = worker_command(sys.argv[1:])
        node = node_name(config) if config.cluster is not None else ""
        parent = WorkersParent(
            count,
            command,
            history=history,
            binder=binder,
            node=node,
            cluster=config.cluster,
            max_device_sessions=config.limits.ingress.max_device_sessions,
            timeout=config.proxy.worker_timeout,
        )
        announce = partial(on_started, parent, config)
        await parent.run(announce, task_status=task_status)

    async def reload(running: WorkersParent) -> dict[str, object]:
        nonlocal config
        new = load(log_warning)
        if new.proxy.count != count:
            log_warning(f"proxy.workers: {count} go on: another number needs a restart")
        configure_logs(new.log.level, new.log.format)
        report = await running.reload()
        on_reloaded(running, new)
        changed, config = changes_between(config, new), new
        return told_of_reload(changed, report)

    grace = config.drain.grace
    begin = partial(follow, start, link)
    return trio.run(
        partial(run_until_signalled, begin, grace=grace, reload=reload, upgrade=upgrader())
    )
