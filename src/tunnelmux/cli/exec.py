"""tunnelmux exec: a command on devices, by tunnelmux-api or the internal API of their proxy."""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.fleet_options import explained, place_of, place_options
from tunnelmux.cli.interrupts import run_interruptible
from tunnelmux.cli.options import print_warning
from tunnelmux.config.token_file import exposed_to_others
from tunnelmux.errors import ConfigError, TunnelmuxError
from tunnelmux.printable import printable

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.opening import Place
    from tunnelmux.commands import CommandRequest

__all__ = ["exec_command"]

_PROGRAM = "tunnelmux exec"

_EXIT_FAILED = 255
# As ssh(1) has it: any other status may be the command's own.

_LARGEST_SECRET = 65_536
# Bytes: no password or key is longer, and a file named by mistake is not read whole.

_LARGEST_INPUT = 700_000
# Bytes of standard input: in base64 it has to fit into max_exec_request.

_EXAMPLES = """\b
Examples:
  tunnelmux exec dev1 -- uptime
      On one device: its output as it comes, and its exit status.
  tunnelmux exec 'cam-*' dev7 -- df -h /
      On many: each line says where it comes from; a table at the end.
  tunnelmux exec all --concurrency 5 --abort-on-error -- 'apt update'
      Five at a time; stop everywhere once it fails on one.
  tunnelmux exec dev1 --host 192.168.1.20 --user pi --password-file pw -- ls
      Another machine, which dev1 reaches.
  tunnelmux exec dev1 --stdin -- 'cat > notes' < notes
\b
A single word after -- is a line for the device's shell. Several words are
quoted, so that each arrives as one word.
\b
Exit status: that of the command; of many, the highest. 255 when it was not
run or its end is not known, 124 timed out, 126 the device does not allow it,
130 interrupted, 2 wrong option."""


class _DevicesThenCommand(click.Command):
    """Keeps the words after `--` from the parser, which would take them for devices."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = args[cut + 1 :]
        return super().parse_args(ctx, args[:cut])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "--", "COMMAND..."]


def _file_option(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    return click.option(*names, metavar="FILE", type=click.Path(path_type=Path), **attributes)


@click.command("exec", cls=_DevicesThenCommand, epilog=_EXAMPLES)
@click.argument("devices", metavar="DEVICE...", nargs=-1, required=True)
@click.option(
    "--host",
    metavar="HOST",
    default="127.0.0.1",
    show_default=True,
    help="The SSH server to run it on, as the device sees it.",
)
@click.option("--port", metavar="PORT", type=click.IntRange(1, 65_535), default=22)
@click.option("--user", metavar="NAME", help="Who to log in as there.  [default: your own name]")
@_file_option("--password-file", help="A file that holds the password to log in with.")
@_file_option("--identity-file", "-i", help="A private key to log in with.")
@_file_option("--passphrase-file", help="A file that holds what that key is encrypted with.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="For each device: to connect, log in and run.",
)
@click.option(
    "--concurrency",
    metavar="N",
    type=click.IntRange(1),
    help="Devices at a time.  [default: what the proxy allows]",
)
@click.option(
    "--abort-on-error", is_flag=True, help="When it fails on one device, end it everywhere."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Write each event as a line of JSON, for programs."
)
@click.option("--stdin", "takes_stdin", is_flag=True, help="Send standard input to the command.")
@place_options
@click.pass_context
def exec_command(context: click.Context, /, **options: Any) -> int:
    """Run COMMAND over SSH on devices.

    A DEVICE is a name, a pattern such as 'cam-*', or all; on those that are away it fails.
    """
    words: list[str] = context.meta["command"]
    if not words:
        raise click.UsageError(
            'no command: put it behind "--", as in tunnelmux exec dev1 -- uptime'
        )
    # Trio and HTTP take a moment to import, which --help does not need.
    from tunnelmux.commands import InvalidCommand

    place = place_of(options)
    try:
        request = _read_request(options, words)
    except InvalidCommand as error:
        raise click.UsageError(str(error)) from None
    try:
        return _run(place, request, options)
    except (TunnelmuxError, ExceptionGroup) as error:
        known = _only_error(error)
        if known is None or isinstance(known, ConfigError):
            raise
        click.echo(f"{_PROGRAM}: error: {printable(str(explained(place, known)))}", err=True)
        return _EXIT_FAILED


def _only_error(error: BaseException) -> TunnelmuxError | None:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, TunnelmuxError) else None


def _read_request(options: dict[str, Any], words: list[str]) -> CommandRequest:
    from tunnelmux.commands import CommandRequest, new_command_id

    def read(option: str) -> str | None:
        file: Path | None = options[option.replace("-", "_")]
        return None if file is None else _read_secret(f"--{option}", file)

    password, passphrase = read("password-file"), read("passphrase-file")
    content = {
        "commandId": new_command_id(),
        "host": options["host"],
        "port": options["port"],
        "username": options["user"] or getpass.getuser(),
        "password": password and password.rstrip("\r\n"),
        "privateKey": read("identity-file"),
        "passphrase": passphrase and passphrase.rstrip("\r\n"),
        "command": words[0] if len(words) == 1 else shlex.join(words),
        "timeout": options["timeout"] * 1000,
        "stdin": _read_input() if options["takes_stdin"] else None,
    }
    return CommandRequest.from_json(content)


def _read_secret(option: str, file: Path) -> str:
    try:
        with file.open("rb") as source:
            content = source.read(_LARGEST_SECRET + 1)
    except OSError as error:
        raise ConfigError(f"{option}: {file} cannot be read ({error.strerror})") from None
    if not content or len(content) > _LARGEST_SECRET:
        problem = "is too long for that" if content else "is empty"
        raise ConfigError(f"{option}: {file} {problem}: is it the right file?")
    _warn_if_exposed(file)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{option}: {file} is no text: is it the right file?") from None


def _warn_if_exposed(file: Path) -> None:
    if exposed_to_others(file):
        print_warning(_PROGRAM, f"every user of this machine can read {file}: chmod 600 it")


def _read_input() -> str:
    import base64
    import sys

    data = sys.stdin.buffer.read(_LARGEST_INPUT + 1)
    if len(data) > _LARGEST_INPUT:
        raise ConfigError(
            f"--stdin: there are more than {_LARGEST_INPUT} bytes: put them into a file there first"
        )
    return base64.b64encode(data).decode("ascii")


def _run(place: Place, request: CommandRequest, options: dict[str, Any]) -> int:
    from tunnelmux.cli.exec_run import Execution, Runner
    from tunnelmux.cli.fleet.api_commands import ApiCommands
    from tunnelmux.cli.fleet.by_api import ApiFleet
    from tunnelmux.cli.fleet.by_proxy import ProxyFleet
    from tunnelmux.cli.fleet.opening import open_fleet

    async def run() -> int:
        async with open_fleet(place) as fleet:
            runner: Runner
            if isinstance(fleet, ApiFleet):
                runner = ApiCommands(fleet.client)
            else:
                assert isinstance(fleet, ProxyFleet)
                runner = fleet.client
            execution = Execution(
                runner,
                list(options["devices"]),
                request,
                concurrency=options["concurrency"],
                abort_on_error=options["abort_on_error"],
                as_json=options["as_json"],
            )
            return await execution.run()

    return run_interruptible(run)
