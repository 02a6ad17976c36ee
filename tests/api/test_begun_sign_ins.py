"""Sign-ins under way, which browsers keep: many from one address, several tabs, and what is worth
nothing."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import sqlalchemy as sa
import trio
from structlog.testing import capture_logs

from support.apis import LiveApi, live_api
from support.fake_oidc import FakeProvider
from support.oidc import Browser
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
from tunnelmux.api.browser_sessions.begun import SIGN_IN_TIME
from tunnelmux.api.browser_sessions.cookie import BEGUN, COOKIE
from tunnelmux.api.browser_sessions.keys import new_key_line
from tunnelmux.config.api import OIDCConfig

pytestmark = pytest.mark.timeout(120)


def begun_in(browser: Browser, api: LiveApi) -> dict[str, str]:
    return {name: value for name, value in jar_of(browser, api).items() if name.startswith(BEGUN)}


def state_in(page: str) -> str:
    return parse_qs(urlsplit(page).query)["state"][0]


async def is_refused(browser: Browser, api: LiveApi, fake: FakeProvider, page: str) -> bool:
    answer = await come_back(browser, api, fake, page)
    assert isinstance(answer, httpx2.Response)
    assert (answer.status_code, answer.json()["code"]) == (400, "stale_sign_in")
    return await who(browser, api) is None


def rows(folder: Path) -> int:
    """In the tables that sign-ins are kept in."""
    engine = sa.create_engine(f"sqlite:///{folder}/registry.db")
    with engine.connect() as connection:
        found = [
            connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in ("browser_sessions", "used_once", "guesses")
        ]
    engine.dispose()
    return sum(found)


@pytest.mark.slow
async def test_four_hundred_who_begin_keep_out_none_of_their_neighbours(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):

        async def begin_some() -> None:
            for _ in range(100):
                await begin(api.browser(), api, fake)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(begin_some)
        assert rows(tmp_path) == 0
        browser = api.browser()
        await sign_in(browser, api, fake)
        assert await who(browser, api) == "alice@example.com"


async def test_an_answer_that_is_not_believed_leaves_nothing_behind(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        fake.claims["nonce"] = "another"
        browser = api.browser()
        answer = await come_back(browser, api, fake, await begin(browser, api, fake))
        assert isinstance(answer, httpx2.Response)
        assert answer.json()["code"] == "sign_in_failed"
        assert rows(tmp_path) == 0


async def test_answers_that_are_not_believed_do_not_fill_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.observability.repeated._OF_SOURCE", 2)
    with capture_logs() as lines:
        async with api_with_fake(tmp_path) as (api, fake):
            fake.claims["nonce"] = "another"
            for _ in range(4):
                browser = api.browser()
                await come_back(browser, api, fake, await begin(browser, api, fake))
    refused = [line for line in lines if line["event"] == "sign-in refused"]
    assert len(refused) == 2
    assert {line["address"] for line in refused} == {"127.0.0.1"}


# Whose it is


async def test_an_answer_counts_only_where_the_sign_in_began(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        theirs = api.browser()
        page = await begin(theirs, api, fake)
        (value,) = begun_in(theirs, api).values()
        for victim in (api.browser(), api.browser()):
            assert await is_refused(victim, api, fake, page)
            mine = state_in(await begin(victim, api, fake))
            assert await is_refused(victim, api, fake, page)
            (name,) = begun_in(victim, api)
            assert name == BEGUN + mine[:12]
            jar_of(victim, api)[name] = value  # a foreign one under the right name
            assert await is_refused(victim, api, fake, page.replace(state_in(page), mine))
        # A state that only begins as it should.
        assert await is_refused(
            theirs, api, fake, page.replace(state_in(page), f"{state_in(page)}x")
        )
        assert fake.token_requests == []
        assert await come_back(theirs, api, fake, page) == f"{api.base}/"


async def test_an_altered_one_is_worth_nothing(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        await sign_in(browser, api, fake)
        session = cookie_of(browser, api)
        page = await begin(browser, api, fake)
        ((name, value),) = begun_in(browser, api).items()
        sealed = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
        altered = [
            base64.urlsafe_b64encode(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
            for at in (0, 8, 12, len(sealed) // 2, len(sealed) - 1)
        ]
        shorter = [value[:-4], value[:20], value[:3], "", "=", "*", session]
        for bad in [*(text.decode("ascii") for text in altered), *shorter]:
            other = api.browser()
            jar_of(other, api)[name] = bad
            assert await is_refused(other, api, fake, page), bad
        assert len(fake.token_requests) == 1
        # Nor is one a session.
        assert await who(browser_with(api, value), api) is None
        assert await come_back(browser_with(api, **{name: value}), api, fake, page) != ""
        assert len(fake.token_requests) == 2


async def test_one_is_good_for_ten_minutes(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        service = api.running.api.sign_in
        begun = service._now()
        service._now = lambda: begun
        pages = {}
        for late in (SIGN_IN_TIME - 1, SIGN_IN_TIME):
            browser = api.browser()
            pages[late] = (browser, await begin(browser, api, fake))
        for late, (browser, page) in pages.items():
            service._now = lambda late=late: begun + late  # type: ignore[misc]
            if late < SIGN_IN_TIME:
                assert await come_back(browser, api, fake, page) == f"{api.base}/"
            else:
                assert await is_refused(browser, api, fake, page)
                await begin(browser, api, fake)
                assert len(begun_in(browser, api)) == 1  # the expired one is gone


# Once


async def test_an_answer_counts_once(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        page = await begin(browser, api, fake)
        copied = begun_in(browser, api)
        await come_back(browser, api, fake, page)
        assert begun_in(browser, api) == {}
        again = await come_back(browser, api, fake, page)
        assert again == f"{api.base}/"  # the valid session wins over the stale state
        assert len(fake.token_requests) == 1
        # Also where the provider takes a code twice, and with a copy of the cookie.
        assert await is_refused(browser_with(api, **copied), api, fake, page)
        assert await who(browser, api) is not None


async def test_the_provider_sees_a_code_once_when_a_page_is_loaded_twice(tmp_path: Path) -> None:
    # RFC 6749 4.1.2: a provider that sees it twice revokes what it gave for it.
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        page = await begin(browser, api, fake)
        fake.holds = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                come_back, browser_with(api, **begun_in(browser, api)), api, fake, page
            )
            with trio.fail_after(60):
                await fake.asked.wait()
            assert await is_refused(browser_with(api, **begun_in(browser, api)), api, fake, page)
            fake.holds.set()
        assert len(fake.token_requests) == 1


async def test_what_fails_at_the_provider_may_be_tried_again(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        page = await begin(browser, api, fake)
        fake.token_answer = lambda _: b"no tokens"
        answer = await come_back(browser, api, fake, page)
        assert isinstance(answer, httpx2.Response)
        fake.token_answer = None
        assert await come_back(browser, api, fake, page) == f"{api.base}/"


async def test_two_copies_share_what_they_have_begun(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (one, fake):

        @asynccontextmanager
        async def same(_base: str) -> Any:
            yield OIDCConfig(issuer=fake.issuer, client_id=fake.client_id, timeout=30)

        async with live_api(tmp_path, same, public_url=one.base) as other:
            browser = one.browser()
            page = await begin(browser, one, fake, "/devices")
            elsewhere = browser_with(other, **begun_in(browser, one))
            callback = f"{other.base}/api/auth/callback?{fake.callback_for(page)}"
            landed = await elsewhere.request("GET", callback, stop_at=f"{other.base}/")
            assert landed == f"{other.base}/devices"
            assert await who(browser_with(one, cookie_of(elsewhere, other)), one) is not None
            assert await is_refused(browser_with(one, **begun_in(browser, one)), one, fake, page)


async def test_keys_are_rotated_while_people_are_signing_in(tmp_path: Path) -> None:
    key_file = tmp_path / "session-keys"
    kept: dict[str, str] = {}
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        page = await begin(browser, api, fake)
        kept = begun_in(browser, api)
    first = key_file.read_text()
    key_file.write_text(new_key_line())
    async with api_with_fake(tmp_path) as (api, fake):
        assert await is_refused(browser_with(api, **kept), api, fake, page)
        key_file.write_text(key_file.read_text() + first)
    async with api_with_fake(tmp_path) as (api, fake):
        assert await come_back(browser_with(api, **kept), api, fake, page) == f"{api.base}/"


# Tabs


async def test_eight_tabs_sign_in_at_once_and_a_ninth_takes_the_oldests_place(
    tmp_path: Path,
) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        pages = [await begin(browser, api, fake, f"/{number}") for number in range(9)]
        landed = [
            await come_back(browser, api, fake, page, code=f"code-{number}")
            for number, page in enumerate(pages[1:], 1)
        ]
        assert landed == [f"{api.base}/{number}" for number in range(1, 9)]
        assert await come_back(browser, api, fake, pages[0]) == f"{api.base}/"
        assert len(fake.token_requests) == 8
        assert jar_of(browser, api).keys() == {COOKIE}


async def test_tabs_that_begin_at_the_same_moment_are_all_kept(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()  # which has never been here
        pages: list[str] = []

        async def tab() -> None:
            one = api.browser()
            pages.append(await begin(one, api, fake))
            jar_of(browser, api).update(begun_in(one, api))

        async with trio.open_nursery() as nursery:
            for _ in range(7):
                nursery.start_soon(tab)
        for number, page in enumerate(pages):
            landed = await come_back(browser, api, fake, page, code=f"code-{number}")
            assert landed == f"{api.base}/"
        assert len(fake.token_requests) == 7


async def test_what_a_browser_has_to_send_is_bounded(tmp_path: Path) -> None:
    async with api_with_fake(tmp_path) as (api, fake):
        browser = api.browser()
        page, longest = "", "/" + "\u20ac" * 682 + "a"  # 2,048 bytes
        for _ in range(12):
            page = await begin(browser, api, fake, longest)
            sent = begun_in(browser, api)
            assert sum(len(name) + len(value) for name, value in sent.items()) <= 6000
            assert all(len(name) + len(value) < 4000 for name, value in sent.items())
        landed = await come_back(browser, api, fake, page)
        assert isinstance(landed, str)
        assert httpx2.URL(landed).path == longest
        page = await begin(browser, api, fake, f"{longest}a")
        assert await come_back(browser, api, fake, page, code="b") == f"{api.base}/"


async def test_a_script_begins_no_sign_in(tmp_path: Path) -> None:
    """It could fill a person's browser with their cookies."""
    async with api_with_fake(tmp_path) as (api, _):
        for mode in ("cors", "no-cors", "same-origin", "websocket"):
            answer = await api.browser().get(
                f"{api.base}/api/auth/login", **{"sec-fetch-mode": mode}
            )
            assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
            assert "set-cookie" not in answer.headers
