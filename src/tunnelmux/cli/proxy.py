"""tunnelmux-proxy: where agents and visitors meet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunnelmux import __version__
from tunnelmux.cli.checked import check_certificates, check_registry_url
from tunnelmux.cli.options import (
    all_option,
    common_settings,
    config_option,
    flags_of,
    load_for_running,
    log_warning,
    print_checked,
    refuse_options_before_command,
    setting,
    shown_examples,
)
from tunnelmux.cli.outcome import run_command
from tunnelmux.cli.starts import SuccessorStart, WorkerStart
from tunnelmux.config import Flag, ProxyConfig, load_proxy_config
from tunnelmux.config.changes import changes_between
from tunnelmux.config.state_dir import default_state_dir
from tunnelmux.errors import ConfigError
from tunnelmux.observability import configure_logs

if TYPE_CHECKING:
    from tunnelmux.proxy import ReloadReport, RunningProxy
    from tunnelmux.proxy.workers.upgrade import NextProgram

__all__ = ["main"]

_PROGRAM = "tunnelmux-proxy"

_INVITE_EXAMPLES = """\b
Examples:
  tunnelmux-proxy invite
      The line for the next device; it works once, within 15 minutes.
  tunnelmux-proxy invite --replace dev1
      For a new machine in place of dev1, whose token then ends."""

_UPGRADE_EXAMPLES = """\b
Examples:
  tunnelmux-proxy upgrade $(systemctl show --value -p MainPID tunnelmux-proxy)
      After a new version was installed, or for a setting that needs a restart."""

F = TypeVar("F", bound=Callable[..., Any])

_EXAMPLES = """\b
Examples:
  tunnelmux-proxy --quickstart
      No file, no keys: makes its own and prints the line to paste on a device.
  tunnelmux-proxy check --config proxy.toml
      Check the file, and print the settings that result.
  tunnelmux-proxy --config proxy.toml --http 0.0.0.0:8080
      Run; --http replaces what the file says about listen in [ingress.http].
  kill -HUP PID
      Read the file again: devices and ports change, no session is dropped.
\b
Exit status: 0 stopped as asked, 1 failed or cut short, 2 wrong option,
setting or address."""


def _proxy_settings(function: F) -> F:
    for decorate in (
        common_settings,
        setting(
            "--domain",
            "ingress.http.domain",
            metavar="DOMAIN",
            help="The domain under which each device is one label.",
        ),
        setting(
            "--let-in",
            "access.let_in",
            metavar="WAY",
            help="Who may visit where no rule says so: public, basic, login, ...",
        ),
        setting(
            "--http",
            "ingress.http.listen",
            metavar="HOST:PORT",
            help="Where visitors come in over HTTP.",
        ),
        setting("--listen", "tunnel.listen", metavar="HOST:PORT", help="Where agents connect."),
        config_option,
    ):
        function = decorate(function)
    return function


def _state_dir_option(function: F) -> F:
    return click.option(
        "--state-dir",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where it keeps who was online, and quickstart's keys, invitations and devices.  "
        "[default: ~/.local/state/tunnelmux-proxy]",
    )(function)


@click.group(_PROGRAM, invoke_without_command=True, epilog=_EXAMPLES)
@_proxy_settings
@click.option(
    "--quickstart",
    is_flag=True,
    help="Run without a file: make keys, and print the line that lets a device join.",
)
@_state_dir_option
@click.option(
    "--public-host",
    metavar="HOST",
    help="With --quickstart: the name or address by which devices reach this machine.",
)
@click.option(
    "--public",
    is_flag=True,
    help="With --quickstart: all who can reach port 8080 of this machine may visit.",
)
@click.version_option(__version__, prog_name=_PROGRAM)
@click.pass_context
def proxy(
    context: click.Context,
    /,
    config_file: Path | None,
    quickstart: bool,
    state_dir: Path | None,
    public_host: str | None,
    public: bool,
    **_settings: object,
) -> int:
    """Accept agents, and connect visitors with their devices."""
    if context.invoked_subcommand is not None:
        refuse_options_before_command(context)
        return 0
    if quickstart:
        folder = state_dir or default_state_dir(_PROGRAM, os.environ)
        return _run_quickstart(context, config_file, folder, public_host, public=public)
    if public:
        raise click.UsageError(
            "--public goes with --quickstart; in a file, [access] says who may visit"
        )
    if config_file is None:
        raise click.UsageError(
            f"no configuration: give --config FILE, or try {_PROGRAM} --quickstart"
        )
    return _run(context, config_file, state_dir)


@proxy.command(
    epilog=shown_examples(
        ("tunnelmux-proxy check --config proxy.toml", "Is the file sound, and what results of it?"),
        (
            "tunnelmux-proxy check --config proxy.toml --http 0.0.0.0:8080",
            "The same with another address for visitors.",
        ),
    )
)
@_proxy_settings
@all_option
@click.pass_context
def check(
    context: click.Context, /, config_file: Path | None, show_all: bool, **_settings: object
) -> None:
    """Validate the configuration and print the result, secrets hidden."""

    def load(warn: Callable[[str], None]) -> ProxyConfig:
        config = _load(context, config_file, warn)
        check_registry_url(config.registry)
        check_certificates(_certificates(config))
        return config

    print_checked(_PROGRAM, load, show_all=show_all)


def _certificates(config: ProxyConfig) -> dict[str, tuple[Path | None, Path | None]]:
    """Each certificate with its key, by the setting that names it."""
    listeners = {
        "tunnel": config.tunnel,
        "ingress.http": config.ingress.http,
        "internal": config.internal,
        "socketio": config.socketio,
    }
    pairs = {
        f"{table}.tls_certificate": (listener.tls_certificate, listener.tls_key)
        for table, listener in listeners.items()
        if listener is not None
    }
    more = config.ingress.http.certificates if config.ingress.http is not None else []
    for index, one in enumerate(more):
        pairs[f"ingress.http.certificates[{index}].certificate"] = (one.certificate, one.key)
    return pairs


def _load(
    context: click.Context, config_file: Path | None, warn: Callable[[str], None]
) -> ProxyConfig:
    config = load_proxy_config(config_file, environ=os.environ, flags=flags_of(context), warn=warn)
    has_agents = config.socketio is not None and config.socketio.agents
    if not config.devices and not has_agents and not config.registry.is_there:
        warn("there are no [[devices]], so no agent can connect: add one")
    return config


def _run(context: click.Context, config_file: Path, state_dir: Path | None) -> int:
    load = partial(_load, context, config_file)
    given = context.find_root().obj
    if isinstance(given, WorkerStart):
        from tunnelmux.cli.worker import run_worker

        return run_worker(given, load, state_dir or _state_dir_if_any())
    link = given.link if isinstance(given, SuccessorStart) else None
    config = load_for_running(load)
    if config.proxy.count > 1:
        from tunnelmux.cli.workers import run_parent

        return run_parent(config, load, link)

    # Trio and the proxy take a fifth of a second to import, which --help and check do not need.
    import trio

    from tunnelmux.cli.signals import run_until_signalled
    from tunnelmux.cli.upgrade import follow, upgrader
    from tunnelmux.proxy import run_proxy

    async def reload(running: RunningProxy) -> dict[str, object]:
        new = _load(context, config_file, log_warning)
        configure_logs(new.log.level, new.log.format)
        changed = changes_between(running.config, new)
        return told_of_reload(changed, await running.reload(new))

    upgrade = upgrader()

    async def make_way(running: RunningProxy, nursery: trio.Nursery) -> NextProgram:
        return await upgrade(running.succession, nursery)

    proxy = partial(run_proxy, config, state_dir=state_dir or _state_dir_if_any())
    start, grace = partial(follow, proxy, link), config.drain.grace
    return trio.run(
        partial(run_until_signalled, start, grace=grace, reload=reload, upgrade=make_way)
    )


def told_of_reload(changed: str, report: ReloadReport) -> dict[str, object]:
    """Fields of the log line of a reload; failed listeners have lines of their own."""
    ended = {"ended": ", ".join(report.kicked)} if report.kicked else {}
    return {"changed": changed, **ended}


def _state_dir_if_any() -> Path | None:
    try:
        return default_state_dir(_PROGRAM, os.environ)
    except ConfigError:
        return None  # a user without a home directory: that state is optional


def _run_quickstart(
    context: click.Context,
    config_file: Path | None,
    state_dir: Path,
    public_host: str | None,
    *,
    public: bool,
) -> int:
    flags = flags_of(context)
    if public:
        flags.append(Flag("--public", "access.let_in", ["public"]))
    load = partial(load_proxy_config, config_file, environ=os.environ, flags=flags)
    config = load()
    if config.proxy.count > 1:
        from tunnelmux.cli.quickstart_workers import run_quickstart_workers
        from tunnelmux.proxy.quickstart import Quickstart

        made = Quickstart(state_dir, public_host, public=public)
        return run_quickstart_workers(made, lambda warn: load(warn=warn), context.find_root().obj)
    configure_logs(config.log.level, config.log.format)

    import trio

    from tunnelmux.cli.signals import run_until_signalled
    from tunnelmux.proxy.quickstart import reload_quickstart, run_quickstart

    async def reload(running: RunningProxy) -> dict[str, object]:
        nonlocal config
        new = load(warn=log_warning)
        configure_logs(new.log.level, new.log.format)
        report = await reload_quickstart(running, state_dir, public_host, config=new, public=public)
        changed, config = changes_between(config, new), new
        return told_of_reload(changed, report)

    start = partial(
        run_quickstart, state_dir, public_host, config=config, public=public, announce=click.echo
    )
    return trio.run(partial(run_until_signalled, start, grace=config.drain.grace, reload=reload))


@proxy.command(
    epilog=shown_examples(
        ("tunnelmux-proxy password anna", "Asks twice, and shows no letter."),
        (
            "tunnelmux-proxy password anna < password.txt",
            "For a script: the password is the first line of the file.",
        ),
    )
)
@click.argument("name")
def password(name: str) -> None:
    """Ask for a password, and print the line for users under [access].

    If standard input is not a terminal, its first line is the password.
    """
    from tunnelmux.access.passwords import MAX_PASSWORD, hash_password

    if not name or ":" in name or not name.isprintable():
        raise click.UsageError("a name must have printable characters only, and no colon")
    if sys.stdin.isatty():
        text = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        text = sys.stdin.readline().rstrip("\r\n")
    if not text or len(text.encode()) > MAX_PASSWORD:
        raise click.UsageError(f"a password has 1 to {MAX_PASSWORD} bytes")
    click.echo(f"{name}:{hash_password(text)}")


@proxy.command(epilog=_UPGRADE_EXAMPLES)
@click.argument("process", metavar="PID", type=click.IntRange(min=1))
def upgrade(process: int) -> None:
    """Have the proxy with this process id start its program anew, and lose no request.

    The new program gets the listening sockets, then all agents, then the visitors; the old one lets
    its own finish and ends. Prints the new process id. Where the new program cannot serve, the old
    one goes on.
    """
    from tunnelmux.cli.upgrade_signal import ask_for_upgrade

    click.echo(ask_for_upgrade(process))


@proxy.command(epilog=_INVITE_EXAMPLES)
@_state_dir_option
@click.option(
    "--replace",
    metavar="NAME",
    help="Let the new device take the place of NAME, whose token then ends.",
)
def invite(state_dir: Path | None, replace: str | None) -> None:
    """Print the line that lets one more device join a quickstart proxy."""
    from tunnelmux.proxy.quickstart import invite as make_invitation

    folder = state_dir or default_state_dir(_PROGRAM, os.environ)
    click.echo(make_invitation(folder, replace=replace).command)


def main() -> None:
    """The console script."""
    run_command(proxy, _PROGRAM)
