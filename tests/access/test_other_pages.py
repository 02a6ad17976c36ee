"""What pages of other sites and of other devices can do to a service that asks who visitors are.

A browser adds the proof by itself: a cookie, and a password that the person has entered before.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from support.browser import BrowserPage
from support.guarded import BROWSER, PROGRAM, Guarded, guarded
from support.http_rig import Peer
from support.origin import Origin, serving
from support.visiting import visiting
from tunnelmux.access.passwords import hash_password
from tunnelmux.config.access import AccessConfig

PASSWORD = {"Authorization": "Basic YW5uYTpnZWhlaW0="}
RULE = AccessConfig(let_in=["basic"], users=["anna:" + hash_password("geheim")])
FROM = {"Origin": "http://dev2.localhost"}
SITE = {"Sec-Fetch-Site": "same-site"}
OWN = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
FOLLOWED = SITE | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
CAUSED = [
    ("GET", SITE | {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}),
    ("GET", SITE | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}),
    ("GET", FOLLOWED | {"Sec-Purpose": "prefetch"}),
    ("GET", FROM),
    ("POST", FOLLOWED),
    ("POST", FROM),
]


@pytest.mark.parametrize("proof", ["cookie", "password"])
async def test_another_page_cannot_use_a_proof_that_a_browser_adds(
    proof: str, tmp_path: Path
) -> None:
    """By h11 first, and then in the pump."""

    async def check(this: Guarded, shown: dict[str, str]) -> None:
        for _ in range(2):
            for method, headers in CAUSED:
                answer = await this.ask("/relay?on=1", PROGRAM | shown | headers, method=method)
                assert answer.status == 403, (method, headers)
            for method, headers in (
                ("GET", FOLLOWED),
                ("GET", OWN),
                ("POST", OWN),
                ("GET", {}),
                ("POST", {}),
            ):
                answer = await this.ask("/relay?on=1", PROGRAM | shown | headers, method=method)
                assert answer.status == 200, (method, headers)
            await this.warm_up(shown)

    if proof == "password":
        async with guarded(RULE) as this:
            await check(this, PASSWORD)
        return
    async with visiting(tmp_path) as world:
        await check(world.this, await world.come_in(await world.person()))


async def test_a_rule_can_let_other_pages_in() -> None:
    rule = AccessConfig(let_in=["basic"], users=RULE.users, preflights=True)
    async with guarded(rule) as this:
        for method, headers in CAUSED:
            answer = await this.ask("/x", BROWSER | PASSWORD | headers, method=method)
            assert answer.status == 200


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_form_on_another_site_does_not_use_a_password_that_chromium_knows(
    page: BrowserPage,
) -> None:
    async with guarded(RULE) as this:
        url = f"http://dev1.localhost:{this.port}"
        form = (
            f"<form method=post action={url}/relay?on=1></form><script>document.forms[0].submit()"
        )
        origin = Origin()

        async def attack(peer: Peer, _head: bytes) -> None:
            html = f"<!doctype html><body>{form}</script>".encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
            await peer.send(head + b"Content-Length: %d\r\n\r\n" % len(html) + html)

        origin.pages[b"/"] = attack
        async with serving(origin.handle) as address:
            with trio.fail_after(60):
                known = url.replace("//", "//anna:geheim@")
                await page.goto(f"{known}/hello")
                await page.wait_until("document.body?.innerText.startsWith('GET /hello ')")
                await page.goto(f"http://{address}/")
                there = f"location.href === {url + '/relay?on=1'!r}"
                await page.wait_until(f"{there} && document.body?.innerText")
                shown = await page.evaluate("document.body.innerText")
        assert "made by another site's page" in shown
