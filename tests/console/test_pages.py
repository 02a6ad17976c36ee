"""The console's pages over real sockets: what they show to whom, and that they escape it."""

from __future__ import annotations

import gzip
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.consoles import Console, check_headers, console
from support.tenants import HOST_KEYS, SSH_KEY, TEST, a_recording, objects_of, person
from tunnelmux.api.routes import console as console_routes
from tunnelmux.config.api import GatewayEndpoint, RecordingsConfig
from tunnelmux.registry import LeaseTerms, TenantRegistry, parse_public_key

EVIL = "<script>alert(1)</script>"

ASSET = re.compile(r'(?:href|src)="(/static/[^"#]+)')


def wish(device_id: str, holder: str) -> LeaseTerms:
    """A lease that is asked for, with a reason that would be a script."""
    now = datetime.now(UTC)
    return LeaseTerms(
        device_id=device_id,
        services=("ssh",),
        holder=holder,
        holder_name=EVIL,
        reason=EVIL,
        starts=now,
        ends=now + timedelta(hours=1),
    )


async def default_tenant(here: Console) -> TenantRegistry:
    registry = here.api.running.api.registry
    found = await registry.installation(TEST).tenants.find_named("default")
    return registry.tenant(found.id, TEST)


async def test_text_of_others_is_escaped(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        browser = await here.sign_in(f'"{EVIL}', "owner")
        tenant = await default_tenant(here)
        device, _ = await tenant.devices.add(
            "cam-1", serial=EVIL, labels={"site": EVIL}, paired_by_name=EVIL
        )
        await tenant.devices.set_quarantine(device.id, EVIL)
        await tenant.leases.add(wish(device.id, here.user_ids[f'"{EVIL}']), approved=False)
        for path in (
            "/",
            f"/devices?q={EVIL}",
            f"/devices/{device.id}",
            "/inbox",
            f"/pair?code={EVIL}",
            "/people",
            "/audit",
        ):
            html = await here.page(browser, path)
            assert EVIL not in html, path
            assert "&lt;script&gt;" in html, path
            assert len(re.findall("<script", html)) == 1  # the console's own


async def test_an_address_that_leads_nowhere_is_a_page_for_a_person_only(tmp_path: Path) -> None:
    html = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8", "sec-fetch-mode": "navigate"}
    async with console(tmp_path) as here:
        browser = await here.sign_in("ada", "viewer")
        for path in ("/nothing", "/devices/x/nothing", "/static/0/x.css"):
            answer = await browser.get(here.api.base + path, **html)
            assert answer.status_code == 404
            check_headers(answer)
            assert "This address leads nowhere" in answer.text
            assert 'href="/devices"' in answer.text  # the way on
        for path, accept in (("/nothing", "application/json"), ("/api/nothing", html["accept"])):
            answer = await browser.get(here.api.base + path, accept=accept)
            assert answer.status_code == 404
            assert answer.json()["code"] == "not_found"


async def test_a_sign_in_that_fails_is_a_page_for_a_person(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        stranger = here.api.browser()
        stale = f"{here.api.base}/api/auth/callback?code=x&state=x"
        answer = await stranger.get(stale, accept="text/html")
        assert answer.status_code == 400
        check_headers(answer)
        assert "begin again at" in answer.text
        assert (await stranger.get(stale)).json()["code"] == "stale_sign_in"


async def test_files_never_change_under_their_path(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        browser = await here.sign_in("ada", "viewer")
        html = await here.page(browser, "/")
        paths = set(ASSET.findall(html))
        assert {path.rpartition("/")[2] for path in paths} == {
            "console.css",
            "console.js",
            "icons.svg",
            "live.js",
            "mark.svg",
            "stream.js",
            "swap.js",
        }
        for path in paths:
            packed = await browser.get(here.api.base + path, **{"accept-encoding": "gzip"})
            plain = await browser.get(here.api.base + path, **{"accept-encoding": "identity"})
            assert packed.status_code == plain.status_code == 200
            assert packed.headers["content-encoding"] == "gzip"
            assert "content-encoding" not in plain.headers
            assert packed.content == plain.content  # the client has unpacked it
            assert len(gzip.compress(plain.content)) < 20_000
            assert "immutable" in plain.headers["cache-control"]
            check_headers(plain)
        old = re.sub(r"/static/\w+/", "/static/0123456789ab/", next(iter(paths)))
        assert (await browser.get(here.api.base + old)).status_code == 404


async def test_pages_are_kept_nowhere(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        browser = await here.sign_in("ada", "viewer")
        assert (await browser.get(here.api.base + "/")).headers["cache-control"] == "no-store"


async def test_a_viewer_sees_no_button_that_would_be_refused(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        viewer = await here.sign_in("vera", "viewer")
        operator = await here.sign_in("otto", "operator")
        tenant = await default_tenant(here)
        device, _ = await tenant.devices.add("cam-1")
        path = f"/devices/{device.id}"
        action = f"/api/devices/{device.id}/disable"
        assert action in await here.page(operator, path)
        assert "/api/devices/" not in _actions(await here.page(viewer, path))
        await tenant.devices.set_enabled(device.id, False)
        assert f"/api/devices/{device.id}/enable" in _actions(await here.page(operator, path))
        assert "/api/devices/" not in _actions(await here.page(viewer, path))


def _actions(html: str) -> str:
    return " ".join(re.findall(r'action="([^"]+)"', html))


@pytest.mark.slow
async def test_an_empty_fleet_says_what_comes_next(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        operator = await here.sign_in("otto", "operator")
        viewer = await here.sign_in("vera", "viewer")
        assert '<a href="/pair">Pair the first one</a>' in await here.page(operator, "/")
        told = await here.page(viewer, "/")
        assert "An operator pairs the first one." in told
        assert "Pair the first one" not in told
        await (await default_tenant(here)).devices.add("cam-1")
        assert "no devices yet" not in await here.page(operator, "/")


async def test_another_tenant_shows_nowhere(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        victim = await person(here.api, "victim", tenant="victims")
        theirs = await objects_of(here.api, victim)
        browser = await here.sign_in("eve", "owner", tenant="attackers")
        for path in ("/", "/devices?q=secret", "/inbox", "/people", "/tokens", "/audit", "/pair"):
            html = await here.page(browser, path)
            assert "secret-" not in html
            assert "victim" not in html
        refused = await here.page(browser, f"/devices/{theirs['device_id']}", 404)
        assert "secret-" not in refused


async def test_devices_are_found_by_name_serial_label_and_state(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        browser = await here.sign_in("ada", "viewer")
        tenant = await default_tenant(here)
        await tenant.devices.add("cam-1", serial="SN1", labels={"site": "berlin"})
        other, _ = await tenant.devices.add("cam-2", labels={"site": "oslo"})
        await tenant.devices.set_enabled(other.id, False)

        async def names(query: str) -> list[str]:
            html = await here.page(browser, f"/devices?{query}")
            return re.findall(r'<a href="/devices/[-0-9a-f]{36}">([^<]+)</a>', html)

        assert await names("") == ["cam-1", "cam-2"]
        assert await names("q=cam-2") == ["cam-2"]
        assert await names("q=SN1") == ["cam-1"]
        assert await names("q=site%3Dberlin") == ["cam-1"]
        assert await names("q=cam+site%3Doslo") == ["cam-2"]
        assert await names("state=disabled") == ["cam-2"]
        assert await names("state=offline") == ["cam-1"]
        held, _ = await tenant.devices.add("cam-3")
        await tenant.devices.set_quarantine(held.id, "the lens is broken")
        assert await names("state=quarantine") == ["cam-3"]
        assert await names("state=offline") == ["cam-1"]
        assert 'id="count-quarantine" data-part>1<' in await here.page(browser, "/devices")
        assert await names("state=online") == []
        assert "No device fits" in await here.page(browser, "/devices?q=nothing")


@pytest.mark.slow
async def test_a_list_goes_on_behind_its_hundredth_device(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        browser = await here.sign_in("ada", "viewer")
        tenant = await default_tenant(here)
        for number in range(101):
            await tenant.devices.add(f"cam-{number:03}")
        first = await here.page(browser, "/devices?q=cam")
        more = re.search(r'href="(/devices\?[^"]+)">Next page', first)
        assert more is not None
        assert "cam-099" in first
        assert "cam-100" not in first
        assert "cam-100" in await here.page(browser, more[1].replace("&amp;", "&"))


async def test_a_page_tells_why_a_device_cannot_be_reached(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        browser = await here.sign_in("ada", "viewer")
        tenant = await default_tenant(here)
        device, _ = await tenant.devices.add("cam-1")
        page = f"/devices/{device.id}"
        assert "It cannot be reached: it has not connected yet" in await here.page(browser, page)
        await tenant.devices.set_quarantine(device.id, "the lens is broken")
        for path in (page, "/devices", "/"):
            assert "the lens is broken" in await here.page(browser, path)


async def test_a_person_without_a_tenant_is_told_so(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        browser = await here.sign_in("newcomer", None)
        html = await here.page(browser, "/", 403)
        assert "member of no tenant" in html
        assert 'aria-label="Console"' not in html  # no navigation that leads to refusals


async def test_a_program_is_told_where_the_json_is(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        program = await person(here.api, "program")
        answer = await here.api.call("GET", "/", program.token)
        assert answer.status_code == 403
        assert answer.json()["code"] == "no_browser_session"


async def test_a_wrong_address_is_answered_with_a_page(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        browser = await here.sign_in("ada", "viewer")
        await here.page(browser, "/devices?state=sideways", 422)
        await here.page(browser, "/devices/no-such-id", 404)


async def test_the_inbox_has_what_waits_and_only_for_who_may_decide(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        operator = await here.sign_in("otto", "operator")
        viewer = await here.sign_in("vera", "viewer")
        tenant = await default_tenant(here)
        assert "Nothing waits for you" in await here.page(operator, "/inbox")
        device, _ = await tenant.devices.add("cam-1")
        lease, _ = await tenant.leases.add(wish(device.id, here.user_ids["vera"]), approved=False)
        assert f"/api/leases/{lease.id}/approve" in _actions(await here.page(operator, "/inbox"))
        assert 'id="waiting-count" data-part>1<' in await here.page(operator, "/")
        await here.page(viewer, "/inbox", 403)
        html = await here.page(viewer, "/")
        assert "/inbox" not in html
        assert "waiting-count" not in html
        done = await operator.post(f"{here.api.base}/api/leases/{lease.id}/approve")
        assert done.status_code == 200
        assert "Nothing waits for you" in await here.page(operator, "/inbox")


async def test_a_lease_is_decided_on_the_page_of_its_device(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        operator = await here.sign_in("otto", "operator")
        viewer = await here.sign_in("vera", "viewer")
        tenant = await default_tenant(here)
        device, _ = await tenant.devices.add("cam-1")
        lease, _ = await tenant.leases.add(wish(device.id, here.user_ids["vera"]), approved=False)
        page = f"/devices/{device.id}"
        assert f"/api/leases/{lease.id}/deny" not in _actions(await here.page(viewer, page))
        offered = _actions(await here.page(operator, page))
        assert f"/api/leases/{lease.id}/approve" in offered
        assert f"/api/leases/{lease.id}/deny" in offered
        await operator.post(f"{here.api.base}/api/leases/{lease.id}/approve")
        offered = _actions(await here.page(operator, page))
        assert f"/api/leases/{lease.id}/approve" not in offered
        assert f"/api/leases/{lease.id}/end" in offered


async def test_the_plain_ssh_command_names_the_gateway(tmp_path: Path) -> None:
    there = GatewayEndpoint(address="gateway.example.com:2222")
    async with console(tmp_path, gateway=there) as here:
        browser = await here.sign_in("ada", "viewer")
        tenant = await default_tenant(here)
        device, _ = await tenant.devices.add("cam-1")
        await here.connected(device.id, "ssh")
        html = await here.page(browser, f"/devices/{device.id}")
        assert "<code>ssh -p 2222 root@cam-1@gateway.example.com</code>" in html


async def test_recordings_are_found_and_shown_to_those_who_may(tmp_path: Path) -> None:
    casts = tmp_path / "casts"
    async with console(tmp_path, recordings=RecordingsConfig(folder=casts)) as here:
        admin = await here.sign_in("anna", "admin")
        viewer = await here.sign_in("vera", "viewer")
        tenant = await default_tenant(here)
        device, _ = await tenant.devices.add("cam-1")
        wanted = {"device_label": "cam-1", "user_name": "vera", "command": f"uptime {EVIL}"}
        recorded = a_recording(device.id, here.user_ids["vera"], **wanted)
        await tenant.recordings.begin(recorded)
        other = a_recording(device.id, here.user_ids["anna"], device_label="cam-1", command="w")
        await tenant.recordings.begin(other)
        listed = await here.page(admin, "/recordings")
        assert f"/recordings/{recorded.id}" in listed
        assert f"/recordings/{other.id}" in listed
        assert EVIL not in listed
        found = await here.page(admin, "/recordings?q=UPTIME")
        assert f"/recordings/{recorded.id}" in found
        assert f"/recordings/{other.id}" not in found
        assert "No recording fits" in await here.page(admin, "/recordings?q=100%25")
        assert f"/recordings/{other.id}" not in await here.page(viewer, "/recordings")
        await here.page(viewer, f"/recordings/{other.id}", 404)
        html = await here.page(viewer, f"/recordings/{recorded.id}")
        assert EVIL not in html
        assert f"/api/recordings/{recorded.id}/cast" in html


async def test_the_set_up_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with console(tmp_path, gateway=GatewayEndpoint(address="127.0.0.1:9")) as here:
        admin = await here.sign_in("anna", "admin")
        answer = await admin.get(here.api.base + "/api/setup")
        states = {item["part"]: item["state"] for item in answer.json()}
        assert states == {
            "Registry": "good",
            "Sign-in provider": "good",
            "Name of this server": "good",
            "Certificate": "unknown",  # plain HTTP on loopback
            "Proxies": "bad",
            "Visitors": "unknown",
            "SSH gateway": "bad",
            "Recordings": "unknown",
        }
        html = await here.page(admin, "/setup")
        assert "none is running" in html
        assert "127.0.0.1:9 cannot be reached" in html
        here.provider.metadata["issuer"] = "https://another.example.com"
        broken = (await admin.get(here.api.base + "/api/setup")).json()[1]
        assert broken["state"] == "bad"

        async def at_localhost() -> str:
            return "http://localhost:8080"

        monkeypatch.setattr(here.api.running.api.visitors, "visitors_url", at_localhost)
        names = (await admin.get(here.api.base + "/api/setup")).json()[5]
        # Browsers know where they lead; whether a resolver does is not asked.
        assert (names["part"], names["state"]) == ("Visitors", "good")


async def test_many_devices_are_changed_at_once(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        operator = await here.sign_in("otto", "operator")
        viewer = await here.sign_in("vera", "viewer")
        tenant = await default_tenant(here)
        ids = [(await tenant.devices.add(f"cam-{n}", labels={"line": "1"}))[0].id for n in range(3)]
        assert "data-choose" in await here.page(operator, "/devices")
        assert "data-choose" not in await here.page(viewer, "/devices")
        bulk = here.api.base + "/api/devices/bulk"

        async def change(**wish: object) -> object:
            return (await operator.post(bulk, json=wish)).json()

        done = await change(ids=[*ids[:2], "no-such-device"], action="disable")
        assert isinstance(done, dict)
        assert done["changed"] == 2
        assert [item["code"] for item in done["failed"]] == ["not_found"]
        assert [(await tenant.devices.find(one)).enabled for one in ids] == [False, False, True]
        await change(ids=ids, action="enable")
        await change(ids=ids, action="label", label="site=oslo")
        assert (await tenant.devices.find(ids[2])).labels == {"line": "1", "site": "oslo"}
        await change(ids=ids[:1], action="revoke")
        assert [item.state for item in await tenant.credentials.of(ids[0])] == ["ended"]
        assert (await operator.post(bulk, json={"ids": ids, "action": "label"})).status_code == 409
        assert (await viewer.post(bulk, json={"ids": ids, "action": "enable"})).status_code == 403


async def test_new_host_keys_are_shown_and_an_operator_accepts_them(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        operator = await here.sign_in("otto", "operator")
        viewer = await here.sign_in("vera", "viewer")
        devices = (await default_tenant(here)).devices
        device, _ = await devices.add("cam-1")
        page, path = f"/devices/{device.id}", f"/api/devices/{device.id}/ssh-host-keys"
        url = here.api.base + path
        old, new = HOST_KEYS
        await devices.report_host_keys(device.id, (old,))
        assert "new host keys" not in await here.page(operator, page)
        await devices.report_host_keys(device.id, (new,))
        fingerprint = parse_public_key(new).fingerprint
        html = await here.page(operator, page)
        assert f"ssh-ed25519 {fingerprint}</code>" in html
        assert f'action="{path}/accept"' in html
        (sent,) = re.findall(r'name="fingerprints\[\]" value="([^"]+)"', html)
        seen = await here.page(viewer, page)
        assert fingerprint in seen
        assert f"{path}/accept" not in seen
        assert (
            await viewer.post(f"{url}/accept", json={"fingerprints": [sent]})
        ).status_code == 403
        stale = await operator.post(f"{url}/accept", json={"fingerprints": ["SHA256:other"]})
        assert (stale.status_code, stale.json()["code"]) == (409, "changed_meanwhile")
        done = (await operator.post(f"{url}/accept", json={"fingerprints": [sent]})).json()
        assert [key["line"] for key in done["pinned"]] == [new]
        assert done["reported"] == []
        assert "new host keys" not in await here.page(operator, page)
        assert (await viewer.get(url)).json() == done


async def test_a_terminal_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "gateway.pub"
    key.write_text(SSH_KEY)
    there = GatewayEndpoint(address="gateway.example.com:22", host_key_file=key)
    async with console(tmp_path, gateway=there) as here:
        browser = await here.sign_in("ada", "viewer")
        device, _ = await (await default_tenant(here)).devices.add("cam-1")
        page = f"/devices/{device.id}/terminal"
        assert "As which account" in await here.page(browser, page)
        await here.page(browser, f"{page}?account=-oProxyCommand", 422)
        monkeypatch.setattr(console_routes.console_assets(), "has_terminal", False)
        html = await here.page(browser, f"{page}?account=root")
        assert "make vendor" in html
        assert "<code>ssh root@cam-1@gateway.example.com</code>" in html
        assert "tm-terminal" not in html


async def test_without_a_gateway_there_is_no_terminal(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        browser = await here.sign_in("ada", "viewer")
        device, _ = await (await default_tenant(here)).devices.add("cam-1")
        await here.connected(device.id, "ssh")
        assert "host_key_file" in await here.page(browser, f"/devices/{device.id}/terminal")
        assert "/terminal" not in _actions(await here.page(browser, f"/devices/{device.id}"))


async def test_an_invitation_leads_to_a_page_for_strangers_too(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        html = await here.page(here.api.browser(), "/invitation")
        assert "/api/auth/login?return_to=/invitation" in html
        assert 'aria-label="Console"' not in html
        for path in set(ASSET.findall(html)):
            assert (await here.api.call("GET", path)).status_code == 200
        newcomer = await here.sign_in("newcomer", None)
        assert "/api/invitations/accept" in _actions(await here.page(newcomer, "/invitation"))


async def test_a_device_is_found_by_the_code_that_it_shows(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        operator = await here.sign_in("otto", "operator")
        asked = {"name": "cam-1", "serial": "SN1", "fingerprint": "", "agent_version": "1"}
        answer = await here.api.call("POST", "/api/pairing/requests", json=asked)
        code = answer.json()["code"]
        html = await here.page(operator, f"/pair?code={code}")
        assert "Let this device in?" in html
        assert "SN1" in html
        approve = re.search(r'action="(/api/pairings/[^"]+/approve)"', html)
        assert approve is not None
        done = await operator.post(here.api.base + approve[1], json={"name": "cam-1"})
        assert done.status_code == 200
        assert "finds no device" in await here.page(operator, f"/pair?code={code}")


async def test_an_admin_revokes_an_install_key_with_its_devices(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        admin = await here.sign_in("ann", "admin")
        wish = {"name": EVIL[:100], "max_uses": 5}
        made = await admin.post(here.api.base + "/api/install-keys", json=wish)
        joined = {"key": made.json()["key"], "name": "cam-1"}
        await here.api.call("POST", "/api/pairing/install", json=joined)
        operator = await here.sign_in("otto", "operator")
        assert "Install keys" not in await here.page(operator, "/pair")
        html = await here.page(admin, "/pair")
        assert EVIL not in html
        assert "used 1 of 5 times" in html
        revoke = re.search(r'action="(/api/install-keys/[^"]+/revoke)"', html)
        assert revoke is not None
        dialog = html.partition(revoke[0])[2].partition("</dialog>")[0]
        assert re.findall(r'<option value="(\w+)"', dialog) == ["keep", "disable", "remove"]
        done = await admin.post(here.api.base + revoke[1], json={"devices": "remove"})
        assert len(done.json()["removed"]) == 1
        assert "Install keys" not in await here.page(admin, "/pair")


async def test_a_code_for_a_device_comes_with_its_picture(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        operator = await here.sign_in("otto", "operator")
        made = await operator.post(here.api.base + "/pair", data={"name": "cam-1"})
        check_headers(made)
        assert made.headers["cache-control"] == "no-store"
        command = re.search(r"<code>tunnelmux-agent pair (\S+) --url", made.text)
        assert command is not None
        assert "<svg" in made.text.partition("as a QR code")[2]
        joined = await here.api.call("POST", "/api/pairing/exchange", json={"code": command[1]})
        assert joined.json()["device"] == "cam-1"
        crossed = await operator.request(
            "POST", here.api.base + "/pair", headers={"sec-fetch-site": "cross-site"}
        )
        assert not isinstance(crossed, str)
        assert crossed.status_code == 403


async def test_a_person_who_never_signed_in_is_shown(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        owner = await here.sign_in("olga", "owner")
        registry = here.api.running.api.registry
        home = await registry.installation(TEST).tenants.find_named("default")
        users = registry.installation(TEST).users
        known = {"issuer": here.provider.issuer, "force": True}
        await users.grant(home.id, "operator", subject="nora", **known)
        await users.grant(home.id, "viewer", email="nick@example.com", **known)
        html = await here.page(owner, "/people")
        members = (await owner.get(f"{here.api.base}/api/members")).json()["items"]
        [nora] = [one for one in members if one["last_sign_in"] is None]
        assert nora["role"] == "operator"
        assert "<strong>nora</strong>" in html  # what the provider calls her is all that is known
        assert 'aria-label="Role of nora"' in html
        assert html.count("has not signed in yet") == 1  # the owner has
        assert f"/api/members/{nora['user_id']}" in _actions(html)  # an owner may take it back
        assert "<strong>nick@example.com</strong>" in html.partition('id="invitations"')[2]


async def test_each_person_to_ask_about_has_a_name(tmp_path: Path) -> None:
    """The page *Access* has the names of all members, whatever is known of them."""
    async with console(tmp_path) as here:
        viewer = await here.sign_in("vera", "viewer")
        await here.sign_in(EVIL, "operator")
        registry = here.api.running.api.registry
        home = await registry.installation(TEST).tenants.find_named("default")
        users = registry.installation(TEST).users
        known = {"issuer": here.provider.issuer, "force": True}
        await users.grant(home.id, "admin", subject="nora", **known)
        ben = await users.sign_in(
            issuer=here.provider.issuer, subject="ben", email="ben@example.com", name=""
        )
        await users.grant(home.id, "viewer", subject=ben.subject, **known)
        device, _ = await (await default_tenant(here)).devices.add("cam-1")
        html = await here.page(viewer, f"/devices/{device.id}/access?person={ben.id}")
        shown = dict(re.findall(r'<option value="(\w[\w-]*)"[^>]*>([^<]*)</option>', html))
        others = [words for who, words in shown.items() if who not in here.user_ids.values()]
        assert sorted(others) == ["ben@example.com, viewer", "nora, admin"]
        assert shown[here.user_ids["vera"]] == "vera, viewer"
        assert shown[here.user_ids[EVIL]] == "&lt;script&gt;alert(1)&lt;/script&gt;, operator"
        assert f'<option value="{ben.id}" selected>' in html
        assert EVIL not in html


async def test_people_and_tokens_offer_what_the_role_may(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        admin = await here.sign_in("anna", "admin")
        viewer = await here.sign_in("vera", "viewer")
        owner = await here.sign_in("olga", "owner")
        html = await here.page(admin, "/people")
        assert f"/api/members/{here.user_ids['vera']}" in _actions(html)
        assert f"/api/members/{here.user_ids['olga']}" not in _actions(html)  # above an admin
        assert f"/api/members/{here.user_ids['anna']}" not in _actions(html)
        assert "<option>owner" not in html
        assert "/api/invitations" in _actions(html)
        assert "/api/" not in _actions(await here.page(viewer, "/people")).replace("/api/auth", "")
        assert "<option>operator" not in await here.page(viewer, "/tokens")
        assert "<option>owner" in await here.page(owner, "/tokens")
        await here.page(viewer, "/audit", 403)
        assert "/audit" not in await here.page(viewer, "/")
        await (await default_tenant(here)).devices.add("cam-1")
        assert "device.add" in await here.page(admin, "/audit?action=device.")
