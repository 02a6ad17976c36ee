"""What `tunnelmux demo` takes, and how it ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from tunnelmux.cli.options import require_libraries
from tunnelmux.observability import configure_logs

__all__ = ["demo"]

_LIBRARIES = (
    "fastapi",
    "anycorn",
    "authlib",
    "httpx2",
    "joserfc",
    "sqlalchemy",
    "alembic",
    "oidc_provider_mock",
)

_EXIT_CHECK_FAILED = 1
_EXIT_INTERRUPTED = 130

_EXAMPLES = """\b
Examples:
  tunnelmux demo
      Run it, look at the page, try the printed commands; Ctrl-C ends it.
  tunnelmux demo --once
      Only the checks, to see whether all works on this machine.
  tunnelmux demo --console
      A whole installation: console, sign-in, SSH gateway, three devices.
\b
Exit status: 0 every check passed, 1 one failed or it could not start."""


@click.command(epilog=_EXAMPLES)
@click.option("--console", is_flag=True, help="A whole installation, with the console.")
@click.option("--once", is_flag=True, help="End after the checks.")
@click.option(
    "--any-ports", is_flag=True, help="Listen on free ports instead of those in the documentation."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--verbose", "-v", is_flag=True, help="Show what the proxy and the agent log.")
def demo(console: bool, once: bool, any_ports: bool, as_json: bool, verbose: bool) -> int:
    """Look at a small live page through a tunnel.

    Runs a proxy, an agent and the page; with --console an API with its console, a sign-in, a
    gateway and three devices as well.

    Everything listens on loopback: other users of this machine can reach it, other machines cannot.
    """
    if console:
        require_libraries(_LIBRARIES, 'pip install ".[quickstart]"')
    # A closed page or a scanned port is not worth a line here; --verbose shows all.
    configure_logs("info" if verbose else "error")

    # Trio and the daemons take a moment to import, which --help does not need.
    import trio

    from tunnelmux.cli.demo import stage
    from tunnelmux.cli.demo.report import JsonReport, TextReport
    from tunnelmux.cli.demo.run import Demo, tunnel_demo
    from tunnelmux.cli.signals import run_until_signalled

    running: Demo[Any]
    if console:
        from tunnelmux.cli.demo import console_stage
        from tunnelmux.cli.demo.console_report import ConsoleReport, console_demo

        running = console_demo(
            JsonReport() if as_json else ConsoleReport(),
            once=once,
            preferred=console_stage.ConsolePorts() if any_ports else console_stage.PREFERRED,
        )
    else:
        running = tunnel_demo(
            JsonReport() if as_json else TextReport(),
            once=once,
            preferred=stage.Ports(0, 0, 0) if any_ports else stage.PREFERRED,
        )
    # No grace period: a page that is left open would use all of it.
    status = trio.run(partial(run_until_signalled, running.run, grace=0.0))
    if running.results is None:
        return status or _EXIT_INTERRUPTED
    if not all(result.passed for result in running.results):
        return _EXIT_CHECK_FAILED
    return status
