"""tunnelmux-api: where people and programs sign in, pair devices, and steer the proxies."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunnelmux import __version__
from tunnelmux.cli.checked import check_certificates, check_registry_url
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
from tunnelmux.config.api import ApiConfig
from tunnelmux.config.load import load_api_config
from tunnelmux.config.rules import parse_address
from tunnelmux.config.state_dir import default_state_dir
from tunnelmux.observability import configure_logs

if TYPE_CHECKING:
    from tunnelmux.registry import Registry

__all__ = ["main"]

_PROGRAM = "tunnelmux-api"

_LIBRARIES = ("fastapi", "anycorn", "authlib", "httpx2", "joserfc", "sqlalchemy", "alembic")

F = TypeVar("F", bound=Callable[..., Any])

_EXAMPLES = """\b
Examples:
  tunnelmux-api --quickstart
      No file, no provider: look around on this machine.
  (umask 077; tunnelmux-api keys new > session-keys)
      Make the key behind browsers' cookies. To rotate, put another line on top.
  tunnelmux-api check --config api.toml
      Check the file, and print the settings that result.
  tunnelmux-api admin grant --config api.toml --issuer https://id.example.com \\
      --email ada@example.com
      Name the first owner, who then invites the others.
  tunnelmux-api --config api.toml
      Run.
\b
Exit status: 0 stopped as asked, 1 failed or cut short, 2 wrong option,
setting or address."""

_NEW_KEY_EXAMPLES = """\b
Example:
  (umask 077; tunnelmux-api keys new > session-keys)
      The first key. To rotate, put a new line on top of the file."""

_GRANT_EXAMPLES = """\b
Examples:
  tunnelmux-api admin grant --config api.toml --issuer https://id.example.com \\
      --email ada@example.com
      The first owner, who need not have signed in yet.
  tunnelmux-api admin grant --config api.toml --issuer https://id.example.com \\
      --subject 8d1f… --role admin
      Another person, by the `sub` that the provider gives them."""


_UPGRADE_EXAMPLES = shown_examples(
    (
        "tunnelmux-api db upgrade --config api.toml",
        "Before the new version starts, with [registry] migrate = false.",
    )
)

_NEW_TENANT_EXAMPLES = shown_examples(
    (
        'tunnelmux-api admin add-tenant --config api.toml --display-name "Acme Ltd" acme',
        "Its device dev1 is reached as dev1--acme.DOMAIN.",
    )
)

_ADMIN_EXAMPLES = """\b
Examples:
  tunnelmux-api admin grant --config api.toml --issuer https://id.example.com \\
      --email ada@example.com
      The first owner, who need not have signed in yet.
  tunnelmux-api admin add-tenant --config api.toml acme
      Another tenant, with devices and people of its own."""

_VERIFY_EXAMPLES = shown_examples(
    (
        "tunnelmux-api audit verify --config api.toml",
        "A line for each tenant, whole or broken.",
    )
)


def _api_settings(function: F) -> F:
    for decorate in (
        common_settings,
        setting(
            "--public-url",
            "api.public_url",
            metavar="URL",
            help="The URL under which people reach it, as seen from outside.",
        ),
        setting("--listen", "api.listen", metavar="HOST:PORT", help="Where to listen."),
        config_option,
    ):
        function = decorate(function)
    return function


@click.group(_PROGRAM, invoke_without_command=True, epilog=_EXAMPLES)
@_api_settings
@click.option(
    "--quickstart",
    is_flag=True,
    help="Look around without a file: a development provider lets anyone in, on loopback only.",
)
@click.option(
    "--state-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where quickstart keeps its keys and its database.  "
    "[default: ~/.local/state/tunnelmux-api]",
)
@click.version_option(__version__, prog_name=_PROGRAM)
@click.pass_context
def api(
    context: click.Context,
    /,
    config_file: Path | None,
    quickstart: bool,
    state_dir: Path | None,
    **_settings: object,
) -> int:
    """Sign people in, pair devices, and steer the proxies."""
    if context.invoked_subcommand is not None:
        refuse_options_before_command(context)
        return 0
    require_libraries(_LIBRARIES, 'pip install ".[api]", or ".[quickstart]" to look around')
    if quickstart:
        return _run_quickstart(context, config_file, state_dir)
    if config_file is None:
        raise click.UsageError(
            f"no configuration: give --config FILE, or try {_PROGRAM} --quickstart"
        )
    return _run(context, config_file)


@api.command(
    epilog=shown_examples(
        ("tunnelmux-api check --config api.toml", "Is the file sound, and what results of it?")
    )
)
@_api_settings
@all_option
@click.pass_context
def check(
    context: click.Context, /, config_file: Path | None, show_all: bool, **_settings: object
) -> None:
    """Validate the configuration and print the result, secrets hidden."""

    def load(warn: Callable[[str], None]) -> ApiConfig:
        config = _load(context, config_file, warn)
        check_registry_url(config.registry)
        pair = (config.api.tls_certificate, config.api.tls_key)
        check_certificates({"api.tls_certificate": pair})
        return config

    print_checked(_PROGRAM, load, show_all=show_all)


@api.group(epilog=_NEW_KEY_EXAMPLES)
def keys() -> None:
    """The keys behind browsers' cookies (`browser_sessions.key_file`)."""


@keys.command("new", epilog=_NEW_KEY_EXAMPLES)
def new_key() -> None:
    """Print a line for the top of the key file."""
    from tunnelmux.api.browser_sessions.keys import new_key_line

    click.echo(new_key_line(), nl=False)


@api.group(epilog=_UPGRADE_EXAMPLES)
def db() -> None:
    """The registry's database."""


@db.command(epilog=_UPGRADE_EXAMPLES)
@config_option
def upgrade(config_file: Path | None) -> None:
    """Make the tables, or bring those of an earlier version up to date."""
    with_registry(config_file, _say_ready, migrate=True)


async def _say_ready(registry: Registry) -> None:
    await registry.check()
    click.echo("The registry is up to date.")


@api.group(epilog=_ADMIN_EXAMPLES)
def admin() -> None:
    """Manage tenants and their owners; for those who can read the configuration."""


@admin.command(epilog=_GRANT_EXAMPLES)
@config_option
@click.option("--issuer", required=True, metavar="URL", help="The person's OIDC provider.")
@click.option("--subject", metavar="ID", help="The person's `sub` at the provider.")
@click.option(
    "--email", metavar="EMAIL", help="Or the person's e-mail address, if the provider verified it."
)
@click.option(
    "--role",
    type=click.Choice(["viewer", "operator", "admin", "owner"]),
    default="owner",
    show_default=True,
    help="The role to give.",
)
@click.option("--tenant", default="default", show_default=True, help="In which tenant.")
@click.option("--force", is_flag=True, help="Even if the tenant has an owner already.")
def grant(
    config_file: Path | None,
    issuer: str,
    subject: str | None,
    email: str | None,
    role: str,
    tenant: str,
    force: bool,
) -> None:
    """Give a person a role: the way in for the first owner."""
    if (subject is None) == (email is None):
        raise click.UsageError("say who: give --subject or --email")

    async def give(registry: Registry) -> None:
        from tunnelmux.registry import User

        installation = _installation(registry)
        home = await installation.tenants.find_named(tenant)
        result = await installation.users.grant(
            home.id,
            role,
            issuer=issuer,
            subject=subject,
            email=email,
            force=force,
        )
        if isinstance(result, User):
            click.echo(f"{subject} is {role} of {tenant}.")
        else:
            click.echo(f"{email} becomes {role} of {tenant} with the next sign-in at {issuer}.")

    with_registry(config_file, give)


@admin.command("add-tenant", epilog=_NEW_TENANT_EXAMPLES)
@config_option
@click.argument("name")
@click.option("--display-name", default="", help="The name that people see.")
def add_tenant(config_file: Path | None, name: str, display_name: str) -> None:
    """Make a tenant NAME: its devices are reached as DEVICE--NAME.DOMAIN."""

    async def add(registry: Registry) -> None:
        tenant = await _installation(registry).tenants.add(name, display_name=display_name)
        click.echo(f"{tenant.name} {tenant.id}")

    with_registry(config_file, add)


@api.group(epilog=_VERIFY_EXAMPLES)
def audit() -> None:
    """The record of what was changed by whom."""


@audit.command(epilog=_VERIFY_EXAMPLES)
@config_option
@click.pass_context
def verify(context: click.Context, config_file: Path | None) -> None:
    """Walk along every tenant's chain of entries; exit status 1 when one is broken."""
    broken: list[str] = []

    async def walk(registry: Registry) -> None:
        installation = _installation(registry)
        chains = [("the installation", installation.audit)]
        after: str | None = None
        while True:
            page = await installation.tenants.page(after=after)
            for item in page.items:
                tenant = registry.tenant(item.id, _actor())
                chains.append((f"tenant {item.name}", tenant.audit))
            if (after := page.next) is None:
                break
        for name, trail in chains:
            found = await trail.verify()
            if found.broken_at is None:
                older = f" since entry {found.cut}, the last that was too old" if found.cut else ""
                click.echo(f"{name}: {found.entries} entries, whole{older}")
            else:
                broken.append(name)
                click.echo(f"{name}: broken at entry {found.broken_at}: {found.problem}")

    with_registry(config_file, walk)
    if broken:
        context.exit(1)


def with_registry(
    config_file: Path | None,
    work: Callable[[Registry], Coroutine[Any, Any, None]],
    *,
    migrate: bool | None = None,
) -> None:
    """Run *work* on the configured registry."""
    if config_file is None:
        raise click.UsageError("say which registry: give --config FILE")
    config = load_api_config(config_file, environ=os.environ)

    from tunnelmux.registry import open_registry

    async def run() -> None:
        chosen = config.registry.migrate if migrate is None else migrate
        async with open_registry(config.registry.require_url(), migrate=chosen) as registry:
            await work(registry)

    run_interruptible(run)


def _installation(registry: Registry) -> Any:
    return registry.installation(_actor())


def _actor() -> Any:
    from tunnelmux.registry import Actor

    return Actor.program(_PROGRAM)


def _load(
    context: click.Context, config_file: Path | None, warn: Callable[[str], None]
) -> ApiConfig:
    return load_api_config(config_file, environ=os.environ, flags=flags_of(context), warn=warn)


def _run(context: click.Context, config_file: Path) -> int:
    config = load_for_running(partial(_load, context, config_file))

    # FastAPI and SQLAlchemy take a second to import, which --help and check do not need.
    import trio

    from tunnelmux.api.app import serve_api
    from tunnelmux.cli.signals import run_until_signalled

    return trio.run(
        partial(run_until_signalled, partial(serve_api, config), grace=config.drain.grace)
    )


def _run_quickstart(
    context: click.Context, config_file: Path | None, state_dir: Path | None
) -> int:
    if config_file is not None:
        raise click.UsageError("--quickstart needs no file: leave out --config")
    given = {flag.key: flag.value for flag in flags_of(context)}
    listen = parse_address("--listen", str(given["api.listen"] or "127.0.0.1:3721"))
    configure_logs("info", "auto")

    import trio

    from tunnelmux.api.quickstart import run_quickstart
    from tunnelmux.cli.signals import run_until_signalled

    folder = state_dir or default_state_dir(_PROGRAM, os.environ)
    start = partial(run_quickstart, folder, listen, announce=click.echo)
    return trio.run(partial(run_until_signalled, start, grace=10.0))


def main() -> None:
    """The console script."""
    run_command(api, _PROGRAM)
