"""tunnelmux-gateway: the SSH server for people."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from tunnelmux import __version__
from tunnelmux.cli.checked import check_registry_url
from tunnelmux.cli.interrupts import run_interruptible
from tunnelmux.cli.options import (
    all_option,
    common_settings,
    config_option,
    flags_of,
    load_for_running,
    print_checked,
    refuse_options_before_command,
    require_libraries,
    setting,
    shown_examples,
)
from tunnelmux.cli.outcome import run_command
from tunnelmux.config.gateway import GatewayConfig
from tunnelmux.config.load import load_gateway_config
from tunnelmux.errors import ConfigError

__all__ = ["main"]

_PROGRAM = "tunnelmux-gateway"

_LIBRARIES = ("sqlalchemy", "alembic")
_INSTALL = 'pip install ".[registry]", for PostgreSQL ".[postgresql]"'

F = TypeVar("F", bound=Callable[..., Any])

_EXAMPLES = """\b
Examples:
  (umask 077; tunnelmux-gateway keys new-authority > authority.key)
      Make the key by which the gateway logs in to devices.
  tunnelmux-gateway authority --config gateway.toml
      Print the key that a device's sshd must trust, for TrustedUserCAKeys.
  tunnelmux-gateway host-key --config gateway.toml gateway.example.com
      Print the line for people's known_hosts.
  tunnelmux-gateway check --config gateway.toml
      Check the file, and print the settings that result.
  tunnelmux-gateway --config gateway.toml
      Run.
\b
People then write:
  ssh -p 2222 root@cam1@gateway.example.com
      A recorded session on the device cam1.
  ssh -J gateway.example.com:2222 root@cam1
      A sealed session: the gateway sees ciphertext only.
\b
Exit status: 0 stopped as asked, 1 failed or cut short, 2 wrong option,
setting or address."""


_NEW_AUTHORITY_EXAMPLES = shown_examples(
    (
        "(umask 077; tunnelmux-gateway keys new-authority > authority.key)",
        "Only the user of the gateway may read it.",
    )
)


def _gateway_settings(function: F) -> F:
    for decorate in (
        common_settings,
        setting("--listen", "gateway.listen", metavar="HOST:PORT", help="Where to listen."),
        config_option,
    ):
        function = decorate(function)
    return function


@click.group(_PROGRAM, invoke_without_command=True, epilog=_EXAMPLES)
@_gateway_settings
@click.version_option(__version__, prog_name=_PROGRAM)
@click.pass_context
def gateway(context: click.Context, /, config_file: Path | None, **_settings: object) -> int:
    """Let people reach devices by SSH, recorded or sealed."""
    if context.invoked_subcommand is not None:
        refuse_options_before_command(context)
        return 0
    require_libraries(_LIBRARIES, _INSTALL)
    if config_file is None:
        raise click.UsageError("no configuration: give --config FILE")
    return _run(context, config_file)


@gateway.command(
    epilog=shown_examples(
        (
            "tunnelmux-gateway check --config gateway.toml",
            "Is the file sound, and what results of it?",
        )
    )
)
@_gateway_settings
@all_option
@click.pass_context
def check(
    context: click.Context, /, config_file: Path | None, show_all: bool, **_settings: object
) -> None:
    """Validate the configuration and print the result, secrets hidden."""

    def load(warn: Callable[[str], None]) -> GatewayConfig:
        config = _load(context, config_file, warn)
        check_registry_url(config.registry)
        return config

    print_checked(_PROGRAM, load, show_all=show_all)


@gateway.group(epilog=_NEW_AUTHORITY_EXAMPLES)
def keys() -> None:
    """The key behind the tenants' authorities (`access.authority_file`)."""


@keys.command("new-authority", epilog=_NEW_AUTHORITY_EXAMPLES)
def new_authority() -> None:
    """Print the content of a new file."""
    from tunnelmux.gateway.certificates import new_authority_key

    click.echo(new_authority_key(), nl=False)


@gateway.command(
    epilog=shown_examples(
        (
            "tunnelmux-gateway authority --config gateway.toml > tunnelmux_ca.pub",
            "Copy it to the device, as /etc/ssh/tunnelmux_ca.pub.",
        )
    )
)
@config_option
@click.option("--tenant", default="default", show_default=True, help="Whose devices.")
def authority(config_file: Path | None, tenant: str) -> None:
    """Print what devices of a tenant trust: a line for sshd's TrustedUserCAKeys."""
    config = load_gateway_config(_required(config_file), environ=os.environ)
    if config.access.authority_file is None:
        raise ConfigError("access.authority_file is not set: there is no authority")
    require_libraries(_LIBRARIES, _INSTALL)

    from tunnelmux.gateway.certificates import Authorities
    from tunnelmux.registry import Actor, open_registry

    authorities = Authorities(config.access.authority_file)

    async def find() -> None:
        async with open_registry(config.registry.require_url(), migrate=False) as registry:
            installation = registry.installation(Actor.program(_PROGRAM))
            found = await installation.tenants.find_named(tenant)
            click.echo(authorities.public_line(found.id, found.name))

    run_interruptible(find)


@gateway.command(
    "host-key",
    epilog=shown_examples(
        (
            "tunnelmux-gateway host-key --config gateway.toml gateway.example.com >> known_hosts",
            "Copy the line to people's ~/.ssh/known_hosts.",
        )
    ),
)
@config_option
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def host_key(config_file: Path | None, names: tuple[str, ...]) -> None:
    """Print the gateway's line for known_hosts, under each NAME (`[NAME]:PORT` but for 22)."""
    config = load_gateway_config(_required(config_file), environ=os.environ)

    from tunnelmux.gateway.app import read_host_key

    key = read_host_key(config.gateway.state_dir)
    line = " ".join(key.export_public_key().decode("ascii").split()[:2])
    port = config.gateway.address.port
    hosts = ",".join(name if port == 22 or ":" in name else f"[{name}]:{port}" for name in names)
    click.echo(f"{hosts} {line}")


def _required(config_file: Path | None) -> Path:
    if config_file is None:
        raise click.UsageError("say which gateway: give --config FILE")
    return config_file


def _load(
    context: click.Context, config_file: Path | None, warn: Callable[[str], None]
) -> GatewayConfig:
    return load_gateway_config(config_file, environ=os.environ, flags=flags_of(context), warn=warn)


def _run(context: click.Context, config_file: Path) -> int:
    config = load_for_running(partial(_load, context, config_file))

    # asyncssh takes half a second to import, which --help and check do not need.
    from tunnelmux.cli.signals import run_until_signalled
    from tunnelmux.gateway.app import serve_gateway
    from tunnelmux.gateway.guest import run_as_guest

    return run_as_guest(
        lambda loop: run_until_signalled(
            partial(serve_gateway, config, loop), grace=config.drain.grace
        )
    )


def main() -> None:
    """Entry point of the tunnelmux-gateway command."""
    run_command(gateway, _PROGRAM)
