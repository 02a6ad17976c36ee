"""The console in Chromium: signing in by a real provider, each page in both widths and both schemes
of colours, by keyboard and without a script, live."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from support.apis import LiveApi, live_api
from support.browser import BrowserPage, browser_page
from support.consoles import beating, connected, keep_two
from support.internal import Bench, running_bench
from support.oidc import oidc_provider
from support.peers import build_program
from support.tenants import HOST_KEYS, SSH_KEY, TEST, a_recording, person
from tunnelmux.config.api import GatewayEndpoint, OIDCConfig, RecordingsConfig
from tunnelmux.registry import (
    AssistState,
    Device,
    DeviceFilter,
    IndexPoint,
    LeaseTerms,
    TenantRegistry,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE = 120  # seconds for a step: a net under a browser that hangs

LOOKS = ((1280, "light"), (360, "dark"))
"""Both widths and both schemes, in two looks at one page."""

EVERY_LOOK = tuple((width, scheme) for width in (1280, 360) for scheme in ("light", "dark"))

REFUSED = ("/devices/no-such-device",)
"""Pages with the status 404, of which a browser's console tells."""

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


async def look_at(page: BrowserPage, base: str, path: str, *looks: tuple[int, str]) -> set[str]:
    """Open a page: its script runs, nothing is refused, no other host is asked. In each width and
    scheme it fits; in the last, what looks for obstacles to people finds none. Returns where the
    page says that its data are."""
    await set_look(page, *looks[0])
    page.events.clear()
    await open_page(page, base + path)
    for width, scheme in looks:
        await set_look(page, width, scheme)
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} px wide at {width}"
        await keep_picture(page, path, width, scheme)
    assert await obstacles(page) == [], (path, looks[-1])
    found = problems(page)
    assert found == [] or (path in REFUSED and len(found) == 1), (path, found)
    for event in page.events:
        if event["method"] == "Network.requestWillBeSent":
            url = event["params"]["request"]["url"]
            assert url.startswith(base + "/"), f"{path} asks {url}"
    links = "[...document.querySelectorAll('main a[href^=\"/api/\"]')]"
    return set(await page.evaluate(f"{links}.map((one) => one.getAttribute('href'))"))


async def set_look(page: BrowserPage, width: int, scheme: str) -> None:
    await set_size(page, width, 900)
    # Without motion, no colour is on its way from one scheme to the other when it is looked at.
    wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    await page.call("Emulation.setEmulatedMedia", features=features)


async def keep_picture(page: BrowserPage, path: str, width: int, scheme: str) -> None:
    """A screenshot of the whole page, if a person wants to look."""
    if PICTURES is None:
        return
    name = re.sub(r"[0-9a-f-]{32}([0-9a-f]{4})", r"\1", path).strip("/")
    name = re.sub(r"[/?=]", "-", name) or "overview"
    file = trio.Path(PICTURES) / f"{name}-{width}-{scheme}.png"
    await set_size(page, width, await page.evaluate("document.documentElement.scrollHeight"))
    await file.write_bytes(await page.screenshot())
    await set_size(page, width, 900)


async def obstacles(page: BrowserPage) -> list[Any]:
    """What axe-core finds serious or critical."""
    if not await page.evaluate("Boolean(globalThis.axe)"):
        source = await trio.Path(build_program("axe", "axe")[0]).read_text()
        await page.evaluate(f"{source}; undefined")
    await page.evaluate(
        "globalThis.axeFound = null;"
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


def the_only_proxy(monkeypatch: pytest.MonkeyPatch, api: LiveApi, bench: Bench) -> None:
    """Have this API take a proxy in memory for the only one."""

    async def living() -> list[tuple[str, str, object]]:
        return [("proxy-1", "edge", bench.client)]

    monkeypatch.setattr(api.running.api.proxies, "_living", living)


async def inspected(bench: Bench, device: Device) -> list[str]:
    """The paths of the pages of an inspection that has two requests."""
    await bench.client.begin_inspection(
        "inspection-1", device.label, "web", 600, bodies=True, askedBy="ada"
    )
    base = f"/devices/{device.id}/inspections/inspection-1"
    one, two = keep_two(bench)
    return [base, f"{base}/requests/{one}", f"{base}/requests/{one}?beside={two}"]


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([LOOKS], id="both-widths"),
        pytest.param([(look,) for look in EVERY_LOOK], id="each-look", marks=pytest.mark.long),
    ],
)
async def test_every_page_in_a_browser(
    looks: list[tuple[tuple[int, str], ...]],
    tmp_path: Path,
    chromium: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        fleet(tmp_path) as (api, tenant),
        running_bench() as bench,
        browser_page(chromium, tmp_path / "profile") as page,
        trio.open_nursery() as nursery,
    ):
        the_only_proxy(monkeypatch, api, bench)
        device, held, recording = await furnish(api, tenant, tmp_path / "casts")
        registry = api.running.api.registry
        nursery.start_soon(beating, registry, await connected(registry, device.id, "ssh", "web"))
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        invitation, secret = await tenant.invitations.add("ada@example.com", "owner", lifetime=3600)
        with trio.fail_after(PATIENCE):
            await accept_invitation(page, api.base, secret.reveal())
        assert (await tenant.invitations.page()).items[0].id == invitation.id
        assert (await tenant.invitations.page()).items[0].used_by is not None
        pages = ["/", "/devices", f"/devices/{device.id}", f"/devices/{held.id}", "/invitation"]
        pages += ["/inbox", "/pair", "/people", "/tokens", "/audit", "/setup"]
        pages += ["/recordings", f"/recordings/{recording}", *REFUSED]
        pages += [f"/devices/{device.id}/{part}" for part in PARTS]
        pages += await inspected(bench, device)
        data: set[str] = set()
        for number, path in enumerate(pages):
            for some in looks:
                with trio.fail_after(PATIENCE):
                    order = some if number % 2 else some[::-1]
                    data |= await look_at(page, api.base, path, *order)
        steps: list[tuple[Callable[..., Awaitable[None]], tuple[object, ...]]] = [
            (check_data, (page, sorted(data - {"/api/auth/login?return_to=/invitation"}))),
            (check_keyboard, (page, api.base, device.id)),
            (check_kill, (page, api, bench, device)),
            (check_player, (page, api, recording)),
            (check_pairing, (page, api, tenant)),
            (check_bulk, (page, api, tenant)),
            (check_live, (page, api, tenant, (await tenant.devices.add("lamp-1"))[0].id)),
        ]
        if len(looks) > 1:  # the long variant
            readable = [path for path in pages if path != "/invitation"]
            steps.insert(0, (check_dialogs, (page, api.base, device.id)))
            steps.append((check_late, (page, api, tenant)))
            steps.insert(1, (check_without_script, (page, api.base, readable)))
        for step, arguments in steps:
            with trio.fail_after(PATIENCE):
                await step(*arguments)
        nursery.cancel_scope.cancel()


async def furnish(api: LiveApi, tenant: TenantRegistry, casts: Path) -> tuple[Device, Device, str]:
    """Something for each page to show: a device with all there is, one held, and a recording."""
    device, _ = await tenant.devices.add("cam-1", serial="SN1", labels={"site": "berlin"})
    for number in range(2, 12):
        await tenant.devices.add(f"cam-{number}", labels={"site": "oslo", "line": str(number)})
    held, _ = await tenant.devices.add("cam-with-a-rather-long-name-to-break")
    await tenant.devices.set_quarantine(held.id, "the lens is broken, and wants to be changed")
    keys = tenant.install_keys
    _, key = await keys.add("spare", lifetime=3600, max_uses=5, needs_approval=True)
    await ask_to_pair(api, "cam-99", key.reveal())
    for key in HOST_KEYS:  # the second is not the one that was pinned
        await tenant.devices.report_host_keys(device.id, (key,))
    now = datetime.now(UTC)
    wish = AssistState(
        mode="allow", services=("ssh", "web"), longest=7200.0, until=now + timedelta(hours=2)
    )
    await api.running.api.registry.fleet.report_assist(device.id, wish)
    vera = await person(api, "vera", "viewer")
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
    return device, held, await keep_recording(api, tenant, device.id, casts)


async def check_data(page: BrowserPage, links: list[str]) -> None:
    """What the pages show is there for programs too."""
    kinds = {"overview", "devices", "visits", "sessions", "leases", "access", "inspections"}
    kinds |= {"decision", "pairings", "members", "invitations", "access-tokens", "recordings"}
    kinds |= {"audit", "setup", "cast", "requests"}
    assert kinds <= {word for link in links for word in link.partition("?")[0].split("/")}
    await page.evaluate(
        "globalThis.answers = null;"
        f"Promise.all({links!r}.map((link) => fetch(link).then((answer) =>"
        "  [link, answer.status, answer.headers.get('content-type')])))"
        ".then((found) => { globalThis.answers = found; }); undefined"
    )
    await page.wait_until("globalThis.answers")
    for link, status, kind in await page.evaluate("globalThis.answers"):
        assert (link, status) == (link, 200)
        assert "json" in kind or "asciicast" in kind, (link, kind)


async def ask_to_pair(api: LiveApi, name: str, key: str = "") -> str:
    """What `tunnelmux-agent pair` does first; the code that it shows, without an install key."""
    agent = {
        "name": name,
        "serial": f"SN-{name}",
        "fingerprint": "BCDF-GHJK",
        "agent_version": "1.2.3",
    }
    way, wish = ("install", {**agent, "key": key}) if key else ("requests", agent)
    asked = await api.call("POST", f"/api/pairing/{way}", json=wish)
    assert asked.is_success, asked.text
    return str(asked.json()["code"])


async def check_dialogs(page: BrowserPage, base: str, device_id: str) -> None:
    """Each dialog of a device fits, and has no obstacle."""
    await open_page(page, f"{base}/devices/{device_id}")
    assert "asks for help" in await page.evaluate("document.querySelector('#reach').innerText")
    assert "new host keys" in await page.evaluate("document.querySelector('#host-keys').innerText")
    for name in ("lend", "end", "disable"):
        await page.evaluate(f"document.querySelector('[commandfor={name}]').click()")
        await page.wait_until(f"document.querySelector('#{name}').open")
        for width, scheme in LOOKS:
            await set_look(page, width, scheme)
            edges = f"document.querySelector('#{name}').getBoundingClientRect()"
            left, right = await page.evaluate(f"[{edges}.left, {edges}.right]")
            assert (left >= 0, right <= width) == (True, True), (name, width, left, right)
            assert await obstacles(page) == [], (name, width, scheme)
            await keep_picture(page, f"dialog-{name}", width, scheme)
        await page.evaluate(f"document.querySelector('#{name}').close()")


PARTS = ("access?service=web", "requests", "terminal", "terminal?account=root")
"""Pages below that of a device."""


async def press(page: BrowserPage, key: str, code: int, text: str = "") -> None:
    """Press a key and let it go."""
    more = {"text": text} if text else {}
    for kind in ("keyDown", "keyUp"):
        await page.call(
            "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more
        )


async def tab_to(page: BrowserPage, selector: str) -> list[str]:
    """Press Tab until this element has the focus; what had it on the way. All are seen to have."""
    passed = []
    for _ in range(60):
        await press(page, "Tab", 9)
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        here = await page.evaluate(
            f"[document.activeElement.matches({selector!r}), {outline},"
            " document.activeElement.outerHTML.slice(0, 120)]"
        )
        passed.append(here[2])
        if "<input" not in here[2]:
            assert here[1] != "none", f"nothing shows the focus: {here[2]}"
        if here[0]:
            return passed
    raise AssertionError(f"Tab does not come to {selector}: {passed}")


async def check_keyboard(page: BrowserPage, base: str, device_id: str) -> None:
    """Everything is reached by Tab, in the order of the page, and Esc closes what was opened."""
    await set_size(page, 1280, 900)
    await open_page(page, f"{base}/devices/{device_id}")
    passed = await tab_to(page, ".avatar")
    assert "skip" in passed[0]
    assert "brand" in passed[1]
    await press(page, "Enter", 13, "\r")
    await page.wait_until("document.querySelector('#me:popover-open')")
    await press(page, "Escape", 27)
    await page.wait_until("!document.querySelector('#me:popover-open')")
    assert await page.evaluate("document.activeElement.matches('.avatar')")
    await tab_to(page, "[commandfor=disable]")
    await press(page, "Enter", 13, "\r")
    await page.wait_until("document.querySelector('#disable').open")
    assert await page.evaluate("Boolean(document.activeElement.closest('#disable'))")
    await press(page, "Escape", 27)
    await page.wait_until("!document.querySelector('#disable').open")
    assert await page.evaluate("document.activeElement.matches('[commandfor=disable]')")
    await page.evaluate("document.activeElement.blur()")
    await press(page, "?", 191, "?")
    await page.wait_until("document.querySelector('#keys').open")
    await press(page, "Escape", 27)
    await page.wait_until("!document.querySelector('#keys').open")
    await press(page, "/", 191, "/")
    await page.wait_until("document.activeElement.matches('[role=search] input')")


async def check_kill(page: BrowserPage, api: LiveApi, bench: Bench, device: Device) -> None:
    """A device's session is ended from its page, after a question."""
    async with bench.agent(device.label):
        assert len(await bench.client.list_sessions()) == 1
        await open_page(page, f"{api.base}/devices/{device.id}")
        await page.evaluate("document.querySelector('[commandfor=end]').click()")
        await page.wait_until("document.querySelector('#end').open")
        await page.evaluate("document.querySelector('#end footer .main').click()")
        await page.wait_until(
            "document.querySelector('.toast')?.innerText.includes('session ended')"
        )
        while await bench.client.list_sessions():  # noqa: ASYNC110  the caller sets the deadline
            await trio.sleep(0.02)


async def check_pairing(page: BrowserPage, api: LiveApi, tenant: TenantRegistry) -> None:
    """One device is let in from the inbox, another by the code that it shows."""
    await open_page(page, f"{api.base}/inbox")
    assert "cam-99" in await page.evaluate("document.querySelector('#waiting').innerText")
    await page.evaluate(
        "document.querySelector('#waiting form[action$=\"/approve\"]').requestSubmit()"
    )
    await page.wait_until("!document.querySelector('#waiting').innerText.includes('cam-99')")
    assert await tenant.devices.find_named("cam-99")
    code = await ask_to_pair(api, "cam-98")
    await open_page(page, f"{api.base}/pair")
    await page.evaluate(f"document.querySelector('[name=code]').value = {code!r}")
    await page.evaluate("document.querySelector('[name=code]').form.requestSubmit()")
    await page.wait_until("document.querySelector('form[action$=\"/approve\"]')")
    await page.wait_until("document.documentElement.classList.contains('js')")
    await page.evaluate("document.querySelector('form[action$=\"/approve\"]').requestSubmit()")
    await page.wait_until("location.pathname === '/devices'")
    assert await tenant.devices.find_named("cam-98")


async def check_without_script(page: BrowserPage, base: str, paths: list[str]) -> None:
    """Every page can be read where no script runs, and forms that filter work."""
    await page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        for path in paths:
            await page.goto(base + path)
            url = f"{base}{path}"
            await page.wait_until(
                f"location.href === {url!r} && document.readyState === 'complete'"
                " && document.querySelector('main')"
            )
            shown = await page.evaluate(
                "[document.documentElement.className, document.querySelector('main').innerText,"
                " [...document.querySelectorAll('main button')].filter((one) =>"
                "  one.checkVisibility() && (!one.form || one.form.dataset.call)).length]"
            )
            assert shown[0] == "", path
            assert len(shown[1]) > 30, path
            assert shown[2] == 0, f"{path} shows a button that does nothing without a script"
            assert "connecting" not in shown[1], path
        await page.goto(f"{base}/devices")
        await page.wait_until("document.querySelector('main [name=q]')")
        await page.evaluate("document.querySelector('main [name=q]').value = 'site=berlin'")
        await page.evaluate("document.querySelector('main [name=q]').form.submit()")
        await page.wait_until(
            "location.search.includes('berlin') && document.readyState === 'complete'"
        )
        rows = "[...document.querySelectorAll('tbody th a')].map((one) => one.innerText.trim())"
        assert await page.evaluate(rows) == ["cam-1"]
    finally:
        await page.call("Emulation.setScriptExecutionDisabled", value=False)


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
    await keep_picture(page, "player-at-its-end", *LOOKS[0])
    await check_pieces(page, api, recording)


async def check_pieces(page: BrowserPage, api: LiveApi, recording: str) -> None:
    """Of a large recording only those pieces are read that are looked at."""
    folder = api.running.api.config.recordings.folder
    assert folder is not None
    (file,) = folder.rglob(f"{recording}.cast")
    data, points = b'{"version": 2, "width": 80, "height": 24}\n', []
    for number in range(6):
        points.append(IndexPoint(number + 1.0, number + 1.0, len(data), 80, 24))
        data += b'[%d.0, "o", "piece %d\\r\\n"]\n[%d.5, "o", "then\\r\\n"]\n' % (
            *(number + 1, number),
            number + 1,
        )
    file.write_bytes(data)
    points.append(IndexPoint(6.5, 6.5, len(data), 80, 24))
    file.with_suffix(".index").write_bytes(b"".join(point.line for point in points))
    await open_page(page, f"{api.base}/recordings/{recording}")
    player = "document.querySelector('tm-player')"
    await page.wait_until(f"{player}.length === 6.5 && {player}.bar")
    await page.evaluate(f"{player}.seek(5.2)")
    shown = "document.querySelector('.xterm-rows').innerText"
    await page.wait_until(f"{shown}.includes('piece 4')")
    assert await page.evaluate(f"{shown}.includes('piece 3') && !{shown}.includes('piece 2')")
    assert await page.evaluate(f"!{shown}.includes('piece 5')")
    asked = "performance.getEntriesByType('resource').map(e => e.name.split('?piece=')[1] ?? '')"
    await page.wait_until(f"{asked}.filter(Boolean).join() === '0,3,4'")
    # Playing goes on into the next piece, and to the end.
    await page.evaluate(f"{player}.querySelector('[data-play]').click()")
    await page.wait_until(f"{shown}.includes('piece 5') && {player}.at === 6.5")
    await page.evaluate(f"{player}.seek(1.2)")
    await page.wait_until(f"{shown}.includes('piece 0') && !{shown}.includes('piece 3')")


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


async def check_late(page: BrowserPage, api: LiveApi, tenant: TenantRegistry) -> None:
    """What a proxy writes down long after its event is shown too."""
    late, _ = await tenant.devices.add("late-1")
    await open_page(page, f"{api.base}/devices?q=late-1")
    await page.wait_until("document.querySelector('[data-live=on]')")
    shown = "document.querySelector('tbody').innerText"
    await tenant.devices.change(late.id, labels={"event": "now"})
    await page.wait_until(f"{shown}.includes('event=now')")
    await trio.sleep(6)  # more than the first late look waits
    assert "never seen" in await page.evaluate(shown)
    registry = api.running.api.registry
    async with trio.open_nursery() as nursery:
        nursery.start_soon(beating, registry, await connected(registry, late.id))
        await page.wait_until(f"{shown}.includes('online')")
        nursery.cancel_scope.cancel()


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
