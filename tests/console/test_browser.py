"""The console in Chromium: signing in by a real provider, each page in both widths, live."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from support.apis import LiveApi, live_api
from support.browser import BrowserPage, browser_page
from support.consoles import connected
from support.oidc import oidc_provider
from support.peers import build_program
from support.tenants import SSH_KEY, TEST, a_recording, person
from tunnelmux.config.api import GatewayEndpoint, OIDCConfig, RecordingsConfig
from tunnelmux.registry import DeviceFilter, LeaseTerms, TenantRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

PATIENCE = 120  # seconds for a step: a net under a browser that hangs

WIDTHS = (1280, 360)

PICTURES = os.environ.get("CONSOLE_PICTURES")
"""A folder for screenshots of every page, for a person to look at."""


async def fill(page: BrowserPage, **values: str) -> None:
    """Type into the fields of the page's form and send it, as a person does."""
    for name, value in values.items():
        await page.evaluate(f"document.querySelector('[name={name}]').value = {value!r}")
    await page.evaluate("document.querySelector('form button[type=submit], form button').click()")


async def sign_in(page: BrowserPage, base: str) -> None:
    """Go through the provider's two pages, which the browser is on the way to: name and consent."""
    await page.wait_until("document.querySelector('[name=login]')")
    await fill(page, login="ada", password="any")
    loaded = "document.readyState === 'complete'"
    await page.wait_until(f"!document.querySelector('[name=login]') && {loaded}")
    if urlsplit(await page.evaluate("location.href")).netloc != urlsplit(base).netloc:
        await fill(page)
    await page.wait_until(f"location.href.startsWith({base!r}) && document.querySelector('main')")


async def accept_invitation(page: BrowserPage, base: str, secret: str) -> None:
    """Open an invitation's link as a stranger, sign in, accept, and be in the console."""
    await open_page(page, f"{base}/invitation#{secret}", there=f"{base}/invitation")
    await page.evaluate("document.querySelector('[data-invitation] a.button').click()")
    await sign_in(page, base)
    await page.wait_until("document.querySelector('[data-invitation]:not([hidden]) form')")
    await page.evaluate("document.querySelector('[data-invitation] form button').click()")
    await page.wait_until("location.pathname === '/' && document.querySelector('nav.rail')")


async def look_at(page: BrowserPage, base: str, path: str, width: int, scheme: str) -> None:
    """Open a page: it fits, its script runs, nothing is refused, no other host is asked, and what
    looks for obstacles to people finds none."""
    await set_size(page, width, 900)
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    await page.call("Emulation.setEmulatedMedia", features=[scheme_feature])
    page.events.clear()
    await open_page(page, base + path)
    wide = await page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{path} is {wide} px wide at {width}"
    assert problems(page) == [], path
    for event in page.events:
        if event["method"] == "Network.requestWillBeSent":
            url = event["params"]["request"]["url"]
            assert url.startswith(base + "/"), f"{path} asks {url}"
    if width == max(WIDTHS):
        assert await obstacles(page) == [], path
    if PICTURES is not None:
        name = path.partition("?")[0].strip("/").replace("/", "-")[:20] or "overview"
        file = Path(PICTURES) / f"{name}-{width}-{scheme}.png"
        long = await page.evaluate("document.documentElement.scrollHeight")
        await set_size(page, width, long)
        file.write_bytes(await page.screenshot())


async def obstacles(page: BrowserPage) -> list[Any]:
    """What axe-core finds serious or critical."""
    source = await trio.Path(build_program("axe", "axe")[0]).read_text()
    await page.evaluate(f"{source}; undefined")
    await page.evaluate(
        "axe.run({ iframes: false }).then((found) => { globalThis.axeFound = found.violations"
        ".filter((one) => ['serious', 'critical'].includes(one.impact))"
        ".map((one) => [one.id, ...one.nodes.map((node) => node.html.slice(0, 200))]); });"
        "undefined"
    )
    await page.wait_until("globalThis.axeFound")
    return await page.evaluate("globalThis.axeFound")


async def open_page(page: BrowserPage, url: str, *, there: str | None = None) -> None:
    """Return when the page is there and its script has run; `there` is where it says it is."""
    await page.goto(url)
    here = f"location.href === {(there or url)!r} && document.readyState === 'complete'"
    await page.wait_until(f"{here} && document.documentElement?.classList.contains('js')")


async def set_size(page: BrowserPage, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    await page.call("Emulation.setDeviceMetricsOverride", **size)


def problems(page: BrowserPage) -> list[Any]:
    """What the browser's console has of errors: exceptions, refusals by policy, failed loads."""
    found = []
    for event in page.events:
        told = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            found.append(told["exceptionDetails"])
        if event["method"] == "Log.entryAdded" and told["entry"]["level"] == "error":
            found.append(told["entry"])
    return found


@asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[tuple[LiveApi, TenantRegistry]]:
    @asynccontextmanager
    async def provider(base: str) -> AsyncIterator[OIDCConfig]:
        async with oidc_provider(base) as running:
            yield OIDCConfig(
                issuer=running.issuer, client_id="public", prompt="consent", timeout=30
            )

    key = folder / "gateway.pub"
    key.write_text(SSH_KEY)
    async with live_api(
        folder,
        provider,
        recordings=RecordingsConfig(folder=folder / "casts"),
        gateway=GatewayEndpoint(address="127.0.0.1:9", host_key_file=key),
    ) as api:
        installation = api.running.api.registry.installation(TEST)
        home = await installation.tenants.find_named("default")
        yield api, api.running.api.registry.tenant(home.id, TEST)


async def test_every_page_in_a_browser(
    tmp_path: Path, debian_program: Callable[[str, str], str]
) -> None:
    chromium = debian_program("chromium", "chromium")
    async with (
        fleet(tmp_path) as (api, tenant),
        browser_page(chromium, tmp_path / "profile") as page,
    ):
        device, _ = await tenant.devices.add("cam-1", serial="SN1", labels={"site": "berlin"})
        for number in range(2, 12):
            await tenant.devices.add(f"cam-{number}", labels={"site": "oslo", "line": str(number)})
        held, _ = await tenant.devices.add("cam-with-a-rather-long-name-to-break")
        await tenant.devices.set_quarantine(held.id, "the lens is broken, and wants to be changed")
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        invitation, secret = await tenant.invitations.add("ada@example.com", "owner", lifetime=3600)
        with trio.fail_after(PATIENCE):
            await accept_invitation(page, api.base, secret.reveal())
        assert (await tenant.invitations.page()).items[0].id == invitation.id
        assert (await tenant.invitations.page()).items[0].used_by is not None
        await api.call("POST", "/api/pairing/requests", json={"name": "cam-99"})
        vera = await person(api, "vera", "viewer")
        now = datetime.now(UTC)
        terms = LeaseTerms(
            device_id=device.id,
            services=("ssh",),
            holder=vera.user_id,
            holder_name="Vera",
            reason="The picture is dark; look at the lens heater.",
            starts=now,
            ends=now + timedelta(hours=1),
        )
        await tenant.leases.add(terms, approved=False)
        await connected(api.running.api.registry, device.id, "ssh", "web")
        recording = await keep_recording(api, tenant, device.id, tmp_path / "casts")
        pages = ["/", "/devices", f"/devices/{device.id}", f"/devices/{held.id}"]
        pages += ["/invitation", "/inbox", "/pair", "/people", "/tokens", "/audit", "/setup"]
        pages += ["/recordings", f"/recordings/{recording}"]
        for path in [*pages, f"/devices/{device.id}/terminal?account=root"]:
            for width in WIDTHS:
                for scheme in ("light", "dark") if PICTURES else ("light",):
                    with trio.fail_after(PATIENCE):
                        await look_at(page, api.base, path, width, scheme)
        with trio.fail_after(PATIENCE):
            await check_player(page, api, recording)
        with trio.fail_after(PATIENCE):
            await check_bulk(page, api, tenant)
        with trio.fail_after(PATIENCE):
            other, _ = await tenant.devices.add("lamp-1")
            await check_live(page, api, tenant, other.id)


async def keep_recording(api: LiveApi, tenant: TenantRegistry, device_id: str, folder: Path) -> str:
    """A recording of two screens, of somebody else."""
    vera = await person(api, "vera", "viewer")
    recorded = a_recording(
        device_id, vera.user_id, device_label="cam-1", kind="shell", command="", user_name="vera"
    )
    await tenant.recordings.begin(recorded)
    file = folder / recorded.file(tenant.tenant_id)
    file.parent.mkdir(parents=True)
    head = {"version": 2, "width": 80, "height": 24}
    events = [
        [0.1, "o", "first words"],
        [0.3, "r", "60x20"],
        [9.0, "o", "\r\n\x1b[32mlast words\x1b[0m"],
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in [head, *events]))
    return recorded.id


async def check_player(page: BrowserPage, api: LiveApi, recording: str) -> None:
    """A recording is shown as it was, and its pauses are short."""
    await open_page(page, f"{api.base}/recordings/{recording}")
    if not await page.evaluate("Boolean(document.querySelector('tm-player'))"):
        return  # xterm.js is not there: make vendor
    await page.wait_until("document.querySelector('tm-player').length > 0")
    assert 2.2 < await page.evaluate("document.querySelector('tm-player').length") < 2.4
    await page.evaluate("document.querySelector('tm-player').seek(2.3)")
    shown = "document.querySelector('.xterm-rows').innerText"
    await page.wait_until(f"{shown}.includes('last words') && {shown}.includes('first words')")


async def check_bulk(page: BrowserPage, api: LiveApi, tenant: TenantRegistry) -> None:
    """Two devices are chosen and disabled, after a question."""
    await open_page(page, f"{api.base}/devices?q=cam-1")
    await page.evaluate(
        "document.querySelectorAll('[data-choose]').forEach((b, n) => n && n < 3 && b.click())"
    )
    await page.evaluate("document.querySelector('[commandfor=bulk-disable]').click()")
    await page.wait_until("document.querySelector('#bulk-disable').open")
    await page.evaluate("document.querySelector('#bulk-disable footer .main').click()")
    await page.wait_until("!document.querySelector('#bulk-disable').open")
    await page.wait_until("document.querySelectorAll('tr[data-s=refused]').length === 2")
    assert await tenant.devices.count(DeviceFilter(enabled=False)) == 2
    await open_page(page, f"{api.base}/audit")
    await page.evaluate("document.querySelector('main input[name=action]').value = 'recording.'")
    await page.evaluate("document.querySelector('main form').requestSubmit()")
    await page.wait_until("location.href.endsWith('/audit?action=recording.')")
    await page.wait_until("!document.querySelector('#entries').innerText.includes('device.')")


async def check_live(
    page: BrowserPage, api: LiveApi, tenant: TenantRegistry, device_id: str
) -> None:
    """A change made elsewhere arrives without a reload; one made here goes through."""
    await page.goto(f"{api.base}/devices/{device_id}")
    await page.wait_until("document.querySelector('[data-live=on]')")
    await page.evaluate("window.wasHere = true")
    await tenant.devices.set_enabled(device_id, False)
    await page.wait_until("document.body.innerText.includes('an operator disabled it')")
    await page.evaluate("document.querySelector('form[action$=\"/enable\"] button').click()")
    await page.wait_until("document.body.innerText.includes('it has not connected yet')")
    assert (await tenant.devices.find(device_id)).enabled
    assert await page.evaluate("window.wasHere")
    await open_page(page, f"{api.base}/tokens")
    await page.evaluate("document.querySelector('[name=name]').value = 'deploy'")
    await page.evaluate("document.querySelector('[value=\"devices:read\"]').checked = true")
    await page.evaluate("document.querySelector('[data-tell] button').click()")
    await page.wait_until("document.querySelector('#made code')?.textContent.length > 20")
    token = await page.evaluate("document.querySelector('#made code').textContent")
    assert (await api.call("GET", "/api/devices", token)).status_code == 200
    await page.wait_until("document.querySelector('#tokens').innerText.includes('deploy')")
