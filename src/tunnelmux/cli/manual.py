"""tunnelmux man: manual pages, made from the texts of `--help`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from tunnelmux import __version__
from tunnelmux.cli.fleet_options import examples

__all__ = ["manual", "manual_pages"]


@click.command(
    "man",
    epilog=examples(
        ("tunnelmux man ~/.local/share/man", "Then: man tunnelmux-ssh"),
        more="The pages go into the folder man1 of DIR. man(1) finds those of\n"
        "~/.local/share/man by itself where ~/.local/bin is on the PATH.",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.pass_context
def manual(context: click.Context, /, folder: Path) -> None:
    """Write manual pages into DIR."""
    target = folder / "man1"
    target.mkdir(parents=True, exist_ok=True)
    root = context.find_root()
    count = 0
    for name, page in manual_pages(root.command, root.info_name or "tunnelmux"):
        (target / f"{name}.1").write_text(page, encoding="utf-8")
        count += 1
    click.echo(f"{count} pages are in {target}.")


def manual_pages(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """Each command's page name (`tunnelmux-ssh`) and its page, in man(7)."""
    yield from _pages(command, click.Context(command, info_name=name), name)


def _pages(command: click.Command, context: click.Context, name: str) -> Iterator[tuple[str, str]]:
    yield name, _page(command, context, name)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                below = click.Context(found, info_name=inner, parent=context)
                yield from _pages(found, below, f"{name}-{inner}")


def _page(command: click.Command, context: click.Context, name: str) -> str:
    brief = command.get_short_help_str(200).rstrip(".")
    lines = [
        f'.TH "{name.upper()}" "1" "" "tunnelmux {__version__}" "tunnelmux"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(brief)}",
        ".SH SYNOPSIS",
        f".B {_text(context.command_path)}",
        _text(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
    ]
    options = [
        record for param in command.get_params(context) if (record := _record(param, context))
    ]
    if options:
        lines.append(".SH OPTIONS")
        for names, help_text in options:
            lines += [".TP", f".B {_text(names)}", _text(help_text)]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                lines += [".TP", f".BR {_text(name)}-{_text(inner)} (1)"]
                lines.append(_text(found.get_short_help_str(200)))
    if command.epilog:
        lines += [".SH EXAMPLES AND EXIT STATUS", *_paragraphs(command.epilog)]
    return "\n".join(lines) + "\n"


def _record(param: click.Parameter, context: click.Context) -> tuple[str, str] | None:
    if not isinstance(param, click.Option):
        return None
    return param.get_help_record(context)


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a help text; those behind a backspace (click's mark) keep their lines."""
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        lines = [line.rstrip() for line in part.split("\n")]
        if lines and lines[0].strip() == "\b":
            yield ".PP"
            yield ".nf"
            yield from (_text(line) for line in lines[1:])
            yield ".fi"
        else:
            yield ".PP"
            yield _text(" ".join(line.strip() for line in lines))


def _text(text: str) -> str:
    """The text with roff's special characters escaped."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("\b", "")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
