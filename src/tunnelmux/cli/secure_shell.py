"""tunnelmux ssh, connect, ssh-config: OpenSSH to devices by their names."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.device_names import DEVICE, SERVICE
from tunnelmux.cli.fleet_options import examples, place_arguments, place_options, run_on_fleet
from tunnelmux.cli.own_command import own_command, proxy_command
from tunnelmux.errors import ConfigError, TunnelmuxError

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.fleet import Fleet

__all__ = ["connect", "ssh", "ssh_config"]

_ENDING = ".tunnelmux"
# `ssh-config` appends this to a device's name, so that one Host block serves all devices.

_SSH_SERVICE = "ssh"

_BEFORE_LINES_OF_SSH = "What ssh writes below only means that it got no connection."
# It writes "Connection closed by UNKNOWN port 65535" behind the error.


@click.command(
    epilog=examples(
        ("tunnelmux connect dev1 ssh", "A connection to its SSH server, for ssh."),
        ("printf 'PING\\r\\n' | tunnelmux connect dev1 redis", "Send a request to a service."),
    )
)
@click.argument("device", type=DEVICE)
@click.argument("service", type=SERVICE)
@place_options
def connect(device: str, service: str, **options: Any) -> int:
    """Join standard input and output to SERVICE of DEVICE."""
    name = device.removesuffix(_ENDING)

    async def work(fleet: Fleet) -> None:
        from tunnelmux.cli.standard_streams import carry

        async with fleet.connect(name, service) as stream:
            await carry(stream)

    try:
        return run_on_fleet(options, work)
    except TunnelmuxError as error:
        if name != device:
            error.args = (f"{error}\n{_BEFORE_LINES_OF_SSH}",)
        raise


class _SshCommand(click.Command):
    """Keeps the words after `--`, and ssh's own options, from the parser."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = args[cut + 1 :]
        return super().parse_args(ctx, args[:cut])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


@click.command(
    cls=_SshCommand,
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        ("tunnelmux ssh dev1", "A shell on the device."),
        ("tunnelmux ssh pi@dev1 -- uptime", "One command, as another user."),
        (
            "tunnelmux ssh dev1 -L 8080:localhost:80",
            "Options after the device's name are passed to ssh.",
        ),
        more="The device offers its SSH server as a service, by default one called ssh: in\n"
        'its agent.toml, [[services]] name = "ssh" and target = "tcp://127.0.0.1:22".\n'
        "Exit status: that of ssh, which is the command's; 255 without a connection.",
    ),
)
@click.option(
    "--service",
    metavar="NAME",
    default=_SSH_SERVICE,
    show_default=True,
    help="The service that is its SSH server.",
)
@place_options
@click.argument("device", metavar="[USER@]DEVICE", type=DEVICE)
@click.argument("ssh_options", metavar="[SSH-OPTION...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def ssh(
    context: click.Context,
    /,
    device: str,
    service: str,
    ssh_options: tuple[str, ...],
    **options: Any,
) -> int:
    """Open a shell on DEVICE with ssh, or run COMMAND there.

    The connection is end to end: the servers in between see what ssh encrypts.
    """
    command: list[str] = context.meta["command"]
    if ssh_options and not ssh_options[0].startswith("-"):
        raise click.UsageError(
            f'put the command behind "--": tunnelmux ssh {device} -- {" ".join(ssh_options)}'
        )
    program = shutil.which("ssh")
    if program is None:
        raise ConfigError("ssh is not installed: apt-get install openssh-client")
    user, at, name = device.rpartition("@")
    words = [
        *(program, "-o", f"ProxyCommand={_proxy_command(service, options)}"),
        *ssh_options,
        f"{user}{at}{name}{_ENDING}",
        *command,
    ]
    sys.stdout.flush()
    os.execv(program, words)  # noqa: S606  in our place: the terminal and the signals are ssh's


@click.command(
    "ssh-config",
    epilog=examples(
        (
            "tunnelmux ssh-config >> ~/.ssh/config",
            (
                f"From then on, ssh, scp, sftp, rsync and git know every device as\n"
                f"NAME{_ENDING}: scp notes.txt dev1{_ENDING}:"
            ),
        ),
        ("tunnelmux ssh-config dev1 --user pi", "For one device, under its own name."),
    ),
)
@click.argument("devices", metavar="[DEVICE...]", nargs=-1, type=DEVICE)
@click.option("--user", metavar="NAME", help="Who to log in as.")
@click.option(
    "--service",
    metavar="NAME",
    default=_SSH_SERVICE,
    show_default=True,
    help="The service that is their SSH server.",
)
@place_options
def ssh_config(devices: tuple[str, ...], user: str | None, service: str, **options: Any) -> None:
    """Print the Host block for ~/.ssh/config.

    For all devices, or for those that are named.
    """
    names = " ".join(devices) if devices else f"*{_ENDING}"
    click.echo(f"Host {names}")
    click.echo(f"    ProxyCommand {_proxy_command(service, options)}")
    if devices:
        # As `tunnelmux ssh` knows it: the same device has one key in known_hosts.
        click.echo(f"    HostKeyAlias %n{_ENDING}")
    if user is not None:
        click.echo(f"    User {user}")


def _proxy_command(service: str, options: dict[str, Any]) -> str:
    return proxy_command([*own_command(), "connect", *place_arguments(options), "%n", service])
