"""The first page and a device's timeline: what they tell, to whom, and the same as JSON."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.consoles import Console, console
from support.internal import running_bench
from support.tenants import SSH_KEY, TEST
from tunnelmux.errors import ConnectError
from tunnelmux.registry import AssistState, LeaseTerms, TenantRegistry, parse_public_key

pytestmark = pytest.mark.slow


async def home_of(here: Console, name: str = "default") -> TenantRegistry:
    registry = here.api.running.api.registry
    found = await registry.installation(TEST).tenants.find_named(name)
    return registry.tenant(found.id, TEST)


@asynccontextmanager
async def with_proxies(
    here: Console, monkeypatch: pytest.MonkeyPatch, *proxies: object
) -> AsyncIterator[None]:
    async def clients() -> list[object]:
        return [getattr(one, "client", one) for one in proxies]

    monkeypatch.setattr(here.api.running.api.proxies, "clients", clients)
    yield


class AwayProxy:
    """A proxy that cannot be reached."""

    async def list_traffic(self, **_asked: object) -> object:
        raise ConnectError("it is away")


async def test_traffic_is_that_of_the_own_tenant_over_all_proxies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        console(tmp_path) as here,
        running_bench() as first,
        running_bench() as second,
        first.agent("busy") as busy,
        second.agent("quiet") as quiet,
        second.agent("theirs--acme") as theirs,
        with_proxies(here, monkeypatch, first, second),
    ):
        viewer = await here.sign_in("vera", "viewer")
        tenant = await home_of(here)
        await here.sign_in("eve", "viewer", tenant="acme")
        for name in ("busy", "quiet"):
            await tenant.devices.add(name)
        await (await home_of(here, "acme")).devices.add("theirs")
        for agent, size in ((busy, 50_000), (quiet, 2_000), (theirs, 90_000)):
            stream = await agent.session.open_stream()
            await stream.send_all(b"x" * size)
            await agent.session.ping()  # what was sent before it has arrived
        told = (await viewer.get(f"{here.api.base}/api/overview")).json()
        assert [one["device"] for one in told["traffic"]["busiest"]] == ["busy", "quiet"]
        assert 52_000 < told["traffic"]["bytes_from_device"] < 53_000
        assert told["traffic"]["is_complete"]
        page = await here.page(viewer, "/")
        assert "kB from it in" in page
        assert "theirs" not in page
        async with with_proxies(here, monkeypatch, first, AwayProxy()):
            told = (await viewer.get(f"{here.api.base}/api/overview")).json()
            assert not told["traffic"]["is_complete"]
            assert "A proxy does not answer" in await here.page(viewer, "/")


async def test_the_overview_as_json_has_what_the_page_has(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        viewer = await here.sign_in("vera", "viewer")
        tenant = await home_of(here)
        await tenant.devices.add("cam-1")
        held, _ = await tenant.devices.add("cam-2")
        await tenant.devices.set_quarantine(held.id, "the lens is broken")
        told = (await viewer.get(f"{here.api.base}/api/overview")).json()
        assert told["devices"] == {
            "all": 2,
            "online": 0,
            "offline": 1,
            "quarantine": 1,
            "disabled": 0,
        }
        assert [(one["device"], one["state"]) for one in told["attention"]] == [
            ("cam-2", "in quarantine"),
            ("cam-1", "never seen"),
        ]
        page = await here.page(viewer, "/")
        assert 'href="/api/overview"' in page
        assert "No device is connected." in page
        for one in told["attention"]:
            assert one["reason"] in page


async def test_a_timeline_tells_of_leases_and_to_admins_who_changed_what(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        admin = await here.sign_in("anna", "admin")
        viewer = await here.sign_in("vera", "viewer")
        tenant = await home_of(here)
        device, _ = await tenant.devices.add("cam-1")
        await here.connected(device.id, "ssh")
        now = datetime.now(UTC)
        terms = LeaseTerms(
            device_id=device.id,
            services=("ssh",),
            holder=here.user_ids["vera"],
            holder_name="Vera",
            reason="ticket 7",
            starts=now,
            ends=now + timedelta(hours=1),
        )
        lease, _ = await tenant.leases.add(terms, approved=False)
        await tenant.leases.end(lease.id, "done with it")
        base = f"{here.api.base}/api/devices/{device.id}"
        assert (await admin.post(f"{base}/disable")).status_code == 200
        page = await here.page(admin, f"/devices/{device.id}")
        timeline = page.partition('<ol class="timeline">')[2].partition("</ol>")[0]
        for words in ("connected", "lease for Vera", "lease of Vera ended", "done with it"):
            assert words in timeline, words
        assert "disabled" in timeline
        # Who did it is a person with a name, also one who came by a browser.
        assert "by anna" in timeline
        shown = await here.page(viewer, f"/devices/{device.id}")
        assert "lease for Vera" in shown
        assert "by anna" not in shown  # the audit is for admins
        assert "device.disable" in await here.page(admin, "/audit")
        entries = (await admin.get(f"{here.api.base}/api/audit?action=device.disable")).json()
        assert [one["actor"]["name"] for one in entries["items"]] == ["anna"]


async def test_a_device_that_asks_for_help_comes_first_and_a_lease_can_be_asked_for(
    tmp_path: Path,
) -> None:
    async with console(tmp_path) as here:
        viewer = await here.sign_in("vera", "viewer")
        operator = await here.sign_in("otto", "operator")
        tenant = await home_of(here)
        await tenant.devices.add("broken")
        device, _ = await tenant.devices.add("till")
        await here.connected(device.id, "ssh", "web")
        page = f"/devices/{device.id}"
        assert 'id="lend"' not in await here.page(viewer, page)  # it takes no leases
        fleet = here.api.running.api.registry.fleet
        wish = AssistState(
            mode="allow",
            services=("ssh",),
            longest=7200.0,
            until=datetime.now(UTC) + timedelta(hours=1),
        )
        await fleet.report_assist(device.id, wish)
        told = (await viewer.get(f"{here.api.base}/api/overview")).json()["attention"]
        assert [(one["device"], one["state"]) for one in told] == [
            ("till", "asks for help"),
            ("broken", "never seen"),
        ]
        assert "assistance with ssh is switched on there, until" in await here.page(viewer, "/")
        shown = await here.page(viewer, page)
        assert "A person at this device asks for help" in shown
        assert 'id="lend"' in shown
        assert "An operator has to approve it." in shown
        sent = {
            "device": device.id,
            "services": ["ssh"],
            "reason": "the till is silent",
            "seconds": "3600",  # as the page's form sends it
        }
        asked = await viewer.post(f"{here.api.base}/api/leases", json=sent)
        assert (asked.status_code, asked.json()["state"]) == (201, "requested")
        assert "the till is silent" in await here.page(operator, "/inbox")
        await fleet.report_assist(device.id, replace(wish, until=None, mode="off"))
        shown = await here.page(viewer, page)
        assert "asks for help" not in shown
        assert 'id="lend"' not in shown


async def test_an_ssh_key_waits_in_the_inbox_with_its_fingerprint(tmp_path: Path) -> None:
    async with console(tmp_path) as here:
        operator = await here.sign_in("otto", "operator")
        keys = (await home_of(here)).install_keys
        _, install_key = await keys.add("batch", lifetime=3600, max_uses=5, needs_approval=True)
        sent = {"key": SSH_KEY, "install_key": install_key.reveal()}
        waits = await here.api.call("POST", "/api/devices/SN-9/ssh-keys", json=sent)
        assert waits.status_code == 202
        page = await here.page(operator, "/inbox")
        fingerprint = f"SSH key {parse_public_key(SSH_KEY).fingerprint}"
        assert f'<p class="proof">{fingerprint}</p>' in page
        assert '<span class="tag accent">SSH key</span>' in page
        action = re.search(r'action="(/api/pairings/[^"]+/approve)"', page)
        assert action is not None
        done = await operator.post(here.api.base + action[1], json={"name": "scanner"})
        assert done.status_code == 200
        sent = {"key": SSH_KEY, "secret": waits.json()["secret"]}
        let_in = await here.api.call("POST", "/api/devices/SN-9/ssh-keys", json=sent)
        assert let_in.status_code == 201
        assert "Nothing waits for you" in await here.page(operator, "/inbox")


async def test_a_web_service_has_a_link_that_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with console(tmp_path) as here:
        viewer = await here.sign_in("vera", "viewer")
        tenant = await home_of(here)
        device, _ = await tenant.devices.add("cam-1")
        await here.connected(device.id, "web", "ssh")
        page = f"/devices/{device.id}"
        assert ">Open</a>" not in await here.page(viewer, page)  # no proxy has said where

        async def visitors_url() -> str:
            return "https://tunnels.example.com:8443"

        monkeypatch.setattr(here.api.running.api.visitors, "visitors_url", visitors_url)
        shown = await here.page(viewer, page)
        links = re.findall(r'<a [^>]*href="([^"]+)"[^>]*>Open</a>', shown)
        assert links == ["https://web--cam-1.tunnels.example.com:8443/"]  # and none for ssh
        assert 'rel="noopener noreferrer">Open' in shown
