"""How fast the console is: `make measure-console`. Prints four numbers; needs Chromium.

Processor time is measured, not the clock, so that a busy machine changes little.
"""

from __future__ import annotations

import gzip
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import trio

from support.browser import BrowserPage, browser_page
from support.consoles import Console, connected, console
from support.oidc import Browser
from support.tenants import TEST
from tunnelmux.registry import TenantRegistry

DEVICES = 1000
RENDERINGS = 20
SECONDS = 20.0
CHANGES = 50  # a second
ASSET = re.compile(r'(?:href|src)="(/static/[^"#]+)')


async def measure(folder: Path, chromium: str) -> None:
    async with console(folder) as here, browser_page(chromium, folder / "profile") as page:
        browser = await here.sign_in("ada", "viewer")
        registry = here.api.running.api.registry
        home = await registry.installation(TEST).tenants.find_named("default")
        tenant = registry.tenant(home.id, TEST)
        ids = []
        for number in range(DEVICES):
            device, _ = await tenant.devices.add(f"cam-{number:04}", labels={"site": "berlin"})
            ids.append(device.id)
        for device_id in ids[: DEVICES // 2]:
            await connected(registry, device_id, "web", "ssh")
        await here.page(browser, "/devices")  # templates and files are read with the first page
        began = time.process_time()
        for _ in range(RENDERINGS):
            html = await here.page(browser, "/devices")
        each = (time.process_time() - began) / RENDERINGS
        tell(f"the list of {DEVICES} devices, client and server: {each * 1000:.0f} ms of processor")
        sent = len(html.encode()) + await sizes(here, browser, html)
        tell(f"the first page, with all its files: {sent / 1000:.0f} kB")
        await sign_in(page, here, browser)
        await page.goto(f"{here.api.base}/devices")
        with trio.fail_after(60):
            await page.wait_until("document.querySelector('[data-live=on]')")
        for busy in (False, True):
            share = await main_thread(page, tenant, ids[:100] if busy else [])
            what = f"{CHANGES} changes a second" if busy else "no changes"
            tell(f"the browser's main thread with {what}: {share:.1%} busy")


async def sizes(here: Console, browser: Browser, html: str) -> int:
    """Bytes of the page's files as they are sent."""
    found = 0
    for path in set(ASSET.findall(html)):
        answer = await browser.get(here.api.base + path)
        found += len(gzip.compress(answer.content))
    return found


async def sign_in(page: BrowserPage, here: Console, browser: Browser) -> None:
    await page.call("Network.enable")
    await page.call("Performance.enable")
    await here.show_cookies(page, browser)


async def main_thread(page: BrowserPage, tenant: TenantRegistry, ids: list[str]) -> float:
    """The share of its time in which the page's main thread had a task."""
    before = await metrics(page)
    with trio.move_on_after(SECONDS):
        while ids:
            await tenant.devices.change(
                random.choice(ids), labels={"site": "berlin", "n": str(random.randint(0, 999))}
            )
            await trio.sleep(1 / CHANGES)
        await trio.sleep_forever()
    after = await metrics(page)
    return (after["TaskDuration"] - before["TaskDuration"]) / (
        after["Timestamp"] - before["Timestamp"]
    )


async def metrics(page: BrowserPage) -> dict[str, float]:
    answer = await page.call("Performance.getMetrics")
    return {item["name"]: item["value"] for item in answer["metrics"]}


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("No Chromium: it is what is measured (on Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        trio.run(measure, Path(folder), chromium)


if __name__ == "__main__":
    main()
