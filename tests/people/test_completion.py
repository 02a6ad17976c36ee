"""completion and man: what bash, zsh and fish complete, and what man(1) shows."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from support.installation import COMMAND, Installation
from support.tree import ROOT
from tunnelmux.cli.main import COMMANDS, tunnelmux
from tunnelmux.cli.manual import manual_pages

SCRIPT = """
source <(tunnelmux completion bash)
COMP_WORDS=({words})
COMP_CWORD=$(({count} - 1))
_tunnelmux_completion tunnelmux
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


ZSH = """
autoload -Uz compinit && compinit -D -u
eval "$(tunnelmux completion zsh)"
function _describe {{
    for name in $argv; do [[ $name == *descriptions ]] && print -l ${{(P)name}}; done
}}
function compadd {{ print -l ${{(P)argv[-1]}} }}
words=({words})
CURRENT={count}
_tunnelmux_completion
true
"""
# What writes on the screen is replaced: completion itself runs in an interactive zsh only.

FISH = "tunnelmux completion fish | source; complete -C '{line}'"


def with_program(installation: Installation, tmp_path: Path) -> dict[str, str]:
    """The environment of the owner, in which `tunnelmux` is a command."""
    program = tmp_path / "tunnelmux"
    program.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    env = installation.by_api
    return {**env, "PATH": f"{tmp_path}{os.pathsep}{env['PATH']}"}


def completed(installation: Installation, tmp_path: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    quoted = " ".join(f"'{word}'" for word in ("tunnelmux", *words))
    done = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT.format(words=quoted, count=len(words) + 1)],
        env=with_program(installation, tmp_path),
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("fo",), {"forward"}),
        (("invite", ""), {"ls", "cancel", "approve"}),
        (("show", "dev"), {"dev1", "dev2", "dev3"}),
        (("connect", "dev1", ""), {"web", "ssh", "echo", "closed"}),
        (("curl", "dev1/w"), {"dev1/web"}),
        (("forward", "dev1:e"), {"dev1:echo"}),
        (("invite", "--replace", "dev2"), {"dev2"}),
        (("ls", "--js"), {"--json"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_bash_completes_commands_devices_and_services(
    installation: Installation, tmp_path: Path, words: tuple[str, ...], found: set[str]
) -> None:
    assert found <= completed(installation, tmp_path, *words)


@pytest.mark.slow
def test_a_fleet_that_is_away_completes_nothing_and_says_nothing(
    installation: Installation, tmp_path: Path
) -> None:
    offered = completed(installation, tmp_path, "show", "--url", "http://127.0.0.1:1", "dev")
    assert offered == set()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("shell", ["zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("fo",), {"forward"}),
        (("tail", "dev"), {"dev1", "dev2", "dev3"}),
        (("connect", "dev1", "e"), {"echo"}),
        (("curl", "dev1/w"), {"dev1/web"}),
        (("forward", "dev1:e"), {"dev1:echo"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_other_shells_complete_the_same(
    installation: Installation,
    tmp_path: Path,
    debian_program: Callable[[str, str], str],
    shell: str,
    words: tuple[str, ...],
    found: set[str],
) -> None:
    program = debian_program(shell, shell)
    if shell == "zsh":
        quoted = " ".join(f"'{word}'" for word in ("tunnelmux", *words))
        command = [program, "-f", "-c", ZSH.format(words=quoted, count=len(words) + 1)]
    else:
        line = " ".join(("tunnelmux", *words))
        command = [program, "--no-config", "-c", FISH.format(line=line)]
    done = subprocess.run(
        command,
        env=with_program(installation, tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stderr == ""
    # Behind a name stands what it does: for fish after a tab, for zsh after a colon.
    assert {re.split(r"\t|:(?=[A-Z])", line)[0] for line in done.stdout.splitlines()} == found


def test_every_command_has_a_page_that_roff_takes(
    debian_program: Callable[[str, str], str],
) -> None:
    pages = dict(manual_pages(tunnelmux, "tunnelmux"))
    for commands in COMMANDS.values():
        assert {f"tunnelmux-{command.name}" for command in commands} <= pages.keys()
    groff = debian_program("groff", "groff-base")
    everything = "".join(pages.values()).encode()
    done = subprocess.run(
        [groff, "-man", "-Kutf8", "-Tutf8", "-ww", "-z"],
        input=everything,
        capture_output=True,
        timeout=50,
        check=True,
    )
    assert done.stderr == b""
    assert r"tunnelmux\-forward \- Forward ports of this machine" in pages["tunnelmux-forward"]


def test_the_page_names_every_command() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for commands in COMMANDS.values():
        for command in commands:
            assert f"`{command.name}" in page, command.name


def all_commands(group: click.Group, *path: str) -> list[tuple[tuple[str, ...], click.Command]]:
    found = []
    for name, command in group.commands.items():
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += all_commands(command, *path, name)
    return found


@pytest.mark.parametrize(
    ("path", "command"),
    [pytest.param(path, item, id="-".join(path)) for path, item in all_commands(tunnelmux)],
)
def test_every_help_fits_a_terminal_and_has_an_example(
    path: tuple[str, ...], command: click.Command
) -> None:
    context = click.Context(command, info_name=f"tunnelmux {' '.join(path)}", terminal_width=80)
    text = command.get_help(context)
    too_long = [line for line in text.splitlines() if len(line) > 80]
    assert too_long == []
    assert f"tunnelmux {' '.join(path)}" in text.partition("Example")[2]
    brief = command.get_short_help_str(66)
    assert not brief.endswith("..."), brief
