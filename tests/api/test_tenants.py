"""Tenants over REST: who may make, see and disable them."""

from __future__ import annotations

from pathlib import Path

from support.apis import live_api
from support.tenants import person


async def test_an_owner_of_the_default_tenant_makes_one_and_is_in_it(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        owner = await person(api, "owner")
        made = await api.call(
            "POST",
            "/api/tenants",
            owner.token,
            json={"name": "acme", "display_name": "ACME", "owner_email": "wile@example.com"},
        )
        assert made.status_code == 201
        tenant = made.json()["tenant"]
        assert (tenant["name"], tenant["display_name"], tenant["enabled"]) == ("acme", "ACME", True)
        invitation = made.json()["invitation"]
        assert invitation["url"].startswith(f"{api.base}/invitation#tmi_")
        assert invitation["invitation"]["role"] == "owner"
        me = (await api.call("GET", "/api/auth/me", owner.token)).json()
        assert {(item["tenant"], item["role"]) for item in me["tenants"]} == {
            ("default", "owner"),
            ("acme", "owner"),
        }
        listed = (await api.call("GET", "/api/tenants", owner.token)).json()
        assert [item["name"] for item in listed["items"]] == ["acme", "default"]
        one = await api.call("GET", f"/api/tenants/{tenant['id']}", owner.token)
        assert one.json() == tenant
        again = await api.call("POST", "/api/tenants", owner.token, json={"name": "acme"})
        assert (again.status_code, again.json()["code"]) == (409, "taken")


async def test_a_tenant_that_is_disabled_gives_no_rights_until_it_is_enabled(
    tmp_path: Path,
) -> None:
    async with live_api(tmp_path) as api:
        owner = await person(api, "owner")
        member = await person(api, "member", tenant="acme")
        path = f"/api/tenants/{member.tenant_id}"
        for enabled, status in ((False, 401), (True, 200)):
            changed = await api.call("PATCH", path, owner.token, json={"enabled": enabled})
            assert (changed.status_code, changed.json()["enabled"]) == (200, enabled)
            answer = await api.call("GET", "/api/devices", member.token)
            assert answer.status_code == status
        own = f"/api/tenants/{owner.tenant_id}"
        refused = await api.call("PATCH", own, owner.token, json={"enabled": False})
        assert (refused.status_code, refused.json()["code"]) == (409, "default_tenant")
        assert (await api.call("GET", "/api/devices", owner.token)).status_code == 200


async def test_to_others_there_are_no_tenants(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        admin = await person(api, "admin", "admin")
        stranger = await person(api, "stranger", tenant="acme")
        for caller in (admin, stranger):
            for method in ("GET", "POST"):
                answer = await api.call(
                    method, "/api/tenants", caller.token, json={"name": "another"}
                )
                assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_role")
        for tenant_id in (admin.tenant_id, stranger.tenant_id):
            answer = await api.call("GET", f"/api/tenants/{tenant_id}", stranger.token)
            assert answer.status_code == 404
