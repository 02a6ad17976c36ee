"""logs: the agent's log by both ways, and followed over a reconnect."""

from __future__ import annotations

import re
from functools import partial

import pytest

from support.following import collect, following
from support.installation import Installation
from support.shapes import of_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def test_the_last_lines_are_shown(installation: Installation, way: str) -> None:
    env = installation.way(way)
    done = installation.run("logs", "dev1", env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    [line] = [text for text in done.stdout.decode().splitlines() if "session started" in text][:1]
    assert re.match(r"\d\d:\d\d:\d\d  info     session started  ", line), line
    assert installation.run("logs", "dev1", "-n", "0", env=env).stdout == b""
    assert installation.run("logs", "dev1", "--level", "error", env=env).stdout == b""


def test_a_program_gets_a_line_of_json_for_each(installation: Installation, way: str) -> None:
    done = installation.run("logs", "dev1", "--json", env=installation.way(way))
    assert done.returncode == 0, done.stderr
    found = of_lines("tunnelmux logs", done.stdout)
    assert "session started" in {line.event for line in found}


def test_it_is_followed_over_a_restart_of_the_agent(installation: Installation, way: str) -> None:
    with following(installation, way, "logs", "dev2", "-f", "-n", "0") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Following the log of dev2 at http://")
        lines = collect(process)
        installation.here(partial(installation.restart_agent, "dev2"))
        while "session started" not in (line := lines.get(timeout=60)):
            pass
        assert "info     session started" in line


def test_what_cannot_be_shown_is_said(installation: Installation, way: str) -> None:
    env = installation.way(way)
    done = installation.run("logs", "dev9", env=env)
    assert done.returncode == 4
    assert b'no device is called "dev9"' in done.stderr
    if way == "api":
        done = installation.run("logs", "dev3", "-f", env=env)
        assert done.returncode == 5
        assert b"dev3: The device is not connected now" in done.stderr


def test_a_device_may_keep_its_log_to_itself(installation: Installation, way: str) -> None:
    name = f"silent-{way}"
    installation.here(partial(installation.add_device, name, {}))
    installation.configurations[name] += "[log]\nkeep_lines = 0\n"
    installation.here(partial(installation.restart_agent, name))
    done = installation.run("logs", name, env=installation.way(way))
    assert done.returncode == 3
    assert b"keep_lines under [log]" in done.stderr
