"""Our programs' commands, and whether they know the words of a command line that a page shows."""

from __future__ import annotations

from collections.abc import Iterator

import click

from tunnelmux.cli.agent import agent
from tunnelmux.cli.api import api
from tunnelmux.cli.gateway import gateway
from tunnelmux.cli.main import tunnelmux
from tunnelmux.cli.proxy import proxy

__all__ = ["COMMANDS", "PROGRAMS", "unknown_in"]

PROGRAMS: dict[str, click.Group] = {
    str(program.name): program for program in (tunnelmux, proxy, agent, api, gateway)
}


def _below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for word in command.list_commands(context):
            inner = command.get_command(context, word)
            assert inner is not None
            if not inner.hidden:
                yield from _below(f"{name} {word}", inner)


COMMANDS = {
    name: command
    for program in PROGRAMS.values()
    for name, command in _below(str(program.name), program)
}
"""Each command by its full name: "tunnelmux-api db upgrade"."""


def unknown_in(name: str, words: list[str]) -> str | None:
    """What the program does not know of what it is given."""
    command: click.Command = PROGRAMS[name]
    context = click.Context(command, info_name=name)
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            found = command.get_command(context, word)
            if found is not None:
                command, context = found, click.Context(found, parent=context)
                continue
            if not command.invoke_without_command:
                return word
        mixed = command.context_settings.get("allow_interspersed_args", True)
        if not (mixed or word.startswith("-")):
            return None  # what follows is another program's
        if word.startswith("-") and word != "-":
            known = {
                option for each in command.params for option in each.opts + each.secondary_opts
            }
            if word.partition("=")[0] not in known:
                return word
    return None
