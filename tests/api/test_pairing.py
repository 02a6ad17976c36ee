"""Letting devices in: from the console, from the device, with install keys; and guessing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trio

from support.apis import LiveApi, live_api
from support.tenants import Person, person
from tunnelmux.config.api import PairingConfig, ProxyEndpointConfig

URL = "wss://proxy.example.com:3800/tunnel/connect"


def api_with_proxies(folder: Path) -> Any:
    return live_api(folder, proxies=ProxyEndpointConfig(tunnel_urls=[URL]))


async def pair(folder: Path, api: LiveApi, *words: str) -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, "-c", "from tunnelmux.cli.agent import main; main()", "pair"]
    return await trio.run_process(
        [*program, *words, "--url", api.base],
        cwd=folder,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


def told_token(folder: Path) -> str:
    return (folder / "agent.token").read_text().strip()


@pytest.mark.slow  # it starts programs
async def test_a_code_without_a_name_takes_the_hosts_and_says_what_to_do_where_it_is_taken(
    tmp_path: Path,
) -> None:
    async with api_with_proxies(tmp_path) as api:
        ada = await person(api, "ada", "operator")
        for folder, status in (("one", 0), ("two", 3)):
            (tmp_path / folder).mkdir()
            made = (await api.call("POST", "/api/pairings", ada.token, json={})).json()
            done = await pair(tmp_path / folder, api, made["code"])
            assert done.returncode == status, done.stderr
        assert b"is taken" in done.stderr and b"with --name." in done.stderr
        named = await pair(tmp_path / "two", api, made["code"], "--name", "another")
        assert named.returncode == 0, named.stderr
        devices = (await api.call("GET", "/api/devices", ada.token)).json()["items"]
        assert len(devices) == 2 and "another" in {item["name"] for item in devices}


@pytest.mark.slow  # it starts programs
async def test_a_code_from_the_console_becomes_a_configuration(tmp_path: Path) -> None:
    async with api_with_proxies(tmp_path) as api:
        ada = await person(api, "ada", "operator")
        made = (await api.call("POST", "/api/pairings", ada.token, json={"name": "dev1"})).json()
        device = tmp_path / "device"
        device.mkdir()
        done = await pair(device, api, made["code"], "--service", "web=http://127.0.0.1:8000")
        assert done.returncode == 0, done.stderr
        written = tomllib.loads((device / "agent.toml").read_text())
        assert written == {
            "proxy": {"url": URL, "token_file": "agent.token"},
            "device": {"name": "dev1"},
            "services": [{"name": "web", "target": "http://127.0.0.1:8000"}],
        }
        assert (device / "agent.token").stat().st_mode & 0o777 == 0o600
        assert told_token(device).encode() not in done.stdout
        devices = (await api.call("GET", "/api/devices", ada.token)).json()["items"]
        assert [(item["name"], item["paired_by"]) for item in devices] == [("dev1", ada.user_id)]
        again = await pair(tmp_path, api, made["code"])
        assert again.returncode == 3
        assert b"refused" in again.stderr


async def test_an_existing_configuration_is_not_touched_and_the_code_stays_good(
    tmp_path: Path,
) -> None:
    async with api_with_proxies(tmp_path) as api:
        ada = await person(api, "ada", "operator")
        made = (await api.call("POST", "/api/pairings", ada.token, json={"name": "dev1"})).json()
        (tmp_path / "agent.toml").write_text("mine")
        done = await pair(tmp_path, api, made["code"])
        assert done.returncode == 2
        assert b"exists already" in done.stderr
        assert (tmp_path / "agent.toml").read_text() == "mine"
        done = await pair(tmp_path, api, made["code"], "--config", "other.toml")
        assert done.returncode == 0


async def waiting_device(api: LiveApi, operator: Person) -> dict[str, Any]:
    """The pairing of the device that waits, once it is there."""
    with trio.fail_after(30):
        while True:
            answer = await api.call("GET", "/api/pairings?waiting=true", operator.token)
            if items := answer.json()["items"]:
                return dict(items[0])
            await trio.lowlevel.checkpoint()


@pytest.mark.slow
async def test_a_device_shows_a_code_and_waits_for_an_operator(tmp_path: Path) -> None:
    async with api_with_proxies(tmp_path) as api, trio.open_nursery() as nursery:
        ada = await person(api, "ada", "operator")
        process = await trio.lowlevel.open_process(
            [
                *[sys.executable, "-c", "from tunnelmux.cli.agent import main; main()"],
                *["pair", "--url", api.base, "--name", "dev7", "--serial", "SN123"],
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        shown = b""
        while b"Waiting" not in shown:
            shown += await process.stdout.receive_some()
        code = shown.decode().split("with the code\n\n")[1].split()[0]
        found = (
            await api.call("POST", "/api/pairings/find", ada.token, json={"code": code})
        ).json()
        assert (found["name"], found["serial"]) == ("dev7", "SN123")
        assert found["fingerprint"].encode() in shown
        approve = f"/api/pairings/{found['id']}/approve"
        await api.call("POST", approve, ada.token, json={"name": "kitchen"})
        with trio.fail_after(30):
            assert await process.wait() == 0
        written = tomllib.loads((tmp_path / "agent.toml").read_text())
        assert written["device"] == {"name": "kitchen", "serial": "SN123"}
        nursery.cancel_scope.cancel()


@pytest.mark.slow  # it starts programs
async def test_an_install_key_lets_in_the_serials_that_it_lists(tmp_path: Path) -> None:
    async with api_with_proxies(tmp_path) as api:
        ada = await person(api, "ada", "admin")
        new = {"name": "line 3", "serials": ["SN1", "SN2"]}
        made = (await api.call("POST", "/api/install-keys", ada.token, json=new)).json()
        (tmp_path / "key").write_text(made["key"])
        for serial, status in (("SN1", 0), ("SN2", 0), ("SN3", 3)):
            folder = tmp_path / serial
            folder.mkdir()
            key = ["--install-key-file", "../key", "--name", serial.lower(), "--serial", serial]
            done = await pair(folder, api, *key)
            assert done.returncode == status, done.stderr
        revoked = await api.call(
            "POST",
            f"/api/install-keys/{made['install_key']['id']}/revoke",
            ada.token,
            json={"devices": "disable"},
        )
        assert len(revoked.json()["disabled"]) == 2
        devices = (await api.call("GET", "/api/devices", ada.token)).json()["items"]
        assert [item["enabled"] for item in devices] == [False, False]


async def test_guessing_is_stopped(tmp_path: Path) -> None:
    async with api_with_proxies(tmp_path) as api:
        statuses = []
        for number in range(25):
            guess = {"code": f"BCDF-{'GHJKLMNPQ'[number % 9]}HJK", "name": "x"}
            statuses.append(await api.call("POST", "/api/pairing/exchange", json=guess))
        assert statuses[-1].status_code == 429
        assert statuses[-1].json()["code"] == "too_many_guesses"
        assert "a neighbour" in statuses[-1].json()["detail"]
        assert "--install-key-file" in statuses[-1].json()["detail"]
        assert int(statuses[-1].headers["retry-after"]) > 0


async def test_the_rules_of_guessing_are_settings(tmp_path: Path) -> None:
    async with live_api(tmp_path, pairing=PairingConfig(address_budget=2)) as api:
        found = [
            (await api.call("POST", "/api/pairing/exchange", json={"code": code})).json()["code"]
            for code in ("BCDF-GHJK", "CDFG-HJKL", "DFGH-JKLM")
        ]
        assert found == ["code_unknown", "code_unknown", "too_many_guesses"]


async def test_plain_http_to_another_machine_is_refused(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from tunnelmux.cli.agent import main; main()", "pair"]
    done = await trio.run_process(
        [*program, "BCDF-GHJK", "--url", "http://tunnels.example.com"],
        cwd=tmp_path,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"write https://" in done.stderr
