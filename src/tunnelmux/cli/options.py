"""Options that both daemons have, and how an option becomes a setting."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunnelmux.config import AgentConfig, Flag
from tunnelmux.config.load import CONFIG_VARIABLE
from tunnelmux.config.render import render
from tunnelmux.errors import ConfigError
from tunnelmux.observability import configure_logs, get_logger

if TYPE_CHECKING:  # each program imports its own
    from tunnelmux.config.api import ApiConfig
    from tunnelmux.config.gateway import GatewayConfig
    from tunnelmux.config.proxy import ProxyConfig

__all__ = [
    "all_option",
    "common_settings",
    "config_option",
    "flags_of",
    "load_for_running",
    "log_warning",
    "print_checked",
    "print_warning",
    "refuse_options_before_command",
    "require_libraries",
    "setting",
    "shown_examples",
]

_log = get_logger("cli")

F = TypeVar("F", bound=Callable[..., Any])

_Config = TypeVar("_Config", AgentConfig, "ApiConfig", "GatewayConfig", "ProxyConfig")


class SettingOption(click.Option):
    """An option that stands for one key of the configuration."""

    def __init__(self, *names: Any, key: str, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.key = key


def setting(name: str, key: str, **attributes: Any) -> Callable[[F], F]:
    """The option `name` for the setting `key`; whatever click.option takes may follow."""
    return click.option(name, cls=SettingOption, key=key, **attributes)


def flags_of(context: click.Context) -> list[Flag]:
    """Every setting option of the command, with what the user gave for it or None."""
    return [
        Flag(option.opts[0], option.key, context.params[option.name or ""])
        for option in context.command.params
        if isinstance(option, SettingOption)
    ]


def config_option(function: F) -> F:
    """`--config FILE`, with its environment variable."""
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        # Reading tells more of a file that cannot be read than Click does.
        type=click.Path(path_type=Path, readable=False),
        envvar=CONFIG_VARIABLE,
        help=f"The TOML file to read (also {CONFIG_VARIABLE}).",
    )(function)


def common_settings(function: F) -> F:
    """The settings that both daemons have as options."""
    for decorate in (
        setting(
            "--log-format",
            "log.format",
            metavar="FORMAT",
            help="auto, text or json; auto is text on a terminal.",
        ),
        setting(
            "--log-level",
            "log.level",
            metavar="LEVEL",
            help="debug, info, warning or error.",
        ),
        setting(
            "--grace",
            "drain.grace",
            metavar="SECONDS",
            help="How long streams may take to finish after SIGTERM or Ctrl-C.",
        ),
    ):
        function = decorate(function)
    return function


def refuse_options_before_command(context: click.Context) -> None:
    """Refuse `program --option command`: the option would not be read."""
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source is click.core.ParameterSource.COMMANDLINE:
            command = context.invoked_subcommand
            raise click.UsageError(
                f"{option.opts[0]} stands before {command}: write "
                f"{context.info_name} {command} {option.opts[0]} …"
            )


def log_warning(sentence: str) -> None:
    """Write a warning to the log."""
    _log.warning("odd configuration", problem=sentence)


def shown_examples(*pairs: tuple[str, str]) -> str:
    """The end of a command's help: what to type, and what it does. Click keeps the lines of what
    follows a backspace.
    """
    lines = ["\b", "Example:" if len(pairs) == 1 else "Examples:"]
    for command, meaning in pairs:
        lines += [f"  {command}", *(f"      {line}" for line in meaning.splitlines())]
    return "\n".join(lines)


def all_option(function: F) -> F:
    """`--all` of the command `check`."""
    return click.option(
        "--all",
        "show_all",
        is_flag=True,
        help="Show all of [limits], not only what differs from the defaults.",
    )(function)


def load_for_running(load: Callable[[Callable[[str], None]], _Config]) -> _Config:
    """The configuration of a daemon that starts; from here on, its log is as the file says.

    `load` is given what tells a warning, which then goes to that log.
    """
    warnings: list[str] = []
    config = load(warnings.append)
    configure_logs(config.log.level, config.log.format)
    for sentence in warnings:
        log_warning(sentence)
    return config


def require_libraries(names: Iterable[str], how: str) -> None:
    """Raise ConfigError, which says `how` to install them, when libraries of an extra are missing:
    devices and plain proxies do without."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} is not installed: in a clone of tunnelmux, run {how}"
        )


def print_checked(
    program: str, load: Callable[[Callable[[str], None]], object], *, show_all: bool
) -> None:
    """What `check` prints: the configuration as TOML, whose last line is a comment that says OK.

    `load` is given what tells a warning; each is a line on standard error, where there is no log.
    """
    warnings: list[str] = []
    config = load(warnings.append)
    for sentence in warnings:
        print_warning(program, sentence)
    click.echo(render(config, all_limits=show_all))
    click.echo("# OK" + (f", with warnings: {len(warnings)}" if warnings else ""))


def print_warning(program: str, sentence: str) -> None:
    """Write a warning to standard error, where there is no log yet."""
    click.echo(f"{program}: warning: {sentence}", err=True)
