"""device and invite: who is in the fleet."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from functools import partial
from pathlib import Path

import msgspec
import pytest

from support.installation import Installation
from support.shapes import of_whole
from tunnelmux.cli.device_admin import Invitation
from tunnelmux.registry import parse_public_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


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


def test_a_proxy_alone_keeps_no_accounts(installation: Installation) -> None:
    result = installation.run("device", "disable", "dev1", env=installation.by_proxy)
    assert result.returncode == 3
    assert b"is a proxy, which keeps no accounts, and this needs tunnelmux-api" in result.stderr
    assert b"tunnelmux forward" in result.stderr
