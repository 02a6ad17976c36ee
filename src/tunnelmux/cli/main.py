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
from tunnelmux.cli.fleet_options import examples
from tunnelmux.cli.following import events, watch
from tunnelmux.cli.forward import forward
from tunnelmux.cli.inspect import inspect
from tunnelmux.cli.install_keys import install_key
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
    "Letting devices in": (invite, install_key, device),
    "Remote assistance": (lease, assist),
    "This program": (demo, completion, manual),
}
"""All commands, under the headings of the help: the one table from which help, completion and man
pages are made."""


_WORDS_OF_OTHERS = {
    **dict.fromkeys(("status", "list", "ps", "devices", "nodes"), "tunnelmux ls"),
    **dict.fromkeys(("ping", "check", "diagnose", "netcheck"), "tunnelmux explain DEVICE"),
    **dict.fromkeys(("log",), "tunnelmux logs DEVICE"),
    **dict.fromkeys(("browse", "url"), "tunnelmux open DEVICE"),
    **dict.fromkeys(("run",), "tunnelmux exec DEVICE -- COMMAND"),
    **dict.fromkeys(("port-forward", "proxy", "tunnel"), "tunnelmux forward DEVICE:SERVICE"),
    **dict.fromkeys(("add", "pair", "join"), "tunnelmux invite --name NAME"),
    **dict.fromkeys(("authtoken", "auth", "signin"), "tunnelmux login URL"),
    **dict.fromkeys(
        ("http", "tcp", "up", "start", "serve", "expose"),
        "on the device: tunnelmux-agent --service web=8000",
    ),
    **dict.fromkeys(("help",), "tunnelmux --help"),
}
"""Words from other programs of this kind, and the command that does the same here."""


class _Commands(click.Group):
    """Shows the commands under headings, in the order of the table."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a hint for people who know another program."""
        known = _WORDS_OF_OTHERS.get(args[0])
        if known is not None and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"There is no command '{args[0]}'. It is here: {known}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(command.name or "", command.get_short_help_str(66)) for command in commands]
                )


_EPILOG = examples(
    ("tunnelmux login https://tunnels.example.com", "Sign in, once."),
    ("tunnelmux ls", "The devices, and their state."),
    ("tunnelmux ssh dev1", "A shell on one of them."),
    ("tunnelmux forward dev1:db 5432", "One of its services at a port of this machine."),
)


@click.group(_PROGRAM, cls=_Commands, epilog=_EPILOG)
@click.version_option(__version__, prog_name=_PROGRAM)
def tunnelmux() -> None:
    """Reach devices behind NAT through a proxy they dial out to."""


for _commands in COMMANDS.values():
    for _command in _commands:
        tunnelmux.add_command(_command)


def main() -> None:
    """The console script."""
    run_command(tunnelmux, _PROGRAM)
