"""tunnelmux: what people type."""

from __future__ import annotations

import click

from tunnelmux import __version__
from tunnelmux.cli.completion import completion
from tunnelmux.cli.curl import curl
from tunnelmux.cli.demo.command import demo
from tunnelmux.cli.device_admin import device, invite
from tunnelmux.cli.doctor.command import doctor
from tunnelmux.cli.exec import exec_command
from tunnelmux.cli.explain import explain
from tunnelmux.cli.following import events, watch
from tunnelmux.cli.forward import forward
from tunnelmux.cli.inspect import inspect
from tunnelmux.cli.leases import assist, lease
from tunnelmux.cli.listing import ls, show
from tunnelmux.cli.logs import logs
from tunnelmux.cli.manual import manual
from tunnelmux.cli.opening import open_device
from tunnelmux.cli.outcome import run_command
from tunnelmux.cli.secure_shell import connect, ssh, ssh_config
from tunnelmux.cli.sign_in import login, logout, whoami
from tunnelmux.cli.tail import tail

__all__ = ["COMMANDS", "main", "tunnelmux"]

_PROGRAM = "tunnelmux"

COMMANDS: dict[str, tuple[click.Command, ...]] = {
    "Signing in": (login, logout, whoami),
    "Looking": (ls, show, watch, events, tail, logs),
    "Reaching devices": (ssh, connect, ssh_config, forward, open_device, curl, exec_command),
    "Finding out what is wrong": (explain, doctor, inspect),
    "Letting devices in": (invite, device),
    "Remote assistance": (lease, assist),
    "This program": (demo, completion, manual),
}
"""All commands, under the headings of the help: the one table from which help, completion and man
pages are made."""


class _Commands(click.Group):
    """Shows the commands under headings, in the order of the table."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(command.name or "", command.get_short_help_str(66)) for command in commands]
                )


@click.group(_PROGRAM, cls=_Commands)
@click.version_option(__version__, prog_name=_PROGRAM)
def tunnelmux() -> None:
    """Reach devices behind NAT through a proxy they dial out to."""


for _commands in COMMANDS.values():
    for _command in _commands:
        tunnelmux.add_command(_command)


def main() -> None:
    """The console script."""
    run_command(tunnelmux, _PROGRAM)
