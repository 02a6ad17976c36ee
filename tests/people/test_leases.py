"""The story of remote assistance by the words of docs/assist.md: lease, code, report."""

from __future__ import annotations

import getpass
import re
import subprocess
import sys
import time

import pytest

from support.installation import COMMAND, Installation, ssh_words
from support.shapes import Lease, of_lines, of_whole
from support.tenants import Person, person
from support.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SERIAL = "SN-assist1"
PATIENCE = 120.0


@pytest.fixture(scope="module")
def device(installation: Installation) -> Installation:
    """The same, with the device assist1: its ssh is reached during leases only."""
    found = re.search(r'name = "ssh"\ntarget = "(.*)"', installation.configurations["dev1"])
    assert found is not None

    async def add() -> None:
        await installation.add_device("assist1", {"ssh": found[1]})
        await installation.stop_agent("assist1")
        text = installation.configurations["assist1"]
        mine = f'serial = "{SERIAL}"\nstate_dir = "{installation.folder}/assist1"\n'
        text = text.replace('name = "assist1"\n', f'name = "assist1"\n{mine}')
        keys = installation.folder / "user_key.pub"
        more = f'lease_only = true\n[assist]\nmode = "allow"\naccount_keys = "{keys}"\n'
        installation.configurations["assist1"] = text + more
        await installation.start_agent("assist1")

    installation.here(add)
    (installation.folder / "assist1.toml").touch(0o600)
    (installation.folder / "assist1.toml").write_text(installation.configurations["assist1"])
    return installation


def on_device(here: Installation, *words: str) -> str:
    """What `tunnelmux-agent assist` prints on the device."""
    command = [sys.executable, str(ROOT / "cmd" / "tunnelmux-agent"), "assist", words[0]]
    done = subprocess.run(
        [*command, "--config", str(here.folder / "assist1.toml"), *words[1:]],
        env=here.environment(),
        capture_output=True,
        check=True,
        timeout=120,
    )
    return done.stdout.decode()


def ssh(here: Installation) -> subprocess.CompletedProcess[bytes]:
    return here.run("ssh", "assist1", *ssh_words(here.folder), "--", "echo in")


def until_running(here: Installation, lease: str) -> None:
    began = time.monotonic()
    while True:
        found = {one["id"]: one["state"] for one in here.json("lease", "ls", "--all")}
        if found[lease] == "running":
            break
        assert found[lease] == "waiting"
        assert time.monotonic() - began < PATIENCE
    while ssh(here).stdout != b"in\n":
        assert time.monotonic() - began < PATIENCE


def request(here: Installation, env: dict[str, str] | None = None) -> Lease:
    words = ("lease", "request", SERIAL.lower(), "--for", "10m", "-r", "printer jams", "--json")
    done = here.run(*words, env=env)
    assert done.returncode == 0, done
    lease: Lease = of_whole("tunnelmux lease request", done.stdout)
    return lease


def test_a_lease_is_asked_for_used_extended_ended_and_reported(device: Installation) -> None:
    refused = ssh(device)
    assert refused.returncode == 255
    assert b"during a lease only" in refused.stderr
    lease = request(device)
    assert (lease.rights, lease.recorded) == (["shell", "exec"], True)
    until_running(device, lease.id)
    assert "printer jams" in on_device(device, "status")
    listed = device.run("lease", "ls").stdout.decode()
    assert re.search(rf"{lease.id} +running .* ada +ssh +printer", listed)
    extended = device.run("lease", "extend", lease.id, "--for", "30m", "--json").stdout
    assert of_whole("tunnelmux lease extend", extended).ends > lease.ends
    ended = device.run("lease", "end", lease.id, "-r", "done").stdout.decode()
    assert "done (ada's)" in ended
    assert b"during a lease only" in ssh(device).stderr
    told = device.run("assist", "report", lease.id).stdout.decode()
    words = ("asked for it", "the device assist1 agreed", "extended it", "ended it")
    assert [word for word in words if word not in told] == []
    assert "end_reason: done" in told
    entries = device.run("assist", "report", lease.id, "--json").stdout
    actions = [entry.action for entry in of_lines("tunnelmux assist report", entries)]
    assert actions[0] == "lease.request"
    assert {"lease.consent", "lease.extend", "lease.end"} <= set(actions)
    over = device.run("lease", "extend", lease.id, "--for", "30m")
    assert over.returncode == 1
    assert b"never comes back" in over.stderr


def test_a_viewers_request_is_approved_or_denied(device: Installation) -> None:
    async def add_viewer() -> Person:
        return await person(device.api, "vera", "viewer")

    vera = device.environment(device.here(add_viewer))
    wanted = request(device, vera)
    assert (wanted.state, wanted.holder_name) == ("requested", "vera")
    refused = device.run("lease", "approve", wanted.id, env=vera)
    assert refused.returncode == 3, refused
    approved = device.run("lease", "approve", wanted.id, "--json").stdout
    assert of_whole("tunnelmux lease approve", approved).state in ("waiting", "running")
    # Of a viewer's own, who ends it.
    over = device.run("lease", "end", wanted.id, "-r", "not needed", "--json", env=vera).stdout
    assert of_whole("tunnelmux lease end", over).end_reason == "not needed"
    wanted = request(device, vera)
    denied = device.run("lease", "deny", wanted.id, "-r", "not today", "--json").stdout
    found = of_whole("tunnelmux lease deny", denied)
    assert (found.state, found.end_reason) == ("ended", "not today")
    again = device.run("lease", "deny", wanted.id)
    assert again.returncode == 1, again


def test_what_the_device_does_not_take_is_said_at_once(device: Installation) -> None:
    done = device.run("lease", "request", SERIAL, "--for", "9h", "-r", "x")
    assert b"the device accepts at most 2 h" in done.stderr
    assert (
        b"no assistance with vnc"
        in device.run("lease", "request", SERIAL, "--services", "vnc", "-r", "x").stderr
    )
    for wrong in ("x", "../devices", "0" * 36):
        done = device.run("lease", "end", wrong)
        assert done.returncode in (2, 4), done.stderr


def test_a_person_with_the_code_logs_in_without_a_key_of_their_own(device: Installation) -> None:
    said = on_device(device, "on", "--code", "--for", "10m")
    code, lease = (re.search(rf"{name}: +(\S+)", said) for name in ("Code", "Lease"))
    assert code is not None
    assert lease is not None
    words = [f"{getpass.getuser()}@{SERIAL}", "--lease", lease[1]]
    quiet = [
        word
        for word in ssh_words(device.folder)[2:]
        if word != "-o" and not word.startswith(("IdentityFile", "User="))
    ]
    settings = [word for setting in quiet for word in ("-o", setting)]
    began = time.monotonic()
    while True:
        done = device.run("assist", "ssh", *words, "--code", code[1], *settings, "--", "echo in")
        if done.stdout == b"in\n":
            break
        assert time.monotonic() - began < PATIENCE, done.stderr
    wrong = device.run("assist", "ssh", *words, "--code", "0" * 16, *settings, "--", "echo in")
    assert (wrong.returncode, b"Permission denied" in wrong.stderr) == (255, True)
    assert device.run("assist", "ssh", *words, "--code", "0" * 15).returncode == 2
    file = device.folder / "derived"
    done = device.run("assist", "ssh", *words, "--code", code[1], "--key-file", str(file))
    assert b"ssh -i" in done.stdout
    assert file.stat().st_mode & 0o777 == 0o600
    again = device.run("assist", "ssh", *words, "--code", code[1], "--key-file", str(file))
    assert b"already exists" in again.stderr
    leases = {one["id"]: one for one in device.json("lease", "ls")}
    assert leases[lease[1]]["sealed"]
    on_device(device, "stop", lease[1])
    assert "lease-of-tunnelmux-" not in (device.folder / "user_key.pub").read_text()
    done = device.run("assist", "ssh", *words, "--code", code[1], *settings, "--", "echo in")
    assert done.returncode == 255


def test_off_on_the_device_ends_it_everywhere(device: Installation) -> None:
    lease = request(device)
    until_running(device, lease.id)
    client = subprocess.Popen(
        [*COMMAND, "ssh", "assist1", *ssh_words(device.folder), "--", "echo in; sleep 300"],
        env=device.by_api,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=device.folder,
    )
    assert client.stdout is not None
    with client.stdout:
        assert client.stdout.readline() == b"in\n"
        assert "Assistance: off" in on_device(device, "off")
        assert client.wait(120) == 255
    began = time.monotonic()
    while {one["id"]: one for one in device.json("lease", "ls", "--all")}[lease.id][
        "state"
    ] != "ended":
        assert time.monotonic() - began < PATIENCE
    on_device(device, "on", "--for", "10m")
