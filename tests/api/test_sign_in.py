"""Signing in: through a real provider, in several tabs and browsers, and what must not work."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import trio
from structlog.testing import capture_logs

from support.apis import LiveApi, live_api
from support.oidc import OidcProvider, oidc_provider
from support.signing_in import (
    api_with_fake,
    begin,
    browser_with,
    come_back,
    cookie_of,
    jar_of,
    sign_in,
    who,
)
from support.tenants import person
from tunnelmux.api.browser_sessions.cookie import COOKIE
from tunnelmux.api.browser_sessions.keys import new_key_line
from tunnelmux.config.api import OIDCConfig, RoleMapping
from tunnelmux.observability import RepeatedLines

pytestmark = pytest.mark.timeout(120)


# A real provider


async def test_a_person_signs_in_and_the_id_changes(tmp_path: Path, real_provider: Any) -> None:
    async with live_api(tmp_path, real_provider) as api:
        browser = api.browser()
        for name in ("bob", "alice"):
            before = jar_of(browser, api).get(COOKIE, "none")
            browser.cookies = {urlsplit(api.base).netloc: {COOKIE: before}}  # not the provider's
            me = await browser.sign_in(api.base, name)
            assert not isinstance(me, str)
            assert me.json()["email"] == f"{name}@example.com"
            assert cookie_of(browser, api) != before
            assert await who(browser_with(api, before), api) is None


async def test_a_provider_that_starts_anew_has_other_keys(tmp_path: Path) -> None:
    providers: list[OidcProvider] = []

    @asynccontextmanager
    async def provider(base: str) -> AsyncIterator[OIDCConfig]:
        async with oidc_provider(base) as running:
            providers.append(running)
            yield OIDCConfig(
                issuer=running.issuer, client_id="public", prompt="consent", timeout=60
            )

    async with live_api(tmp_path, provider) as api:
        first = api.browser()
        await first.sign_in(api.base, "alice")
        await providers[0].restart()
        api.running.api.sign_in.provider._keys_read -= 61  # a minute later
        second = api.browser()
        await second.sign_in(api.base, "bob")
        assert await who(second, api) == "bob@example.com"
        assert await who(first, api) == "alice@example.com"  # her session here goes on


@pytest.mark.slow
async def test_fifty_at_once_are_fifty_people(
    tmp_path: Path, real_provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They share an address, so most wait for their turn: longer where the machine is busy.
    monkeypatch.setattr("tunnelmux.api.turns._PATIENCE", 90.0)
    async with live_api(tmp_path, real_provider) as api:
        found: dict[str, str | None] = {}

        async def one(name: str) -> None:
            browser = api.browser()
            answer = await browser.sign_in(api.base, name)
            assert not isinstance(answer, str)
            assert answer.status_code == 200, answer.text
            found[name] = await who(browser, api)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, f"person{number}")
        assert found == {name: f"{name}@example.com" for name in found}
        assert len(found) == 50


async def test_signing_out_ends_it_here_and_at_the_provider(
    tmp_path: Path, real_provider: Any
) -> None:
    async with live_api(tmp_path, real_provider) as api:
        browser = api.browser()
        await browser.sign_in(api.base, "alice")
        there = (await browser.post(f"{api.base}/api/auth/logout")).json()["redirect"]
        assert await who(browser, api) is None
        page = await browser.get(there)
        assert "logout" in page.text.lower()


@asynccontextmanager
async def api_with_real(
    folder: Path,
) -> AsyncIterator[tuple[LiveApi, OidcProvider]]:
    """An API at npm's provider, as a public client, and that provider."""
    found: list[OidcProvider] = []

    @asynccontextmanager
    async def provider(base: str) -> AsyncIterator[OIDCConfig]:
        async with oidc_provider(base) as running:
            found.append(running)
            yield OIDCConfig(
                issuer=running.issuer, client_id="public", prompt="consent", timeout=60
            )

    async with live_api(folder, provider) as api:
        yield api, found[0]


@pytest.mark.slow
async def test_the_provider_ends_one_persons_session_by_itself(tmp_path: Path) -> None:
    async with api_with_real(tmp_path) as (api, provider):
        alice, bob = api.browser(), api.browser()
        await alice.sign_in(api.base, "alice")
        await bob.sign_in(api.base, "bob")
        page = await alice.get(f"{provider.issuer}/session/end")
        xsrf = re.search(r'name="xsrf" value="(\w+)"', page.text)
        assert xsrf is not None
        form = {"xsrf": xsrf[1], "logout": "yes"}
        await alice.request("POST", f"{provider.issuer}/session/end/confirm", data=form)
        await provider.program.expect("logout told", within=30)
        assert await who(alice, api) is None
        assert await who(bob, api) == "bob@example.com"


@pytest.mark.slow
async def test_a_rotated_refresh_token_is_used_once_by_twenty_requests(tmp_path: Path) -> None:
    async with api_with_real(tmp_path) as (api, provider):
        browser = api.browser()
        health = "/api/health"  # which is not asked for: that would refresh already
        await browser.sign_in(api.base, "alice", return_to=health, stop_at=f"{api.base}{health}")
        cookie, found = cookie_of(browser, api), []
        # The token ends in ten seconds; the next one has an hour again, however late a request is.
        api.running.api.sign_in._now = lambda: time.time() + 3590

        async def ask() -> None:
            found.append(await who(browser_with(api, cookie), api))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert found == ["alice@example.com"] * 20
        await provider.program.expect("grant", within=30)
        kinds = [told["type"] for told in provider.program.told() if told["event"] == "grant"]
        assert kinds == ["refresh_token"]


# Sign-ins that must not count


async def test_an_address_that_the_provider_has_not_verified_is_not_kept(tmp_path: Path) -> None:
    """Certificates name members by it, and services are told it."""
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        await sign_in(browser, api, fake)
        assert await who(browser, api) == "alice@example.com"
        for verified in (False, None, "true", 1):
            fake.claims.update(email="boss@example.com", email_verified=verified)
            other = api.browser()
            page = await begin(other, api, fake)
            await come_back(other, api, fake, page)
            assert await who(other, api) == ""


async def test_a_wrong_answer_signs_nobody_in(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        fake.claims["nonce"] = "another"
        page = await begin(browser, api, fake)
        answer = await come_back(browser, api, fake, page)
        assert isinstance(answer, httpx2.Response)
        assert (answer.status_code, answer.json()["code"]) == (400, "sign_in_failed")
        assert await who(browser, api) is None


async def test_a_provider_that_is_away_is_said_so(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        answer = await api.call("GET", "/api/auth/login")
        assert (answer.status_code, answer.json()["code"]) == (502, "provider_away")


async def test_a_provider_that_is_away_does_not_fill_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.observability.repeated._OF_SOURCE", 2)
    with capture_logs() as lines:
        async with live_api(tmp_path) as api:
            for _ in range(4):
                assert (await api.call("GET", "/api/auth/login")).status_code == 502
    assert len([line for line in lines if line["event"] == "provider away"]) == 2
    (rest,) = [line for line in lines if line["event"] == "lines left out"]
    assert rest["of"] == "provider away"


def damage(folder: Path) -> None:
    """Make the registry's files something else."""
    for file in folder.glob("registry.db*"):
        file.write_bytes(b"this is no database " * 400)


async def test_a_registry_that_fails_does_not_fill_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.observability.repeated._OF_SOURCE", 2)
    monkeypatch.setattr("tunnelmux.api.problems._failures", RepeatedLines("registry failed"))
    with capture_logs() as lines:
        async with live_api(tmp_path) as api:
            damage(tmp_path)
            for number in range(4):
                answer = await api.call("GET", "/api/devices", f"tmx_{number}{'a' * 42}")
                assert (answer.status_code, answer.json()["code"]) == (503, "registry_failed")
    assert len([line for line in lines if line["event"] == "registry failed"]) == 2


@pytest.mark.parametrize(
    "elsewhere",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example/",
        "/ok\r\nSet-Cookie: a=b",
        "javascript:alert(1)",
        "\t//evil.example",
        "evil.example",
        "",
        "/" + "a" * 3000,
    ],
)
async def test_signing_in_leads_nowhere_else(tmp_path: Path, elsewhere: str) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        page = await begin(browser, api, fake, elsewhere)
        assert await come_back(browser, api, fake, page) == f"{api.base}/"


async def test_signing_in_leads_back_to_a_page_of_this_server(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        page = await begin(browser, api, fake, "/devices?online=true#x")
        assert await come_back(browser, api, fake, page) == f"{api.base}/devices?online=true#x"


async def test_who_opens_a_page_is_sent_to_sign_in_and_comes_back(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        url = f"{api.base}/api/devices?online=true&name=a%2Fb"
        program = await api.call("GET", "/api/devices?online=true")
        assert (program.status_code, program.json()["code"]) == (401, "not_signed_in")
        browser = api.browser()
        navigation = {"sec-fetch-mode": "navigate"}
        page = await browser.request("GET", url, stop_at=fake.issuer, headers=navigation)
        assert isinstance(page, str)
        assert await come_back(browser, api, fake, page) == url
        changing = await browser.request("POST", url, headers=navigation)
        assert not isinstance(changing, str)
        fetched = await api.browser().request("GET", url, headers={"sec-fetch-mode": "cors"})
        assert not isinstance(fetched, str)
        assert fetched.status_code == 401


# More rights than before


async def test_an_invitation_that_is_accepted_changes_the_cookie(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        owner = await person(api, "owner")
        invited = await api.call(
            "POST",
            "/api/invitations",
            owner.token,
            json={"email": "alice@example.com", "role": "operator"},
        )
        secret = invited.json()["url"].partition("#")[2]
        browser = api.browser()
        await sign_in(browser, api, fake)
        before = cookie_of(browser, api)
        refused = await browser.get(f"{api.base}/api/devices")
        assert (refused.status_code, refused.json()["code"]) == (403, "no_tenant")
        accepted = await browser.post(f"{api.base}/api/invitations/accept", json={"secret": secret})
        assert accepted.json() == {
            "tenant_id": owner.tenant_id,
            "tenant": "default",
            "role": "operator",
        }
        assert (await browser.get(f"{api.base}/api/devices")).status_code == 200
        assert await who(browser_with(api, before), api) is None
        again = await browser.post(f"{api.base}/api/invitations/accept", json={"secret": secret})
        assert (again.status_code, again.json()["code"]) == (409, "invitation_used")


async def test_a_tenant_with_more_rights_changes_the_cookie(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        await sign_in(browser, api, fake)
        users = api.running.api.installation.users
        tenants = {}
        for name, role in (("low", "viewer"), ("high", "admin")):
            tenants[name] = (await person(api, f"owner of {name}", tenant=name)).tenant_id
            await users.grant(tenants[name], role, issuer=fake.issuer, subject="alice", force=True)
        cookies = []
        for name in ("low", "high", "low"):
            chosen = await browser.request(
                "PUT",
                f"{api.base}/api/auth/tenant",
                json={"tenant_id": tenants[name]},
                headers={"sec-fetch-site": "same-origin"},
            )
            assert not isinstance(chosen, str)
            assert chosen.status_code == 204
            me = (await browser.get(f"{api.base}/api/auth/me")).json()
            assert me["tenant_id"] == tenants[name]
            cookies.append(cookie_of(browser, api))
        nothing_to_viewer, viewer_to_admin, admin_to_viewer = cookies
        assert nothing_to_viewer != viewer_to_admin == admin_to_viewer
        assert await who(browser_with(api, nothing_to_viewer), api) is None


async def test_a_role_that_another_person_raises_changes_the_cookie(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        owner = await person(api, "owner")
        users = api.running.api.installation.users
        await users.grant(
            owner.tenant_id, "viewer", issuer=fake.issuer, subject="alice", force=True
        )
        browser = api.browser()
        await sign_in(browser, api, fake)
        user_id = (await browser.get(f"{api.base}/api/auth/me")).json()["user_id"]

        async def becomes(role: str) -> tuple[str, str]:
            """The cookies before and after the person's next request under another role."""
            before = cookie_of(browser, api)
            changed = await api.call(
                "PUT", f"/api/members/{user_id}", owner.token, json={"role": role}
            )
            assert changed.status_code == 200
            assert (await browser.get(f"{api.base}/api/auth/me")).json()["role"] == role
            return before, cookie_of(browser, api)

        before, after = await becomes("admin")
        assert before != after
        assert await who(browser_with(api, before), api) is None
        assert await who(browser, api) == "alice@example.com"
        before, after = await becomes("operator")  # fewer rights need no other id
        assert before == after
        before, after = await becomes("admin")
        assert before != after
        assert await who(browser_with(api, before), api) is None


async def test_requests_at_the_moment_of_a_raise_leave_one_cookie_and_no_extra_right(
    tmp_path: Path,
) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        owner = await person(api, "owner")
        users = api.running.api.installation.users
        tenant = owner.tenant_id
        await users.grant(tenant, "viewer", issuer=fake.issuer, subject="alice", force=True)
        browser = api.browser()
        await sign_in(browser, api, fake)
        before = cookie_of(browser, api)
        await users.grant(tenant, "admin", issuer=fake.issuer, subject="alice", force=True)
        answers: list[httpx2.Response] = []

        async def ask() -> None:
            answers.append(
                await api.client.get(
                    f"{api.base}/api/auth/me", headers={"cookie": f"{COOKIE}={before}"}
                )
            )

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask)
        renewed = [answer for answer in answers if "set-cookie" in answer.headers]
        assert [answer.json()["role"] for answer in renewed] == ["admin"]
        assert renewed[0].headers["cache-control"] == "no-store"
        others = [answer for answer in answers if answer not in renewed]
        assert {(answer.status_code, answer.json().get("role")) for answer in others} <= {
            (200, "viewer"),
            (401, None),
        }
        assert await who(browser_with(api, before), api) is None


async def test_a_public_page_leaves_the_raised_role_to_the_next_request(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        owner = await person(api, "owner")
        users = api.running.api.installation.users
        tenant = owner.tenant_id
        await users.grant(tenant, "viewer", issuer=fake.issuer, subject="alice", force=True)
        browser = api.browser()
        await sign_in(browser, api, fake)
        before = cookie_of(browser, api)
        await users.grant(tenant, "owner", issuer=fake.issuer, subject="alice", force=True)
        await browser.get(f"{api.base}/api/health")
        assert cookie_of(browser, api) == before
        await browser.get(f"{api.base}/api/auth/me")
        assert cookie_of(browser, api) != before


# Cookies


async def test_the_cookie_is_for_this_host_and_not_for_scripts(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        page = await begin(browser, api, fake)
        back = f"{api.base}/api/auth/callback?{fake.callback_for(page)}"
        sent = "; ".join(f"{name}={value}" for name, value in jar_of(browser, api).items())
        answer = await api.client.get(back, headers={"cookie": sent})
        fields = [field.lower() for field in answer.headers.get_list("set-cookie")]
        assert len(fields) == 2  # the session's, and the end of the sign-in's
        assert fields[0].startswith("__host-tunnelmux=")
        for field in fields:
            words = {word.strip() for word in field.split(";")}
            assert {"secure", "httponly", "samesite=lax", "path=/"} <= words
            assert "domain" not in field


async def test_an_altered_cookie_is_nobodys(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        await sign_in(browser, api, fake)
        good = cookie_of(browser, api)
        secret, key_id, mac = good.split(".")
        for bad in (
            good[:-2] + "AA",
            secret,
            f"{secret}.{key_id}",
            f"{secret}.other.{mac}",
            f"{secret[::-1]}.{key_id}.{mac}",
            "x",
            "..",
            "é.é.é",
        ):
            answer = await api.client.get(
                f"{api.base}/api/auth/me", headers={"cookie": f"{COOKIE}={bad}".encode()}
            )
            assert answer.status_code == 401, bad
        assert await who(browser_with(api, good), api) == "alice@example.com"


async def test_keys_are_rotated_while_people_are_signed_in(tmp_path: Path) -> None:
    key_file = tmp_path / "session-keys"
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        await sign_in(browser, api, fake)
        cookie = cookie_of(browser, api)
    first = key_file.read_text()
    key_file.write_text(new_key_line() + first)
    async with api_with_fake(tmp_path) as (api, _):
        assert await who(browser_with(api, cookie), api) == "alice@example.com"
    key_file.write_text(new_key_line())
    async with api_with_fake(tmp_path) as (api, _):
        assert await who(browser_with(api, cookie), api) is None


# Staying signed in, and signing out


async def test_expired_tokens_are_refreshed_once_whoever_hangs_up(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        fake.token_answer = lambda answer: _json(answer | {"expires_in": 10})
        await sign_in(browser, api, fake)
        fake.token_answer = None
        statuses: Counter[int] = Counter()

        async def ask(patience: float) -> None:
            with trio.move_on_after(patience):
                one = browser_with(api, cookie_of(browser, api))
                statuses[(await one.get(f"{api.base}/api/auth/me")).status_code] += 1

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, 0.001 if number == 0 else 30)
        kinds = Counter(form["grant_type"] for form, _ in fake.token_requests)
        assert kinds == {"authorization_code": 1, "refresh_token": 1}
        assert statuses[200] >= 19
        assert set(statuses) == {200}


async def test_a_session_that_the_provider_refuses_to_refresh_ends(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        fake.token_answer = lambda answer: _json(answer | {"expires_in": 10})
        await sign_in(browser, api, fake)
        fake.claims["sub"] = "mallory"  # the refreshed id_token is another person's
        assert await who(browser, api) is None


async def test_another_sites_page_cannot_sign_a_person_out(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        await sign_in(browser, api, fake)
        for headers in (
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://["},
            {"origin": f"{api.base}@evil.example"},
            {},
        ):
            answer = await browser.request("POST", f"{api.base}/api/auth/logout", headers=headers)
            assert isinstance(answer, httpx2.Response)
            assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
        assert await who(browser, api) == "alice@example.com"


async def test_only_the_cookie_of_exactly_this_name_is_a_session(tmp_path: Path) -> None:
    # A device's page may set a cookie for a whole domain under a name that looks like ours.
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        await sign_in(browser, api, fake)
        ours = f"{COOKIE}={cookie_of(browser, api)}".encode("ascii")
        for field, status in (
            (b"a=b;" + ours, 200),
            (b"\xa0" + ours, 401),
            (b"a=b; \x85" + ours, 401),
            (b"a=b;\x1f" + ours, 401),
            (ours + b"; " + ours, 401),
            (ours.lower(), 401),
        ):
            headers: Any = {"cookie": field}
            answer = await api.client.get(f"{api.base}/api/auth/me", headers=headers)
            assert answer.status_code == status, field


async def test_back_channel_logout_ends_the_sessions_it_names(tmp_path: Path) -> None:
    event = {"http://schemas.openid.net/event/backchannel-logout": {}}
    async with api_with_fake(tmp_path) as (api, fake):
        alice, bob = api.browser(), api.browser()
        fake.claims["sid"] = "session-of-alice"
        await sign_in(alice, api, fake, "alice")
        fake.claims["sid"] = "session-of-bob"
        await sign_in(bob, api, fake, "bob")
        token = fake.id_token(events=event, jti="1", sid="session-of-alice", sub=None)
        answers = [
            await api.call("POST", "/api/auth/backchannel-logout", data={"logout_token": token})
            for _ in range(2)
        ]
        assert answers[0].json() == {"ended": 1}
        assert answers[1].status_code == 400  # replayed
        assert await who(alice, api) is None
        assert await who(bob, api) == "bob@example.com"


# Roles from claims


async def test_claims_give_roles_and_take_them_back(tmp_path: Path) -> None:
    rows = [RoleMapping(value="staff", role="operator", tenant="default")]
    async with api_with_fake(tmp_path, role_claim="groups", roles=rows) as (api, fake):
        browser = api.browser()
        fake.claims["groups"] = ["staff", "other"]
        await sign_in(browser, api, fake)
        me = (await browser.get(f"{api.base}/api/auth/me")).json()
        assert (me["role"], [item["role"] for item in me["tenants"]]) == ("operator", ["operator"])
        fake.claims["groups"] = []
        await sign_in(browser, api, fake)
        me = (await browser.get(f"{api.base}/api/auth/me")).json()
        assert (me["role"], me["tenants"]) == (None, [])


def _json(answer: dict[str, Any]) -> bytes:
    return httpx2.Request("POST", "http://x", json=answer).content
