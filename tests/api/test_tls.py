"""The API with a certificate of its own, called by curl."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from support.apis import live_api
from support.tenants import TEST, person
from tunnelmux.errors import ConfigError
from tunnelmux.transports import certificates
from tunnelmux.transports.certificates import CertificatePair

AUTHORITY = trustme.CA()


def write_certificate(folder: Path) -> CertificatePair:
    """A certificate for 127.0.0.1, in two files; `ca.pem` is whom to trust."""
    AUTHORITY.cert_pem.write_to_path(folder / "ca.pem")
    issued = AUTHORITY.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(folder / "tls.pem")
    issued.private_key_pem.write_to_path(folder / "tls.key")
    return folder / "tls.pem", folder / "tls.key"


@pytest.fixture
def curl(tmp_path: Path, debian_program: Callable[[str, str], str]) -> list[str]:
    """curl, which trusts the tests' authority and has 20 s."""
    program = debian_program("curl", "curl")
    return [program, "-q", "-sS", "--max-time", "20", "--cacert", str(tmp_path / "ca.pem")]


async def output_of(*command: str, data: bytes = b"") -> str:
    done = await trio.run_process(command, capture_stdout=True, stdin=data)
    return done.stdout.decode()


async def status_of(*command: str) -> int:
    """How a command ends."""
    done = await trio.run_process(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    return done.returncode


async def test_programs_call_it(tmp_path: Path, curl: list[str]) -> None:
    async with live_api(tmp_path, tls=write_certificate(tmp_path)) as api:
        shown = ["-o", str(tmp_path / "answer"), "-w", "%{http_code} %{http_version}"]
        assert await output_of(*curl, *shown, "--http2", f"{api.base}/api/health") == "200 1.1"

        owner = await person(api, "owner")
        token = f"Authorization: Bearer {owner.token}"
        labels = {f"key{number}": "x" * 250 for number in range(30)}
        made = await output_of(
            *[*curl, "-H", token, "--json", "@-", f"{api.base}/api/devices"],
            data=json.dumps({"name": "cam1", "labels": labels}).encode(),
        )
        assert json.loads(made)["device"]["labels"] == labels
        listed = await output_of(*curl, "-H", token, f"{api.base}/api/devices")
        assert [item["name"] for item in json.loads(listed)["items"]] == ["cam1"]

        follow = [*curl, "-N", "-H", token, f"{api.base}/api/events"]
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, follow, stdout=subprocess.PIPE, check=False)
            follower = await nursery.start(run)
            received = await follower.stdout.receive_some()  # it follows from here on
            devices = api.running.api.registry.tenant(owner.tenant_id, TEST).devices
            added, _ = await devices.add("cam2")
            while added.id.encode() not in received:
                received += (piece := await follower.stdout.receive_some())
                assert piece, received
            nursery.cancel_scope.cancel()


async def test_who_speaks_no_tls_or_trusts_another_is_left_alone(
    tmp_path: Path, curl: list[str]
) -> None:
    async with live_api(tmp_path, tls=write_certificate(tmp_path)) as api:
        health = f"{api.base}/api/health"
        assert await status_of(*curl, health.replace("https", "http")) in {52, 56}
        assert await status_of(*curl, "--cacert", "/dev/null", health) in {60, 77}
        assert await status_of(*curl, "--tls-max", "1.1", health) != 0
        assert await status_of(*curl, health) == 0


async def test_a_renewed_certificate_is_shown_without_a_restart(
    tmp_path: Path, curl: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "RELOAD_INTERVAL", 0.05)
    async with live_api(tmp_path, tls=write_certificate(tmp_path)) as api:

        async def shown() -> str:
            return await output_of(*curl, "-w", "%{certs}", f"{api.base}/api/health")

        before = await shown()
        assert "BEGIN CERTIFICATE" in before
        write_certificate(tmp_path)
        with trio.fail_after(30):
            while await shown() == before:
                pass


async def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    pair = write_certificate(tmp_path)
    pair[0].write_text("no certificate")
    with pytest.raises(ConfigError, match=r"cannot load the certificate .*tls\.pem"):
        async with live_api(tmp_path, tls=pair):
            pass
