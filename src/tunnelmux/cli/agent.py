"""tunnelmux-agent: the process on a device."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunnelmux.light_imports import light_imports

with light_imports():
    import click

    from tunnelmux import __version__
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
    from tunnelmux.config import AgentConfig, InvalidSetting, load_agent_config
    from tunnelmux.config.changes import changes_between
    from tunnelmux.config.join import find_join
    from tunnelmux.observability import configure_logs
    from tunnelmux.observability.recent import keep_recent

if TYPE_CHECKING:
    from tunnelmux.agent import RunningAgent

__all__ = ["main"]

_PROGRAM = "tunnelmux-agent"

_OTHERS = {"assist": "tunnelmux.cli.assist", "pair": "tunnelmux.cli.pair"}
# Commands, and the modules that define them under the same name.

F = TypeVar("F", bound=Callable[..., Any])

_LONGEST_INPUT = 16_384
# Characters of standard input that are looked at for a line of some 200.

_EXAMPLES = """\b
Examples:
  tunnelmux-agent --join tunnelmux-join:… --name dev1 --service web=8000
      With the line that a proxy's quickstart printed. It works for one
      device; the token it brings is kept, so the same command works again.
  tunnelmux-proxy invite | ssh device tunnelmux-agent --join - --name dev2
      The same without the line in any list of processes.
  tunnelmux-agent --url ws://proxy.example.com:3800/tunnel/connect \\
      --token-file token --name dev1 --service ssh=tcp://127.0.0.1:22
      Without a file.
  tunnelmux-agent check --config agent.toml
      Check the file, and print the settings that result.
  kill -HUP PID
      Read the file again: services and lists of commands change, and the
      session goes on.
\b
Exit status: 0 stopped as asked, 1 failed or cut short, 2 wrong option or
setting, 3 the proxy refused this agent for good."""


def _parse_services(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> list[dict[str, object]] | None:
    services: list[dict[str, object]] = []
    for value in values:
        name, equals, target = value.partition("=")
        if not equals or not name or not target:
            raise click.BadParameter(
                f'"{value}" is not NAME=TARGET: write it like web=8000 or ssh=tcp://127.0.0.1:22'
            )
        services.append({"name": name, "target": target})
    return services or None


def _read_join(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value != "-":
        return value
    try:
        return find_join("--join", sys.stdin.read(_LONGEST_INPUT))
    except InvalidSetting as error:
        raise click.BadParameter(f"standard input {error.problem}") from None


_PROXY_OPTIONS = (
    setting(
        "--ca-file",
        "proxy.ca_file",
        metavar="FILE",
        help="PEM file of the authority that signed the proxy's certificate.",
    ),
    setting(
        "--pin",
        "proxy.pin",
        metavar="sha256:HEX",
        help="Accept the certificate with this fingerprint and no other.",
    ),
    setting(
        "--token-file",
        "proxy.token_file",
        metavar="FILE",
        help="A file that holds this device's token.",
    ),
    setting(
        "--http-proxy",
        "proxy.http_proxy",
        metavar="URL",
        help="The HTTP proxy that leads out of this network.  [default: HTTPS_PROXY and its like]",
    ),
    setting("--url", "proxy.url", metavar="URL", help="The proxy's tunnel endpoint."),
    setting(
        "--join",
        "proxy.join",
        metavar="LINE",
        callback=_read_join,
        help="The line that a proxy's quickstart or invite printed; with -, from standard "
        "input, so that it is in no list of processes.",
    ),
    setting(
        "--join-file",
        "proxy.join_file",
        metavar="FILE",
        help="A file that has the line.",
    ),
)


def _agent_settings(function: F) -> F:
    for decorate in (
        common_settings,
        setting(
            "--state-dir",
            "device.state_dir",
            metavar="DIR",
            help="Where the token from --join is kept.  [default: ~/.local/state/tunnelmux-agent]",
        ),
        setting(
            "--service",
            "services",
            multiple=True,
            metavar="NAME=TARGET",
            callback=_parse_services,
            help="A local service: the PORT of a web server here, http://HOST:PORT, https://, "
            "tcp:// or unix:/PATH; repeatable.",
        ),
        setting("--name", "device.name", metavar="NAME", help="This device's name."),
        *_PROXY_OPTIONS,
        config_option,
    ):
        function = decorate(function)
    return function


class _Commands(click.Group):
    """Imports the commands that do not run the agent only when one is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_OTHERS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OTHERS:
            command: click.Command = getattr(importlib.import_module(_OTHERS[cmd_name]), cmd_name)
            return command
        return super().get_command(ctx, cmd_name)


@click.group(_PROGRAM, cls=_Commands, invoke_without_command=True, epilog=_EXAMPLES)
@_agent_settings
@click.version_option(__version__, prog_name=_PROGRAM)
@click.pass_context
def agent(context: click.Context, /, config_file: Path | None, **_settings: object) -> int:
    """Connect this device to a proxy and offer its declared services there."""
    if context.invoked_subcommand is not None:
        refuse_options_before_command(context)
        return 0
    config = load_for_running(partial(_load, context, config_file))
    return _run(context, config_file, config)


@agent.command(
    epilog=shown_examples(
        ("tunnelmux-agent check --config agent.toml", "Is the file sound, and what results of it?"),
        (
            "tunnelmux-agent check --config agent.toml --service web=8000",
            "The same with another list of services.",
        ),
    )
)
@_agent_settings
@all_option
@click.pass_context
def check(
    context: click.Context, /, config_file: Path | None, show_all: bool, **_settings: object
) -> None:
    """Validate the configuration and print the result, secrets hidden."""
    print_checked(_PROGRAM, partial(_load, context, config_file), show_all=show_all)


def _load(
    context: click.Context, config_file: Path | None, warn: Callable[[str], None]
) -> AgentConfig:
    return load_agent_config(config_file, environ=os.environ, flags=flags_of(context), warn=warn)


def _run(context: click.Context, config_file: Path | None, config: AgentConfig) -> int:
    # Trio and the agent take a fifth of a second to import, which --help and check do not need.
    with light_imports():
        import trio

        from tunnelmux.agent import run_agent
        from tunnelmux.cli.signals import run_until_signalled

    async def reload(running: RunningAgent) -> dict[str, object]:
        new = _load(context, config_file, log_warning)
        configure_logs(new.log.level, new.log.format)
        keep_recent(new.log.limits.keep_lines)
        changed = changes_between(running.config, new)
        await running.reload(new)
        return {"changed": changed}

    keep_recent(config.log.limits.keep_lines)
    start = partial(run_agent, config)
    return trio.run(partial(run_until_signalled, start, grace=config.drain.grace, reload=reload))


def main() -> None:
    """The console script."""
    run_command(agent, _PROGRAM)
