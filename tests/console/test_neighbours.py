"""What a device's page can do to the console in the browser of a person who is signed in there.

To a browser a device is the same site as the console where both are below one domain, and so the
browser sends the console's cookie along. Here both are at 127.0.0.1, at two ports, which are one
site too.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from support.browser import BrowserPage
from support.consoles import console
from support.http_rig import Peer
from support.origin import Origin, serving
from tunnelmux.config import Address

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PATIENCE = 60  # seconds for a step: a net under a browser that hangs

MARK = "document.title === 'over'"


@asynccontextmanager
async def device_page(script: str) -> AsyncIterator[Address]:
    """A page with this script, as a device could serve it."""
    html = f"<!doctype html><title>device</title><body><script>{script}</script>".encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"

    async def page(peer: Peer, _head: bytes) -> None:
        await peer.stream.send_all(head + b"Content-Length: %d\r\n\r\n" % len(html) + html)

    origin = Origin()
    origin.pages[b"/"] = page
    async with serving(origin.handle) as address:
        yield address


async def visit(page: BrowserPage, url: str) -> None:
    with trio.fail_after(PATIENCE):
        await page.goto(url)
        await page.wait_until(f"location.href === {url!r} && {MARK}")


def frame(url: str) -> str:
    """A script that shows this in a frame, as a promise."""
    return (
        "new Promise((done) => { const one = document.createElement('iframe');"
        f" one.onload = done; one.src = {json.dumps(url)}; document.body.append(one); }})"
    )


def ways_to_ask(url: str) -> list[str]:
    """Scripts by which a page asks for this with the cookies of its visitor, as promises."""
    text = json.dumps(url)
    picture = (
        "new Promise((done) => { const one = new Image();"
        f" one.onload = one.onerror = done; one.src = {text}; }})"
    )
    script = f"fetch({text}, {{mode: 'no-cors', credentials: 'include'}}).catch(() => 0)"
    return [script, picture, frame(url)]


async def test_a_devices_page_spends_nothing_of_a_person(tmp_path: Path, page: BrowserPage) -> None:
    async with console(tmp_path) as here:
        ada = await here.sign_in("ada", "owner")
        await here.show_cookies(page, ada)
        base, followers = here.api.base, here.api.running.api.followers
        events = (
            "new Promise((done) => { const one = new EventSource("
            f"{json.dumps(base + '/api/events')}, {{withCredentials: true}});"
            " one.onopen = one.onerror = done; })"
        )
        # More than the wrong codes of one person within the period.
        guess = f"{base}/pair?code=BCDF-GHJK"
        guesses = [way for n in range(8) for way in ways_to_ask(f"{guess}&n={n}")]
        sign_ins = [frame(f"{base}/api/auth/login")]
        taken = []
        for promises in ([events] * 3, guesses, sign_ins):
            script = f"Promise.all([{','.join(promises)}]).then(() => document.title = 'over')"
            async with device_page(script) as address:
                await visit(page, f"http://{address}/")
                taken.append(followers.taken)
        assert taken == [0, 0, 0]
        await here.page(ada, "/pair?code=BCDF-GHJK")  # 429 where none is left
        cookies = (await page.call("Network.getCookies", urls=[base]))["cookies"]
        assert [one["name"] for one in cookies] == ["__Host-tunnelmux"]


async def test_a_link_on_another_page_leads_to_the_console(
    tmp_path: Path, page: BrowserPage
) -> None:
    async with console(tmp_path) as here:
        await here.show_cookies(page, await here.sign_in("ada", "owner"))
        url = here.api.base + "/pair?code=BCDF-GHJK"
        async with device_page(f"location = {json.dumps(url)}") as address:
            with trio.fail_after(PATIENCE):
                await page.goto(f"http://{address}/")
                await page.wait_until(f"location.href === {url!r} && document.querySelector('h1')")
