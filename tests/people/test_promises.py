"""What docs/cli.md promises: its command blocks work as they stand, each `--json` has its shape,
and each exit status comes where the table says."""

from __future__ import annotations

import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from support.confirming import decide
from support.installation import COMMAND, Installation
from support.tree import ROOT
from tunnelmux.cli import device_admin, leases, opening
from tunnelmux.cli.doctor.findings import Finding
from tunnelmux.cli.fleet.model import Account, Device, DeviceDetails
from tunnelmux.cli.main import tunnelmux

PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")

BLOCKS = {
    "tunnelmux login https://tunnels.example.com",
    "tunnelmux ls --url http://127.0.0.1:3801 --secret-file internal.secret",
}

SHAPES: dict[tuple[str, ...], Any] = {
    ("whoami",): Account,
    ("ls",): list[Device],
    ("show", "dev1"): DeviceDetails,
    ("open", "dev1", "web", "--no-browser"): opening._Made,
    ("explain", "dev1", "web"): list[Finding],
    ("doctor",): list[Finding],
    ("invite", "--name", "a-shape"): device_admin._Made,
    ("invite", "ls"): list[device_admin.Invitation],
    ("lease", "ls", "--all"): list[leases._Lease],
}
# The commands that go on, and those that change something under way, have tests of their own.

ELSEWHERE = {
    *("events", "watch", "tail", "logs", "exec", "demo", "inspect start", "inspect ls"),
    *("inspect show", "inspect replay", "lease request", "lease approve", "lease deny"),
    *("lease end", "lease extend", "assist report"),
}


def commands_with_json() -> set[str]:
    def walk(group: click.Group, *path: str) -> set[str]:
        found: set[str] = set()
        for name, command in group.commands.items():
            if any("--json" in parameter.opts for parameter in command.params):
                found.add(" ".join([*path, name]))
            if isinstance(command, click.Group):
                found |= walk(command, *path, name)
        return found

    return walk(tunnelmux)


def test_each_command_with_json_is_in_a_table() -> None:
    names = {" ".join(word for word in words if word.islower()) for words in SHAPES}
    plain = {re.sub(r" (dev1.*|--.*)", "", name) for name in names}
    assert commands_with_json() == plain | ELSEWHERE


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("words", SHAPES, ids="-".join)
def test_json_has_its_shape(installation: Installation, words: tuple[str, ...]) -> None:
    content = installation.json(*words)
    again = msgspec.to_builtins(msgspec.convert(content, SHAPES[words], strict=True))
    assert again == content


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
