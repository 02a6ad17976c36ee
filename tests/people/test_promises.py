"""What docs/cli.md promises: its command blocks work as they stand, each `--json` has its shape,
and each exit status comes where the table says."""

from __future__ import annotations

import re
import subprocess
from functools import partial
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from support.confirming import decide
from support.installation import COMMAND, Installation
from support.shapes import LINES, WHOLE, of_whole
from support.tree import ROOT
from tunnelmux.cli.agent import agent
from tunnelmux.cli.api import api
from tunnelmux.cli.fleet.errors import NotAllowed
from tunnelmux.cli.fleet.opening import Place
from tunnelmux.cli.fleet_options import explained
from tunnelmux.cli.gateway import gateway
from tunnelmux.cli.main import tunnelmux
from tunnelmux.cli.proxy import proxy
from tunnelmux.config import Secret

PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")

BLOCKS = {
    "tunnelmux login https://tunnels.example.com",
    "tunnelmux ls --url http://127.0.0.1:3801 --secret-file internal.secret",
}

SHAPED = {
    "whoami": [],
    "ls": [],
    "show": ["dev1"],
    "open": ["dev1", "web", "--no-browser"],
    "explain": ["dev1", "web"],
    "doctor": [],
    "invite": ["--name", "a-shape"],
    "invite ls": [],
    "lease ls": ["--all"],
}
# The commands that go on, and those that change something, have tests of their own, which take what
# they print by support.shapes too.

PROGRAMS = [tunnelmux, agent, api, gateway, proxy]


def commands_with_json() -> set[str]:
    def walk(command: click.Command, name: str) -> set[str]:
        found = {name} if any("--json" in item.opts for item in command.params) else set()
        if isinstance(command, click.Group):
            context = click.Context(command)
            for word in command.list_commands(context):
                inner = command.get_command(context, word)
                assert inner is not None
                found |= walk(inner, f"{name} {word}")
        return found

    return {name for program in PROGRAMS for name in walk(program, str(program.name))}


def test_each_command_with_json_has_a_shape() -> None:
    shapes = WHOLE.keys() | LINES.keys()
    assert shapes == commands_with_json() | {"tunnelmux demo --console"}


def test_each_shape_is_held_to_in_a_test() -> None:
    folder = ROOT / "tests"
    text = "".join(
        (folder / file).read_text()
        for part in ("cli", "people")
        for file in sorted((folder / part).glob("test_*.py"))
    )
    held = set(re.findall(r'of_(?:whole|lines)\(\s*"(tunnelmux[a-z -]*)"', text))
    here = {f"tunnelmux {name}" for name in SHAPED}
    assert held | here == WHOLE.keys() | LINES.keys()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", SHAPED)
def test_json_has_its_shape(installation: Installation, name: str) -> None:
    done = installation.run(*name.split(), *SHAPED[name], "--json")
    assert done.returncode == 0, done
    of_whole(f"tunnelmux {name}", done.stdout)


def test_the_blocks_of_the_page_are_known() -> None:
    assert set(re.findall(r"^    (tunnelmux .*)$", PAGE, re.MULTILINE)) == BLOCKS


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_blocks_of_the_page_work(installation: Installation, tmp_path: Path) -> None:
    program = tmp_path / "tunnelmux"
    program.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    secret = Path(installation.by_proxy["TUNNELMUX_API_SECRET_FILE"]).read_text()
    (tmp_path / "internal.secret").touch(mode=0o600)
    (tmp_path / "internal.secret").write_text(secret)
    env = {**installation.environment(), "HOME": str(tmp_path)}
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    login, ls = sorted(BLOCKS)
    login = login.replace("https://tunnels.example.com", installation.api.base)
    ls = ls.replace("http://127.0.0.1:3801", installation.internal)
    with subprocess.Popen(
        ["sh", "-c", f"exec {login}"],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        link = process.stdout.readline().split()[1]
        installation.here(partial(decide, installation, link, "approve"))
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    for line, shown in ((ls, "dev1"), ("tunnelmux whoami", "operator")):
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=env, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert shown in done.stdout.decode()


def test_each_exit_status_of_the_page_is_in_the_help() -> None:
    statuses = re.findall(r"^\| (\d+) \| ([a-z ]+)", PAGE.partition("exit status")[2], re.MULTILINE)
    assert [number for number, _ in statuses] == ["0", "1", "2", "3", "4", "5", "130"]
    said = click.Context(tunnelmux.commands["ls"], info_name="tunnelmux ls").get_help()
    for number, _ in statuses:
        assert re.search(rf"\b{number} [a-z]", said)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ls"),
        (1, "doctor --url http://127.0.0.1:1"),
        (2, "ls --nothing"),
        (2, "lss"),
        (2, "ls --url ftp://127.0.0.1"),
        (3, "invite --url INTERNAL --secret-file SECRET"),
        (4, "show dev"),
        (4, "curl dev9/web/"),
        (4, "forward dev1:wbe"),
        (4, "open dev1 wbe --no-browser"),
        (5, "connect dev3 echo"),
    ],
)
def test_exit_statuses(installation: Installation, status: int, words: str) -> None:
    words = words.replace("INTERNAL", installation.internal)
    words = words.replace("SECRET", installation.by_proxy["TUNNELMUX_API_SECRET_FILE"])
    done = installation.run(*words.split())
    assert done.returncode == status, done
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("typed", "here"),
    [("status", "tunnelmux ls"), ("authtoken", "tunnelmux login URL"), ("http", "tunnelmux-agent")],
)
def test_words_of_other_programs_lead_on(typed: str, here: str) -> None:
    done = CliRunner().invoke(tunnelmux, [typed, "x"])
    assert done.exit_code == 2
    assert f"There is no command '{typed}'. It is here: " in done.output
    assert here in done.output


def test_who_is_not_signed_in_and_meets_a_proxy_is_told_of_both_ways() -> None:
    error = NotAllowed("the proxy wants another secret", code="UNAUTHORIZED")
    said = str(explained(Place(is_guess=True), error))
    assert "run tunnelmux login URL, or give --secret-file FILE" in said
    for place in (Place(), Place(is_guess=True, secret=Secret("of a quickstart"))):
        assert explained(place, error) is error
