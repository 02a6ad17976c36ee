"""What `tunnelmux demo` takes, and how it ends."""

from __future__ import annotations

from functools import partial

import click

from tunnelmux.observability import configure_logs

__all__ = ["demo"]

_EXIT_CHECK_FAILED = 1
_EXIT_INTERRUPTED = 130

_EXAMPLES = """\b
Examples:
  tunnelmux demo
      Run it, look at the page, try the printed commands; Ctrl-C ends it.
  tunnelmux demo --once
      Only the checks: is everything in order on this machine?
\b
Exit status: 0 every check passed, 1 one failed or it could not start."""


@click.command(epilog=_EXAMPLES)
@click.option("--once", is_flag=True, help="End after the checks.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--verbose", "-v", is_flag=True, help="Show what the proxy and the agent log.")
def demo(once: bool, as_json: bool, verbose: bool) -> int:
    """Look at a small live page through a tunnel.

    Runs a proxy, an agent and the page.

    Everything runs in this one process, on ports that only this machine can reach.
    """
    # A page that is closed, or a port scanned, is no news here; --verbose shows the lot.
    configure_logs("info" if verbose else "error")

    # Trio and the daemons take a moment to import, which --help does not need.
    import trio

    from tunnelmux.cli.demo.report import JsonReport, Report, TextReport
    from tunnelmux.cli.demo.run import Demo
    from tunnelmux.cli.signals import run_until_signalled

    report: Report = JsonReport() if as_json else TextReport()
    running = Demo(report, once=once)
    # Nothing here is worth waiting for: an open page would hold a drain up until its last second.
    status = trio.run(partial(run_until_signalled, running.run, grace=0.0))
    if running.results is None:
        return status or _EXIT_INTERRUPTED
    if not all(result.passed for result in running.results):
        return _EXIT_CHECK_FAILED
    return status
