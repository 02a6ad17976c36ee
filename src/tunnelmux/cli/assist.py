"""`tunnelmux-agent assist`: the device's own switch for remote assistance."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from tunnelmux.cli.options import (
    config_option,
    flags_of,
    print_warning,
    setting,
    shown_examples,
)
from tunnelmux.config import AgentConfig, load_agent_config

__all__ = ["assist"]

_PROGRAM = "tunnelmux-agent"

_PATIENCE = 60.0
# Seconds for an answer of the agent, which makes a key in some cases.

_EXAMPLES = """\b
Examples:
  tunnelmux-agent assist on --config agent.toml --for 2h --services ssh,web
      For two hours, let in people of the tenant who have a lease for these.
  tunnelmux-agent assist status --config agent.toml --watch
      Show requests as they come, and ask about each in this terminal.
  tunnelmux-agent assist on --config agent.toml --code --services ssh
      Show a code with which a person without an account can log in.
  tunnelmux-agent assist off --config agent.toml
      End all assistance at once, and refuse every request until the next on.
\b
These commands need no network. If the agent is not running, on and off
take effect when it starts.
\b
Exit status: 0 done, 1 it could not be done, 2 wrong option or setting."""

_UNITS = {"s": 1, "m": 60, "h": 3600}


def _seconds(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    parts = re.findall(r"([0-9]+)([smh])", value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise click.BadParameter(f'"{value}" is no time: write it like 90m or 2h')
    return float(sum(int(number) * _UNITS[unit] for number, unit in parts))


def _names(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    return [name for name in re.split(r"[,\s]+", value or "") if name]


def _where(function: Any) -> Any:
    for decorate in (
        setting(
            "--state-dir",
            "device.state_dir",
            metavar="DIR",
            help="Where the agent keeps its state.  [default: as the agent's]",
        ),
        config_option,
    ):
        function = decorate(function)
    return function


@click.group(epilog=_EXAMPLES)
def assist() -> None:
    """Switch remote assistance on and off, and answer requests."""


@assist.command(
    "on",
    epilog=shown_examples(
        (
            "tunnelmux-agent assist on --config agent.toml --for 2h --services ssh",
            "Two hours, for this service.",
        ),
        (
            "tunnelmux-agent assist on --config agent.toml --code --for 1h --services ssh",
            "Shows a code, and what the other side types.",
        ),
    ),
)
@_where
@click.option(
    "--for",
    "seconds",
    metavar="TIME",
    callback=_seconds,
    help="How long, like 90m or 2h.  [default: assist.longest]",
)
@click.option(
    "--services",
    metavar="NAMES",
    callback=_names,
    help="Only with these, like ssh,web.  [default: assist.services]",
)
@click.option(
    "--code",
    "by_code",
    is_flag=True,
    help="Show a code, and let in only the person who has it.",
)
@click.pass_context
def turn_on(
    context: click.Context,
    /,
    config_file: Path | None,
    seconds: float | None,
    services: list[str],
    by_code: bool,
    **_settings: object,
) -> int:
    """Accept requests for a time without asking."""
    order: dict[str, Any] = {"do": "code" if by_code else "on", "services": services}
    if seconds is not None:
        order["seconds"] = seconds
    answer = _order(_load(context, config_file), order)
    if by_code and not answer["problem"]:
        _tell_code(answer)
        return 0
    return _told(answer)


def _tell_code(answer: dict[str, Any]) -> None:
    lease = next(one for one in answer["status"]["leases"] if one["id"] == answer["lease"])
    click.echo(f"Serial:  {answer['serial']}")
    click.echo(f"Code:    {answer['code']}")
    click.echo(f"Lease:   {answer['lease']}")
    click.echo(f"Good for {_time(lease['seconds_left'])}. It is shown this once. Support types:")
    click.echo(
        f"\n    tunnelmux assist ssh {shlex.quote(answer['serial'])} --code {answer['code']} "
        f"--lease {answer['lease']}\n"
    )
    click.echo(f"End it with: {_PROGRAM} assist stop {answer['lease']}")


@assist.command(
    "off", epilog=shown_examples(("tunnelmux-agent assist off --config agent.toml", "At once."))
)
@_where
@click.pass_context
def turn_off(context: click.Context, /, config_file: Path | None, **_settings: object) -> int:
    """End all assistance at once, and refuse it until the next on."""
    return _told(_order(_load(context, config_file), {"do": "off"}))


@assist.command(
    epilog=shown_examples(
        ("tunnelmux-agent assist status --config agent.toml", "Once."),
        (
            "tunnelmux-agent assist status --config agent.toml --watch",
            "Until Ctrl-C: asks about each request as it comes.",
        ),
    )
)
@_where
@click.option("--watch", is_flag=True, help="Keep showing it, and ask about each request here.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line.")
@click.pass_context
def status(
    context: click.Context,
    /,
    config_file: Path | None,
    watch: bool,
    as_json: bool,
    **_settings: Any,
) -> int:
    """Show the switch, and who is connected."""
    config = _load(context, config_file)
    if not watch:
        return _told(_order(config, {"do": "status"}), as_json=as_json)
    asked: set[str] = set()
    for answer in _watch(config):
        _told(answer, as_json=as_json)
        for lease in answer["status"]["leases"]:
            if lease["state"] == "asked" and lease["id"] not in asked and not as_json:
                asked.add(lease["id"])
                _ask(config, lease)
    click.echo(f"{_PROGRAM}: the agent ended", err=True)
    return 1


def _ask(config: AgentConfig, lease: dict[str, Any]) -> None:
    click.echo(f"\a{_request(lease)}")
    yes = click.confirm("Let them in?", default=False)
    answer = _order(config, {"do": "yes" if yes else "no", "lease": lease["id"]})
    if answer["problem"]:
        click.echo(f"{_PROGRAM}: {answer['problem']}", err=True)


def _answering(word: str, text: str) -> None:
    example = f"tunnelmux-agent assist {word} --config agent.toml LEASE"
    where = "The LEASE as assist status shows it."

    @assist.command(word, help=text, epilog=shown_examples((example, where)))
    @_where
    @click.argument("lease")
    @click.pass_context
    def answer(
        context: click.Context, /, config_file: Path | None, lease: str, **_settings: object
    ) -> int:
        return _told(_order(_load(context, config_file), {"do": word, "lease": lease}))


_answering("yes", "Agree to the request LEASE.")
_answering("no", "Refuse the request LEASE.")
_answering("stop", "End the running LEASE, and no other.")


# -- the agent ------------------------------------------------------------------------------------


def _load(context: click.Context, config_file: Path | None) -> AgentConfig:
    warn = partial(print_warning, _PROGRAM)
    return load_agent_config(config_file, environ=os.environ, flags=flags_of(context), warn=warn)


def _order(config: AgentConfig, order: dict[str, Any]) -> dict[str, Any]:
    """The agent's answer. If it is not running, the order is stored for its next start."""
    connection = _connected(config)
    if connection is None:
        return _order_without_agent(config, order)
    with connection:
        connection.settimeout(_PATIENCE)
        connection.sendall(json.dumps(order).encode() + b"\n")
        for line in _lines(connection):
            return line
    return {"problem": "the agent gave no answer", "status": None}


def _watch(config: AgentConfig) -> Iterator[dict[str, Any]]:
    connection = _connected(config)
    if connection is None:
        raise click.ClickException("the agent is not running, so there is nothing to watch")
    with connection:
        connection.sendall(b'{"do": "watch"}\n')
        yield from _lines(connection)


def _connected(config: AgentConfig) -> socket.socket | None:
    from tunnelmux.agent.assist.service import assist_file
    from tunnelmux.agent.assist.socket_path import socket_path

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = assist_file(config, "sock")
    try:
        with socket_path(path) as name:
            connection.connect(name)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise click.ClickException(
            f"the agent cannot be reached by {path} ({error.strerror}): run this as its user"
        ) from None
    return connection


def _lines(connection: socket.socket) -> Iterator[dict[str, Any]]:
    with connection.makefile("rb") as lines:
        try:
            for line in lines:
                yield json.loads(line)
        except TimeoutError:
            raise click.ClickException("the agent does not answer") from None


def _order_without_agent(config: AgentConfig, order: dict[str, Any]) -> dict[str, Any]:
    from tunnelmux.agent.assist.orders import Order, obey
    from tunnelmux.agent.assist.service import AssistService
    from tunnelmux.observability import configure_logs

    configure_logs("error", "text")
    if order["do"] not in ("on", "off", "status"):
        return {"problem": "the agent is not running: there are no requests", "status": None}
    click.echo(f"{_PROGRAM}: the agent is not running; this takes effect when it starts", err=True)
    # With the device's account, so that the keys of leases that end now are removed from it now.
    return obey(AssistService(config).desk, Order(**order), by="at its terminal")


# -- words ----------------------------------------------------------------------------------------


def _told(answer: dict[str, Any], *, as_json: bool = False) -> int:
    """Print what the agent answered; the exit status."""
    if answer["problem"]:
        click.echo(f"{_PROGRAM}: {answer['problem']}", err=True)
        return 1
    state = answer["status"]
    if as_json:
        click.echo(json.dumps(state))
        return 0
    words = {"off": "off", "ask": "asks about each request", "allow": "on"}
    left = state["seconds_left"]
    until = f", for {_time(left)}" if left is not None and state["mode"] == "allow" else ""
    click.echo(f"Assistance: {words[state['mode']]}{until}")
    click.echo(f"Services:   {', '.join(state['services']) or 'none'}")
    if state["serial"]:
        click.echo(f"Serial:     {state['serial']}")
    for lease in state["leases"]:
        click.echo(_request(lease))
    return 0


def _request(lease: dict[str, Any]) -> str:
    ways = " and ".join(word for word in ("recorded", "sealed") if lease[word])
    verb = "asks for" if lease["state"] == "asked" else "has"
    text = (
        f"  {lease['id']}\n    {lease['who']} {verb} {', '.join(lease['services'])}, "
        f"{ways}, for {_time(lease['seconds_left'])}: {lease['reason']}"
    )
    if lease["state"] == "asked":
        text += f"\n    refused in {_time(lease['answer_within'])} without an answer"
    for connection in lease["connections"]:
        text += f"\n    connected: {connection['service']}, {_time(connection['seconds'])}"
    return text


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
