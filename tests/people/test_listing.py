"""ls and show: what people see, and what programs get."""

from __future__ import annotations

import os
import pty
import re

import msgspec
import pytest

from support.installation import COMMAND, Installation
from tunnelmux import __version__
from tunnelmux.cli.fleet.model import Account, Device, DeviceDetails

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def as_said(content: object, kind: type) -> None:
    """Assert that this is the JSON of that kind, with all of its fields and no others."""
    again = msgspec.to_builtins(msgspec.convert(content, kind, strict=True))
    assert again == content


def test_the_json_of_every_listing_keeps_its_shape(installation: Installation, way: str) -> None:
    env = installation.way(way)
    as_said(installation.json("ls", env=env), list[Device])  # type: ignore[arg-type]
    as_said(installation.json("show", "dev1", env=env), DeviceDetails)
    as_said(installation.json("whoami", env=env), Account)


def test_ls_shows_devices_and_their_state(installation: Installation) -> None:
    lines = installation.run("ls", "dev").stdout.decode().splitlines()
    assert lines[0].split() == ["DEVICE", "STATE", "FOR", "ADDRESS", "VERSION", "SERVICES"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert re.search(r"dev1 +online +\d+ (s|min) .*web, ssh, echo, closed$", rows["dev1"])
    assert re.fullmatch(r"dev3 +offline", rows["dev3"])
    found = installation.json("ls", "dev2")
    assert [device["name"] for device in found] == ["dev2"]
    assert found[0]["services"] == ["web"]
    online = installation.json("ls", "dev", "--online")
    assert "dev3" not in {device["name"] for device in online}
    nothing = installation.run("ls", "nothing-like-it")
    assert (nothing.stdout, nothing.returncode) == (b"", 0)
    assert b'No device has "nothing-like-it" in its name.' in nothing.stderr


def test_a_proxy_knows_who_is_connected(installation: Installation) -> None:
    found = installation.json("ls", "dev", env=installation.by_proxy)
    assert {"dev1", "dev2"} <= {device["name"] for device in found}
    assert "dev3" not in {device["name"] for device in found}
    [of_dev1] = [device for device in found if device["name"] == "dev1"]
    assert of_dev1["services"][:2] == ["web", "ssh"]
    assert of_dev1["version"] == __version__
    details = installation.json("show", "dev1", env=installation.by_proxy)
    assert details["services"][0] == {"name": "web", "scheme": "http", "default": True}


def test_show_tells_all_about_one(installation: Installation) -> None:
    text = installation.run("show", "dev1").stdout.decode()
    assert re.search(r"^Device +dev1$", text, re.MULTILINE)
    assert re.search(r"^State +online for ", text, re.MULTILINE)
    assert re.search(r"^Serial +SN-dev1$", text, re.MULTILINE)
    done = installation.run("show", "dev")
    assert done.returncode == 4
    assert b'no device is called "dev"' in done.stderr
    assert b"did you mean" in done.stderr


@pytest.mark.parametrize("columns", [40, 80])
def test_a_table_fits_the_terminal_and_has_colours_there(
    installation: Installation, columns: int
) -> None:
    shown = in_terminal(installation, columns, "ls")
    assert "\x1b[32monline\x1b[m" in shown
    plain = re.sub(r"\x1b\[[0-9]*m", "", shown).replace("\r", "")
    assert max(map(len, plain.splitlines())) <= columns
    assert "\x1b" not in in_terminal(installation, columns, "ls", NO_COLOR="1")


def in_terminal(installation: Installation, columns: int, *words: str, **more: str) -> str:
    """What a command writes to a terminal of this width."""
    pid, master = pty.fork()
    if pid == 0:
        env = {**installation.by_api, "COLUMNS": str(columns), **more}
        os.execve(COMMAND[0], [*COMMAND, *words], env)
    shown = b""
    try:
        while data := os.read(master, 65_536):
            shown += data
    except OSError:
        pass  # Linux's word for the end of a terminal
    os.close(master)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    return shown.decode()
