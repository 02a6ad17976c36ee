"""The console's pages about requests, against a proxy that keeps some."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from support.browser import BrowserPage, browser_page
from support.consoles import EVIL, Console, console, keep_two
from support.internal import Bench, running_bench
from support.tenants import TEST
from tunnelmux.config.access import AccessConfig, ServiceAccess
from tunnelmux.registry import new_id


@asynccontextmanager
async def with_a_proxy(here: Console, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A proxy in memory, which this API takes for the only one; others in the process do not."""
    async with running_bench() as bench:

        async def clients() -> list[object]:
            return [bench.client]

        monkeypatch.setattr(here.api.running.api.proxies, "clients", clients)
        yield bench


@pytest.mark.slow
async def test_what_is_kept_is_shown_and_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with console(tmp_path) as here, with_a_proxy(here, monkeypatch) as bench:
        browser = await here.sign_in("ada", "operator")
        registry = here.api.running.api.registry
        home = await registry.installation(TEST).tenants.find_named("default")
        device, _ = await registry.tenant(home.id, TEST).devices.add("cam-1")
        page = await here.page(browser, f"/devices/{device.id}/requests?status=5xx")
        assert f'src="/api/devices/{device.id}/requests?status=5xx"' in page
        inspection = await bench.client.begin_inspection(
            "inspection-1", device.label, "web", 600, bodies=True, askedBy=EVIL
        )
        ids = keep_two(bench)
        base = f"/devices/{device.id}/inspections/{inspection.id}"
        pages = {
            path: await here.page(browser, path)
            for path in (
                f"/devices/{device.id}/requests",
                f"{base}?method=post",
                f"{base}/requests/{ids[0]}",
                f"{base}/requests/{ids[0]}?beside={ids[1]}",
            )
        }
        for path, html in pages.items():
            assert EVIL not in html, path
            assert "&lt;script&gt;" in html, path
        one, two = list(pages.values())[2:]
        assert "(2 bytes that are no text)" in one
        assert "curl --request POST" in one
        assert "differs" not in one
        assert two.count("differs") == 2  # X-Number, on both sides
        assert "No requests yet" in await here.page(browser, f"{base}?status=404")
        await here.page(browser, f"{base}/requests/none", status=404)
        viewer = await here.sign_in("eve", "viewer")
        for path in pages:
            await here.page(viewer, path, status=403)


async def open_in(page: BrowserPage, url: str) -> None:
    await page.goto(url)
    here = f"location.href === {url!r} && document.readyState === 'complete'"
    await page.wait_until(f"{here} && document.documentElement?.classList.contains('js')")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(180)
async def test_requests_arrive_in_a_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chromium: str
) -> None:
    async with (
        console(tmp_path) as here,
        with_a_proxy(here, monkeypatch) as bench,
        browser_page(chromium, tmp_path / "profile") as page,
    ):
        browser = await here.sign_in("ada", "operator")
        registry = here.api.running.api.registry
        home = await registry.installation(TEST).tenants.find_named("default")
        device, _ = await registry.tenant(home.id, TEST).devices.add("cam-1")
        await bench.client.begin_inspection(
            "inspection-1", device.label, "web", 600, bodies=True, askedBy="ada"
        )
        ids = keep_two(bench)
        for domain in ("Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        await here.show_cookies(page, browser)
        log, base = (
            f"/devices/{device.id}/requests",
            f"/devices/{device.id}/inspections/inspection-1",
        )
        with trio.fail_after(120):
            for number, path in enumerate(
                (
                    base,
                    f"{base}/requests/{ids[0]}?beside={ids[1]}",
                    f"{base}/requests/{ids[0]}",
                    log,
                )
            ):
                for width in (360, 1280):
                    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                    await page.call("Emulation.setDeviceMetricsOverride", **size)
                    await open_in(page, here.api.base + path)
                    assert await page.evaluate("document.documentElement.scrollWidth") <= width, (
                        path
                    )
                    if path == log:
                        await page.wait_until("document.querySelector('[data-live=on]')")
                        bench.dispatcher.visits.feed.tell(
                            "http",
                            {"device": device.label, "method": "GET", "path": EVIL, "status": 502},
                        )
                        await page.wait_until("document.querySelector('[data-rows] li')")
                        row = "document.querySelector('[data-rows] li strong').textContent"
                        assert await page.evaluate(row) == "502"
                    if folder := os.environ.get("CONSOLE_PICTURES"):
                        file = Path(folder) / f"requests-{number}-{width}.png"
                        file.write_bytes(await page.screenshot())
        errors = [
            event
            for event in page.events
            if event["method"] == "Runtime.exceptionThrown"
            or (
                event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"
            )
        ]
        assert errors == []


@pytest.mark.slow
async def test_who_may_reach_a_service_is_answered_with_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with console(tmp_path) as here, with_a_proxy(here, monkeypatch) as bench:
        viewer = await here.sign_in("eve", "viewer")
        registry = here.api.running.api.registry
        home = await registry.installation(TEST).tenants.find_named("default")
        device, _ = await registry.tenant(home.id, TEST).devices.add("dev1")
        await here.sign_in(EVIL, "operator")
        asked = f"/devices/{device.id}/access"
        answer = await viewer.get(f"{here.api.base}/api{asked}/web/decision")
        told = answer.json()
        # This proxy knows dev1 from its own file, and only this machine reaches its ingress.
        assert (told["allowed"], told["by"], told["until"]) == (True, "public", None)
        assert (told["user_id"], told["user_name"]) == (here.user_ids["eve"], "eve")
        assert told["rule"]["source"] == "default"
        page = await here.page(viewer, f"{asked}?service=web&person={here.user_ids[EVIL]}")
        assert "Yes: no rule is written for it, so it lets in everybody." in page
        assert EVIL not in page
        assert "&lt;script&gt;" in page
        bench.gate.configure(
            AccessConfig(
                rules=[
                    ServiceAccess(device="dev1", service="web", let_in=["login"], roles=["owner"])
                ]
            ),
            is_local=True,
        )
        told = (await viewer.get(f"{here.api.base}/api{asked}/web/decision")).json()
        assert (told["allowed"], told["rule"]["source"]) == (False, "proxy.toml")
        assert told["rule"]["roles"] == ["owner"]
        assert "signing in does not help there" in told["reason"]  # a proxy without a registry
        answer = await viewer.get(f"{here.api.base}/api{asked}/web/decision?user={new_id()}")
        assert answer.status_code == 404
        monkeypatch.setattr(here.api.running.api.proxies, "clients", no_proxies)
        answer = await viewer.get(f"{here.api.base}/api{asked}/web/decision")
        assert (answer.status_code, answer.json()["code"]) == (502, "proxy_away")
        page = await here.page(viewer, f"{asked}?service=web")
        assert "No proxy answers" in page


@pytest.mark.slow
async def test_proxies_that_do_not_agree_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A visitor may come to any proxy: who is let in by one of two only is not let in."""
    async with console(tmp_path) as here, running_bench() as lax, running_bench() as strict:
        viewer = await here.sign_in("eve", "viewer")
        registry = here.api.running.api.registry
        home = await registry.installation(TEST).tenants.find_named("default")
        device, _ = await registry.tenant(home.id, TEST).devices.add("dev1")
        rule = ServiceAccess(device="dev1", service="web", let_in=["login"])
        strict.gate.configure(AccessConfig(rules=[rule]), is_local=True)
        asked = f"/devices/{device.id}/access"
        for order in ([lax, strict], [strict, lax]):

            async def clients(order: list[Bench] = order) -> list[object]:
                return [bench.client for bench in order]

            monkeypatch.setattr(here.api.running.api.proxies, "clients", clients)
            told = (await viewer.get(f"{here.api.base}/api{asked}/web/decision")).json()
            assert (told["allowed"], told["rule"]["let_in"]) == (False, ["login"])
            other = "Yes: no rule is written for it, so it lets in everybody."
            assert told["otherwise"] == [other]
        page = await here.page(viewer, f"{asked}?service=web")
        assert f"Another one says: {other}" in page


async def no_proxies() -> list[object]:
    return []
