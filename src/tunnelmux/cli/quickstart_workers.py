"""A quickstart proxy of several processes: its parent, and each of its workers."""

from __future__ import annotations

from collections.abc import Callable

import click

from tunnelmux.cli.options import log_warning
from tunnelmux.cli.starts import WorkerStart
from tunnelmux.cli.worker import run_worker
from tunnelmux.cli.workers import run_parent
from tunnelmux.config import ProxyConfig
from tunnelmux.observability import configure_logs
from tunnelmux.proxy.quickstart import Listening, Quickstart
from tunnelmux.proxy.workers.parent import WorkersParent

__all__ = ["run_quickstart_workers"]

_Load = Callable[[Callable[[str], None]], ProxyConfig]


def run_quickstart_workers(quickstart: Quickstart, load: _Load, given: object) -> int:
    """Be the parent of such a proxy, or the worker that *given* makes this process; returns the
    exit status. *load* reads the configuration."""

    def complete(warn: Callable[[str], None]) -> ProxyConfig:
        return quickstart.complete(load(warn))

    if isinstance(given, WorkerStart):
        return run_worker(given, complete, quickstart.state_dir, quickstart.enrolment)
    config = complete(log_warning)
    configure_logs(config.log.level, config.log.format)
    quickstart.renew_secret(config)
    try:
        return run_parent(
            config,
            complete,
            on_started=lambda parent, config: click.echo(
                quickstart.welcome(config, _listening(parent))
            ),
            on_reloaded=lambda parent, config: quickstart.tell(config, _listening(parent)),
        )
    finally:
        quickstart.forget()


def _listening(parent: WorkersParent) -> Listening:
    tunnel, http = parent.address_of("tunnel"), parent.address_of("http")
    assert tunnel is not None  # these listeners always exist
    assert http is not None
    return Listening(tunnel=tunnel, http=http, internal=parent.address_of("internal"))
