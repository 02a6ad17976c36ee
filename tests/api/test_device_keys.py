"""`POST /api/devices/{serial}/ssh-keys`: a device's key, and the proofs that it may have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.apis import LiveApi, live_api
from support.tenants import SSH_KEY, TEST, person
from tunnelmux.registry import TenantRegistry, parse_public_key

KIND, BLOB = SSH_KEY.split()[:2]
PATH = "/api/devices/SN-7/ssh-keys"


def key(letter: str) -> str:
    return f"{KIND} {BLOB[:-1]}{letter}"


async def post(api: LiveApi, caller: str = "", path: str = PATH, **fields: Any) -> Any:
    return await api.call("POST", path, caller, json=fields)


async def tenant_of(api: LiveApi, name: str) -> tuple[str, TenantRegistry]:
    admin = await person(api, name, "admin")
    return admin.token, api.running.api.registry.tenant(admin.tenant_id, TEST)


async def test_a_code_makes_the_device_and_its_token_proves_the_next_key(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        token, tenant = await tenant_of(api, "admin")
        _, code = await tenant.pairings.make_code()
        wrong = await post(api, key="ssh-ed25519 AAAA", code=code.reveal())
        assert (wrong.status_code, wrong.json()["code"]) == (409, "invalid")
        made = await post(api, key=key("A"), code=code.reveal(), lifetime=7200)
        assert made.status_code == 201
        assert made.headers["cache-control"] == "no-store"
        answer = made.json()
        assert answer["device"] == "sn-7"
        device = await tenant.devices.find_called("sn-7")
        assert (device.serial, device.id) == ("SN-7", answer["ssh_key"]["device_id"])
        again = await post(api, key=key("B"), code=code.reveal())
        assert again.json()["code"] == "code_used"
        other = await post(
            api, path="/api/devices/SN-8/ssh-keys", key=key("B"), token=answer["token"]
        )
        assert other.json()["code"] == "wrong_serial"
        renewed = await post(api, key=key("B"), token=answer["token"])
        assert (renewed.status_code, renewed.json()["token"]) == (201, None)
        listed = (await api.call("GET", f"/api/devices/{device.id}/gateway-keys", token)).json()
        assert [item["id"] for item in listed] == [
            renewed.json()["ssh_key"]["id"],
            answer["ssh_key"]["id"],
        ]
        path = f"/api/devices/{device.id}/gateway-keys/{listed[0]['id']}"
        assert (await api.call("DELETE", path, token)).status_code == 200
        assert (await api.call("DELETE", path, token)).status_code == 404


async def test_an_install_key_or_an_operators_word_is_a_proof_too(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        token, tenant = await tenant_of(api, "admin")
        _, install_key = await tenant.install_keys.add("batch", lifetime=3600, max_uses=5)
        by_key = await post(api, key=key("A"), install_key=install_key.reveal(), name="printer")
        assert (by_key.status_code, by_key.json()["device"]) == (201, "printer")
        _, approved = await tenant.install_keys.add(
            "asked", lifetime=3600, max_uses=5, needs_approval=True
        )
        path = "/api/devices/SN-9/ssh-keys"
        waiting = await post(api, path=path, key=key("B"), install_key=approved.reveal())
        assert waiting.status_code == 202
        secret = waiting.json()["secret"]
        assert (await post(api, path=path, key=key("B"), secret=secret)).status_code == 202
        (pairing,) = [p for p in (await tenant.pairings.page()).items if p.state == "open"]
        # The operator compares this with what the device shows; no other key gets in by it.
        assert pairing.fingerprint == f"SSH key {parse_public_key(key('B')).fingerprint}"
        await tenant.pairings.approve(pairing.id, name="scanner")
        swapped = await post(api, path=path, key=key("A"), secret=secret)
        assert (swapped.status_code, swapped.json()["code"]) == (409, "wrong_key")
        let_in = await post(api, path=path, key=key("B"), secret=secret)
        assert (let_in.status_code, let_in.json()["device"]) == (201, "scanner")
        by_operator = await post(api, token, key=key("C"))
        assert (by_operator.status_code, by_operator.json()["token"]) == (201, None)


async def test_without_a_proof_there_is_nothing(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        viewer = await person(api, "viewer", "viewer")
        stranger = await person(api, "stranger", tenant="acme")
        _, tenant = await tenant_of(api, "admin")
        await tenant.devices.add("cam1", serial="SN-7")
        assert (await post(api, key=SSH_KEY)).status_code == 401
        assert (await post(api, viewer.token, key=SSH_KEY)).status_code == 403
        assert (await post(api, stranger.token, key=SSH_KEY)).status_code == 404
        for proof, code in (
            ({"code": "BCDF-GHJK"}, "code_unknown"),
            ({"install_key": "tmk_no"}, "key_unknown"),
            ({"secret": "tmp_no"}, "pairing_unknown"),
            ({"token": "no"}, "key_unknown"),
            ({"token": "no", "code": "BCDF-GHJK"}, "invalid"),
        ):
            answer = await post(api, key=SSH_KEY, **proof)
            assert (answer.status_code, answer.json()["code"]) == (409, code), proof
