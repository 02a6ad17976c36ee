"""A terminal in the browser: typed into a page, by the gateway, to a shell on a device."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
import trio_websocket

from support.browser import BrowserPage, browser_page
from support.consoles import Console, console
from support.gateways import SECRET, Site, User
from support.oidc import Browser
from tunnelmux.config import Secret
from tunnelmux.config.api import ApiLimits, GatewayEndpoint, ProxyEndpointConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

PATIENCE = 120  # seconds for a step: a net under what hangs

LIMITS = ApiLimits(max_terminals=2)


@asynccontextmanager
async def console_of(site: Site) -> AsyncIterator[Console]:
    """An API beside this site's gateway, which it knows by its host key."""
    gateway = GatewayEndpoint(
        connect=f"127.0.0.1:{site.port}",
        host_key_file=site.folder / "gateway-state" / "ssh_host_ed25519_key.pub",
    )
    folder = site.folder / "api"
    folder.mkdir()
    url = site.registry_url
    proxies = ProxyEndpointConfig(secret=Secret(SECRET))
    async with console(
        folder, registry_url=url, gateway=gateway, limits=LIMITS, proxies=proxies
    ) as here:
        yield here


class Shown:
    """One WebSocket of a terminal, and what came on it."""

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self.connection = connection
        self.text = b""
        self.told: list[dict[str, Any]] = []

    async def say(self, **word: object) -> None:
        await self.connection.send_message(json.dumps(word))

    async def type(self, text: str) -> None:
        await self.connection.send_message(text.encode())

    async def until(self, wanted: bytes) -> None:
        """Until this was shown."""
        while wanted not in self.text:
            await self._next()

    async def over(self) -> str:
        """How it ended."""
        while not self.told or self.told[-1]["kind"] != "over":
            await self._next()
        return str(self.told[-1]["story"])

    async def resume(self) -> str:
        """What to come back with."""
        while not self.told:
            await self._next()
        assert self.told[0]["kind"] == "open", self.told
        return str(self.told[0]["resume"])

    async def _next(self) -> None:
        with trio.fail_after(PATIENCE):
            message = await self.connection.get_message()
        if isinstance(message, bytes):
            self.text += message
        else:
            self.told.append(json.loads(message))


@asynccontextmanager
async def shown(here: Console, browser: Browser, site: Site) -> AsyncIterator[Shown]:
    """A WebSocket as a page of this server opens it."""
    parts = urlsplit(here.api.base)
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies[parts.netloc].items())
    headers = [(b"cookie", cookie.encode()), (b"origin", here.api.base.encode())]
    stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 0)
    async with stream, trio.open_nursery() as nursery:
        connection = await trio_websocket.wrap_client_stream(
            nursery,
            stream,
            parts.netloc,
            f"/api/devices/{site.device_id}/terminal",
            extra_headers=headers,
        )
        yield Shown(connection)
        nursery.cancel_scope.cancel()


async def test_a_terminal_outlives_its_connection_and_not_its_rights(site: Site) -> None:
    async with console_of(site) as here:
        browser = await here.sign_in("bob", "viewer")
        other = await here.sign_in("eve", "viewer")
        bob = User(here.user_ids["bob"], "bob@example.com", Path())
        account = site.sshd.user
        async with shown(here, browser, site) as first:
            await first.say(account=account)
            await first.until(b"nothing lets you into")
            assert await first.over() == "the shell ended with 255"
        lease = await site.lease(bob)
        async with shown(here, browser, site) as first:
            await first.say(account=account, columns=91, rows=33)
            token = await first.resume()
            await first.type("stty size; echo $((6 * 7))-there\r")
            await first.until(b"42-there")
            assert b"33 91" in first.text
            await first.say(columns=70, rows=20)
            await first.type("stty size; printf 'one%s' two; read x; echo got-$x-$((1 + 1))\r")
            await first.until(b"20 70")
            # One line of one column, as on a phone whose keyboard covers the page, is a size too.
            await first.say(columns=1, rows=1)
            await first.say(columns=70, rows=20)
            await first.until(b"onetwo")
            seen = len(first.text)
            await first.say(seen=seen)
            await first.type("net\r")
            await first.connection.aclose()
        async with shown(here, other, site) as stranger:
            await stranger.say(account=account, resume=token, at=seen)
            assert "over" in await stranger.over()
        async with shown(here, browser, site) as second:
            await second.say(resume=token, at=seen, columns=70, rows=20)
            await second.until(b"got-net-2")  # it was typed on the connection before
            async with shown(here, browser, site) as third:
                await third.say(resume=token, at=seen, columns=70, rows=20)
                assert "another window" in await second.over()
                await third.until(b"got-net-2")
                await site.tenant.leases.end(lease.id, "enough")
                assert await third.over()
        about = await site.about(site.recordings()[0])
        assert about["person"] == "bob@example.com"


async def test_a_terminal_ends_with_its_persons_session(site: Site) -> None:
    async with console_of(site) as here:
        browser = await here.sign_in("bob", "viewer")
        await site.lease(User(here.user_ids["bob"], "bob@example.com", Path()))
        async with (
            shown(here, browser, site) as first,
            shown(here, browser, site) as second,
            shown(here, browser, site) as third,
        ):
            for one in (first, second):
                await one.say(account=site.sshd.user)
                await one.resume()
            await third.say(account=site.sshd.user)
            assert "limits.max_terminals" in await third.over()
            await first.type("exit 3\r")
            assert await first.over() == "the shell ended with 3"
            await browser.post(f"{here.api.base}/api/auth/logout")
            assert "signed out" in await second.over()


async def test_typing_into_the_page_of_a_terminal(
    site: Site, tmp_path: Path, chromium: str
) -> None:
    async with console_of(site) as here, browser_page(chromium, tmp_path / "profile") as page:
        browser = await here.sign_in("bob", "viewer")
        await site.lease(User(here.user_ids["bob"], "bob@example.com", Path()))
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        await here.show_cookies(page, browser)
        there = f"/devices/{site.device_id}/terminal?account={site.sshd.user}"
        if "not part of this installation" in await here.page(browser, there):
            pytest.skip("xterm.js is not there: make vendor fetches it where npm is")
        await page.goto(here.api.base + there)
        with trio.fail_after(PATIENCE):
            await page.wait_until("document.querySelector('[data-live=on]')")
            await typed(page, "echo $((6 * 7))-in-the-browser\r")
            await page.wait_until(f"{SCREEN}.includes('42-in-the-browser')")
            assert ":" in await page.evaluate("document.querySelector('[data-until]').textContent")
            # What a device may not stop the page with: two billion times the same.
            await typed(page, "printf 'x\\033[2000000000%s' L M S T I Z b; echo $((6 * 8))-times\r")
            await page.wait_until(f"{SCREEN}.includes('48-times')")
            # A network that goes away: the page comes back by itself, and shows what it missed.
            await typed(page, "read x; echo got-$x-$((1 + 1))\r")
            await page.evaluate(
                "globalThis.lost = document.querySelector('tm-terminal').socket; lost.close()"
            )
            # It is back within a second: that it was away may not be seen from here.
            await page.wait_until(
                "document.querySelector('tm-terminal').socket !== lost"
                " && document.querySelector('[data-live=on]')"
            )
            await typed(page, "again\r")
            await page.wait_until(f"{SCREEN}.includes('got-again-2')")
            await typed(page, "exit\r")
            await page.wait_until("document.querySelector('[data-over]:not([hidden])')")
        errors = [event for event in page.events if event["method"] == "Runtime.exceptionThrown"]
        errors += [
            event
            for event in page.events
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"
        ]
        assert errors == []


SCREEN = "document.querySelector('.xterm-rows').innerText"


async def typed(page: BrowserPage, text: str) -> None:
    """Type into what has the focus, as a keyboard does."""
    line = text.removesuffix("\r")
    await page.call("Input.insertText", text=line)
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    await page.call("Input.dispatchKeyEvent", type="keyDown", **enter)
    await page.call("Input.dispatchKeyEvent", type="keyUp", **enter)
