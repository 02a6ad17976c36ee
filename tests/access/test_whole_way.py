"""The whole way of a visitor: service, tunnelmux-api, provider and back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
import trio

from support.apis import LiveApi, live_api
from support.fake_oidc import fake_provider
from support.guarded import BROWSER, PROGRAM, guarded
from support.tenants import TEST, person
from support.visiting import path_of
from tunnelmux.config.api import OIDCConfig

pytestmark = pytest.mark.timeout(120)


@pytest.mark.slow
async def test_a_browser_signs_in_and_comes_back_to_what_it_wanted(tmp_path: Path) -> None:
    async with fake_provider() as fake:

        @asynccontextmanager
        async def provider(_base: str) -> AsyncIterator[OIDCConfig]:
            yield OIDCConfig(issuer=fake.issuer, client_id=fake.client_id, timeout=20)

        async with live_api(tmp_path, provider) as api:
            owner = await person(api, "owner")
            tenant = api.running.api.registry.tenant(owner.tenant_id, TEST)
            _, token = await tenant.devices.add("dev1")
            url = f"sqlite:///{tmp_path}/registry.db"
            await api.running.api.visitors.publish()
            async with guarded(registry_url=url, token=token) as this:
                await sign_in_and_visit(api, fake, this.port, tenant)


async def sign_in_and_visit(api: LiveApi, fake, port: int, tenant) -> None:  # type: ignore[no-untyped-def]
    fake.claims.update(sub="anna", email="anna@example.com", email_verified=True)
    await tenant.invitations.add("anna@example.com", "viewer", lifetime=600, issuer=fake.issuer)
    browser = api.browser()
    fields = BROWSER | {"Tunnelmux-Device": "dev1"}
    service = f"http://127.0.0.1:{port}"
    page = await browser.request("GET", f"{service}/x?y=1", headers=fields, stop_at=fake.issuer)
    assert isinstance(page, str)
    callback = f"{api.base}/api/auth/callback?{fake.callback_for(page, code='code-of-anna')}"
    answer = await browser.request("GET", callback, headers=fields)
    assert not isinstance(answer, str)
    assert answer.status_code == 200
    assert answer.text.startswith("GET /x?y=1 ")
    # A second service needs no second sign-in: the session at tunnelmux-api is there.
    before = len(fake.paths)
    answer = await browser.get(f"{service}/z", **fields)
    assert answer.status_code == 200
    assert len(fake.paths) == before
    # The session ends there, and with it what it was good for here.
    me = await browser.get(f"{api.base}/api/auth/me")
    assert me.status_code == 200
    assert (await browser.post(f"{api.base}/api/auth/logout")).status_code == 200
    with trio.fail_after(20):  # two seconds are promised; a busy machine gets more
        while answer.status_code != 401:
            with contextlib.suppress(httpx2.TransportError):  # one that is under way is cut
                answer = await browser.get(
                    f"{service}/z", **PROGRAM, **{"Tunnelmux-Device": "dev1"}
                )


@pytest.mark.slow
async def test_rules_and_links_are_made_over_rest(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        admin = await person(api, "admin", "admin")
        viewer = await person(api, "viewer", "viewer")
        tenant = api.running.api.registry.tenant(admin.tenant_id, TEST)
        device, token = await tenant.devices.add("dev1")
        path = f"/api/devices/{device.id}/access"
        await api.running.api.visitors.publish()
        async with guarded(registry_url=f"sqlite:///{tmp_path}/registry.db", token=token) as this:
            assert (await this.ask("/x", PROGRAM)).status == 401
            rule = {"let_in": ["public"]}
            assert (await api.call("PUT", path, viewer.token, json=rule)).status_code == 403
            answer = await api.call("PUT", path, admin.token, json=rule)
            assert answer.status_code == 200, answer.text
            assert answer.json()["ended"]["missing"] == []
            assert (await this.ask("/x", PROGRAM)).status == 200
            for bad in (
                {"let_in": []},
                {"let_in": ["public", "login"]},
                {"let_in": ["basic"]},
                {"let_in": ["basic"], "users": ["anna:geheim"]},
                {"let_in": ["login"], "user_field": "Cookie"},
                {"let_in": ["public"], "allow_from": ["here"]},
            ):
                answer = await api.call("PUT", path, admin.token, json=bad)
                assert answer.status_code == 422, (bad, answer.text)
            token_rule = {"let_in": ["token"], "tokens": ["deploy:" + "0" * 64]}
            answer = await api.call("PUT", f"{path}/web", admin.token, json=token_rule)
            assert answer.json()["rules"][1]["tokens"] == ["deploy"]
            assert (await this.ask("/x", PROGRAM)).status == 401
            answer = await api.call("DELETE", f"{path}/web", admin.token)
            assert [one["service"] for one in answer.json()["rules"]] == [""]
            assert (await this.ask("/x", PROGRAM)).status == 200
            assert (await api.call("DELETE", path, admin.token)).json()["rules"] == []
            assert (await this.ask("/x", PROGRAM)).status == 401
            links = f"/api/devices/{device.id}/links"
            answer = await api.call("POST", links, admin.token, json={"once": True, "note": "Ann"})
            assert answer.status_code == 201, answer.text
            path = path_of(answer.json()["url"])
            assert (await this.ask(path, BROWSER)).status == 200
            assert (await this.ask(path, BROWSER, method="POST")).status == 303
            listed = (await api.call("GET", links, admin.token)).json()["items"]
            assert [(one["note"], one["uses"]) for one in listed] == [("Ann", 1)]
            keys = (await api.call("GET", "/api/access/keys")).json()["keys"]
            assert [key["crv"] for key in keys] == ["Ed25519"]
            trail = (await api.call("GET", "/api/audit", admin.token)).json()["items"]
            assert {"access.set", "access.remove", "link.add"} <= {one["action"] for one in trail}
