"""tunnelmux: what people type."""

from __future__ import annotations

import click

from tunnelmux import __version__
from tunnelmux.cli.demo.command import demo
from tunnelmux.cli.exec import exec_command
from tunnelmux.cli.outcome import run_command

__all__ = ["main"]

_PROGRAM = "tunnelmux"


@click.group(_PROGRAM)
@click.version_option(__version__, prog_name=_PROGRAM)
def tunnelmux() -> None:
    """Reach devices behind NAT through a proxy they dial out to."""


tunnelmux.add_command(demo)
tunnelmux.add_command(exec_command)


def main() -> None:
    """The console script."""
    run_command(tunnelmux, _PROGRAM)
