"""What a browser still shows of the console when its person has signed out."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio

from support.browser import BrowserPage
from support.consoles import Console, console
from support.tenants import TEST

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PATIENCE = 60  # seconds for a step: a net under a browser that hangs


async def open_device(page: BrowserPage, here: Console) -> None:
    """Show the page of a device to a person who is signed in."""
    registry = here.api.running.api.registry
    home = await registry.installation(TEST).tenants.find_named("default")
    device, _ = await registry.tenant(home.id, TEST).devices.add("secret-device")
    with trio.fail_after(PATIENCE):
        await page.goto(f"{here.api.base}/devices/{device.id}")
        await page.wait_for_page("document.querySelector('h1')?.textContent === 'secret-device'")
        await page.wait_for_page("document.querySelector('[data-live=on]')")


@pytest.mark.parametrize("other", ["another-tab", "this-tab"])
async def test_what_was_shown_is_gone(other: str, tmp_path: Path, page: BrowserPage) -> None:
    async with console(tmp_path) as here:
        ada = await here.sign_in("ada", "owner")
        await here.show_cookies(page, ada)
        await open_device(page, here)
        there = f"!location.href.startsWith({here.api.base!r})"
        away = f"{there} && document.readyState === 'complete'"
        with trio.fail_after(PATIENCE):
            if other == "another-tab":
                await ada.post(f"{here.api.base}/api/auth/logout")
            else:
                form = 'form[action="/api/auth/logout"]'
                await page.evaluate(f"document.querySelector('{form} button:not([type])').click()")
            await page.wait_for_page(away)
        # What the browser kept of the page may come up again before a script has run.
        shown: set[str] = set()
        await page.evaluate("void setTimeout(() => history.back())")
        with trio.move_on_after(3):
            while True:
                with contextlib.suppress(AssertionError):  # on its way from page to page
                    shown.add(await page.evaluate("document.documentElement.outerHTML"))
        assert shown and not [html for html in shown if "secret-device" in html]
