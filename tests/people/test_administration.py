"""device and invite: who is in the fleet."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.installation import Installation
from support.shapes import of_whole
from tunnelmux.cli.device_admin import Invitation
from tunnelmux.registry import parse_public_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NUMBERS = count(1)


def done(installation: Installation, *words: str) -> str:
    """What a command writes that has to succeed."""
    result = installation.run(*words)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


def test_a_device_is_added_renamed_disabled_and_revoked(installation: Installation) -> None:
    made = installation.run("device", "add", "gate", "--serial", "G1", "--label", "site=north")
    assert made.stderr == b"gate is known. Its token, which is shown only this once:\n"
    assert made.stdout.startswith(b"tmd_")
    assert made.stdout.count(b"\n") == 1
    assert done(installation, "device", "rename", "gate", "gate-1") == (
        "gate is called gate-1 now.\n"
    )
    (found,) = installation.json("ls", "gate-1")
    assert (found["serial"], found["labels"]) == ("G1", {"site": "north"})
    assert "gate-1 is disabled" in done(installation, "device", "disable", "gate-1")
    assert installation.json("ls", "gate-1")[0]["state"] == "disabled"
    done(installation, "device", "enable", "gate-1")
    assert installation.json("ls", "gate-1")[0]["state"] == "offline"
    asked = installation.run("device", "revoke", "gate-1")
    assert asked.returncode == 2
    assert b"Say so with --yes." in asked.stderr
    out = done(installation, "device", "revoke", "gate-1", "--yes")
    assert "tunnelmux invite --replace gate-1" in out
    token = done(installation, "device", "rotate", "gate-1", "--by-hand", "--yes")
    assert token.startswith("tmd_")
    assert token != made.stdout.decode()
    again = installation.run("device", "add", "gate-1")
    assert (again.returncode, b"gate-1" in again.stderr) == (1, True)


def test_new_host_keys_are_accepted_by_their_fingerprints(installation: Installation) -> None:
    done(installation, "device", "add", "keyed")
    nothing = installation.run("device", "host-keys", "keyed")
    assert (nothing.returncode, nothing.stderr) == (0, b"No host key of keyed is known yet.\n")
    old, new = ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + mark * 43 for mark in ("A", "B"))
    device = installation.json("ls", "keyed")[0]["id"]
    report = installation.api.running.api.registry.fleet.report_host_keys
    installation.here(partial(report, device, (old,)))
    none_waits = installation.run("device", "host-keys", "keyed", "--accept", "--yes")
    assert b"No new host keys of keyed wait" in none_waits.stderr
    installation.here(partial(report, device, (new,)))
    fingerprint = parse_public_key(new).fingerprint
    lines = done(installation, "device", "host-keys", "keyed").splitlines()
    assert [line.split()[0] for line in lines] == ["STATE", "accepted", "new"]
    assert lines[2].split()[1:] == ["ssh-ed25519", fingerprint]
    asked = installation.run("device", "host-keys", "keyed", "--accept")
    assert asked.returncode == 2
    assert fingerprint.encode() in asked.stderr
    accept = ("device", "host-keys", "keyed", "--accept", "--yes", "--json")
    accepted = of_whole("tunnelmux device host-keys", done(installation, *accept))
    assert [key.fingerprint for key in accepted.pinned] == [fingerprint]
    assert accepted.reported == []


def test_disabling_ends_the_tunnel_and_says_so(installation: Installation) -> None:
    installation.here(partial(installation.add_device, "shortly", {}))
    assert "Ended: its tunnel." in done(installation, "device", "disable", "shortly")
    installation.here(installation.agents["shortly"].wait)


def test_a_device_is_let_in_by_a_code(installation: Installation, tmp_path: Path) -> None:
    made = installation.json("invite", "--name", "by-code", "--expires", "60")
    pairing = made["pairing"]
    lifetime = datetime.fromisoformat(pairing["expires"]) - datetime.fromisoformat(
        pairing["created"]
    )
    assert lifetime.total_seconds() == 3600
    listed = installation.json("invite", "ls")
    msgspec.convert(listed, list[Invitation])
    assert "by-code" in {item["name"] for item in listed}
    shown = done(installation, "invite", "ls")
    assert "by-code" in shown
    # There is no proxy to dial in this installation's answer: that much is told at the device.
    words = made["command"].split()[1:]
    agent = [sys.executable, "-c", "from tunnelmux.cli.agent import main; main()"]
    paired = subprocess.run([*agent, *words], cwd=tmp_path, capture_output=True, check=False)
    assert b"proxies.tunnel_urls" in paired.stderr
    assert installation.json("ls", "by-code")[0]["state"] == "offline"

    other = installation.json("invite", "--replace", "by-code")
    assert other["pairing"]["name"] == "by-code"
    done(installation, "invite", "cancel", other["pairing"]["id"])
    assert other["pairing"]["id"] not in {item["id"] for item in installation.json("invite", "ls")}
    text = done(installation, "invite", "--name", "another")
    assert "The code for another, good once and for 10 min: " in text
    assert "On the device: tunnelmux-agent pair " in text


def test_a_device_that_shows_a_code_is_approved(installation: Installation) -> None:
    asked = installation.here(
        partial(
            installation.api.call,
            "POST",
            "/api/pairing/requests",
            json={"name": "asks", "serial": "A1", "fingerprint": "SHA256:abc"},
        )
    ).json()
    refused = installation.run("invite", "approve", asked["code"])
    assert refused.returncode == 2
    assert b"asks at 127.0.0.1, key SHA256:abc will be let in as asks. Say so" in refused.stderr
    done(installation, "invite", "approve", asked["code"], "--name", "asked", "--yes")
    assert installation.json("ls", "asked")[0]["serial"] == "A1"


@pytest.fixture
def line(installation: Installation) -> dict[str, Any]:
    """An install key by which two devices came."""
    name = f"line-{next(NUMBERS)}"
    made = installation.run("install-key", "add", name, "--uses", "5", "--expires", "1")
    assert b"--install-key-file" in made.stderr
    key = made.stdout.decode().strip()
    assert key.startswith("tmk_")
    for number in (1, 2):
        wish = {"key": key, "name": f"{name}-{number}"}
        join = partial(installation.api.call, "POST", "/api/pairing/install", json=wish)
        assert installation.here(join).status_code == 200
    return next(key for key in installation.json("install-key", "ls") if key["name"] == name)


def test_an_install_key_is_revoked_with_its_devices(
    installation: Installation, line: dict[str, Any]
) -> None:
    name = line["name"]
    assert (line["uses"], line["max_uses"], line["revoked"]) == (2, 5, None)
    asked = installation.run("install-key", "revoke", name, "--remove-devices")
    assert asked.returncode == 2
    assert b"was used 2 times. The devices that came by it are removed. Say so" in asked.stderr
    assert installation.json("ls", f"{name}-1")
    said = done(installation, "install-key", "revoke", name, "--disable-devices", "--yes")
    assert f'The key "{name}" is revoked.\nDisabled: 2 devices.\n' in said
    assert installation.json("ls", f"{name}-1")[0]["state"] == "disabled"
    said = done(installation, "install-key", "revoke", line["id"], "--remove-devices", "--yes")
    assert "Removed: 2 devices.\n" in said
    assert name not in done(installation, "ls")


def test_an_install_key_that_is_good_no_more_is_listed_if_wished(
    installation: Installation, line: dict[str, Any]
) -> None:
    asked = installation.run("install-key", "revoke", line["name"])
    assert b"lets no more devices in; those that came by it stay. Say so" in asked.stderr
    done(installation, "install-key", "revoke", line["name"], "--yes")
    assert installation.json("ls", f"{line['name']}-1")[0]["state"] == "offline"
    assert line["id"] not in installation.run("install-key", "ls").stdout.decode()
    assert "revoked" in done(installation, "install-key", "ls", "--all")
    of_whole("tunnelmux install-key ls", done(installation, "install-key", "ls", "--all", "--json"))
    missing = installation.run("install-key", "revoke", "line-none", "--yes")
    assert missing.returncode == 1
    assert b'There is no install key "line-none"' in missing.stderr


def test_of_several_keys_of_one_name_the_good_one_is_revoked(installation: Installation) -> None:
    for _ in range(2):
        done(installation, "install-key", "add", "twin")
    both = installation.run("install-key", "revoke", "twin", "--yes")
    assert both.returncode == 1
    ids = [key["id"] for key in installation.json("install-key", "ls") if key["name"] == "twin"]
    assert f"give an id, {', '.join(ids)}." in both.stderr.decode()
    done(installation, "install-key", "revoke", ids[0], "--yes")
    done(installation, "install-key", "revoke", "twin", "--yes")
    left = installation.run("install-key", "ls").stdout.decode()
    assert "twin" not in left


def test_a_proxy_alone_keeps_no_accounts(installation: Installation) -> None:
    result = installation.run("device", "disable", "dev1", env=installation.by_proxy)
    assert result.returncode == 3
    assert b"is a proxy, which keeps no accounts, and this needs tunnelmux-api" in result.stderr
    assert b"tunnelmux forward" in result.stderr
