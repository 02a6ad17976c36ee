"""The switch as a page on loopback: what it does, and what other sites cannot make it do."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from support.browser import browser_page
from tunnelmux.agent.assist import LeaseOffer
from tunnelmux.agent.assist.service import AssistService
from tunnelmux.config import AgentConfig, Device, ProxyEndpoint, Secret, ServiceConfig
from tunnelmux.config.assist import AssistConfig

OFFER = LeaseOffer(
    id="00000000-0000-7000-8000-000000000001",
    who="<b>Ada</b>",
    reason="printer jams",
    services=("ssh",),
    rights=("shell",),
    seconds=3600.0,
)
ON = {"do": "on", "seconds": 600}


@asynccontextmanager
async def page(folder: Path, **assist: Any) -> AsyncIterator[tuple[AssistService, str]]:
    """A device's page, and its URL."""
    settings: dict[str, Any] = {"mode": "ask", "page": "127.0.0.1:0", "ask_timeout": 300.0}
    service = AssistService(
        AgentConfig(
            device=Device(name="cam1", serial="SN-7", state_dir=folder / "state"),
            proxy=ProxyEndpoint(url="ws://127.0.0.1:1/tunnel/connect", token=Secret("t")),
            services=[ServiceConfig(name="ssh", target="tcp://127.0.0.1:22")],
            assist=AssistConfig(**(settings | assist)),
        )
    )
    with service.opened():
        await service.learn_serial()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run)
            with trio.fail_after(30):
                while service.page_address is None:  # noqa: ASYNC110  it tells nobody
                    await trio.sleep(0.01)
            yield service, f"http://{service.page_address}"
            nursery.cancel_scope.cancel()


async def test_the_json_tells_and_switches(tmp_path: Path) -> None:
    async with page(tmp_path) as (service, url), httpx2.AsyncClient(trust_env=False) as client:
        state = (await client.get(f"{url}/api/assist")).json()
        assert (state["serial"], state["mode"], state["leases"]) == ("SN-7", "ask", [])
        service.desk.offer(OFFER)
        state = (await client.get(f"{url}/api/assist")).json()
        assert state["leases"][0]["state"] == "asked"
        answer = await client.post(f"{url}/api/assist", json={"do": "yes", "lease": OFFER.id})
        assert answer.json()["status"]["leases"][0]["state"] == "running"
        again = await client.post(f"{url}/api/assist", json={"do": "yes", "lease": OFFER.id})
        assert (again.status_code, "no such request" in again.json()["problem"]) == (409, True)
        assert (await client.post(f"{url}/api/assist", json=ON)).json()["status"]["mode"] == "allow"
        await client.post(f"{url}/api/assist", json={"do": "off"})
        assert (service.desk.mode, service.desk.leases) == ("off", [])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "attacker.example"}, 403),
        ({"host": "attacker.example:{port}"}, 403),
        ({"host": "127.0.0.1"}, 403),
        ({"host": "localhost:{port}"}, 200),
        ({"origin": "http://attacker.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://127.0.0.1:{port}"}, 403),
        ({"origin": "http://127.0.0.1:{port}"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
async def test_no_other_site_switches(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async with page(tmp_path) as (service, url), httpx2.AsyncClient(trust_env=False) as client:
        port = url.rpartition(":")[2]
        sent = {"content-type": "application/json"}
        sent |= {name: value.format(port=port) for name, value in headers.items()}
        answer = await client.post(
            f"{url}/api/assist", content=b'{"do": "on", "seconds": 600}', headers=sent
        )
        assert answer.status_code == status
        assert (service.desk.mode == "allow") is (status == 200)
        assert "access-control-allow-origin" not in answer.headers


async def test_rubbish_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async with page(tmp_path) as (service, url), httpx2.AsyncClient(trust_env=False) as client:
        for body in (b"", b"{}", b"[" * 10_000, b"x" * 50_000, b'{"do": "fly"}', b"\xff"):
            answer = await client.post(
                f"{url}/api/assist", content=body, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400, body[:20]
        assert (await client.delete(f"{url}/api/assist")).status_code == 405
        for path in ("/..%2f..%2fetc/passwd", "/desk.py", "/page.html", "/api/nothing"):
            assert (await client.get(f"{url}{path}")).status_code == 404
        assert service.desk.mode == "ask"


async def test_connections_that_say_nothing_keep_nobody_from_the_switch(tmp_path: Path) -> None:
    """Any page in a browser of the device may open them, and send no request."""
    async with page(tmp_path) as (service, url), httpx2.AsyncClient(trust_env=False) as client:
        host, _, port = url.removeprefix("http://").rpartition(":")
        with trio.fail_after(30):
            silent = [await trio.open_tcp_stream(host, int(port)) for _ in range(40)]
            for stream in silent[:8]:  # there are 32 places
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""
            await client.post(f"{url}/api/assist", json=ON)
        assert service.desk.mode == "allow"
        for stream in silent:
            await trio.aclose_forcefully(stream)


async def test_only_the_sites_that_are_named_may_show_it_in_a_frame(tmp_path: Path) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        async with page(tmp_path) as (_, url):
            policy = (await client.get(url)).headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy
            assert "default-src 'none'; script-src 'self'" in policy
        async with page(tmp_path, page_origins=["https://device.local"]) as (_, url):
            policy = (await client.get(url)).headers["content-security-policy"]
            assert policy.endswith("frame-ancestors https://device.local")


@pytest.mark.slow
async def test_a_person_answers_and_stops_in_a_browser(tmp_path: Path, chromium: str) -> None:
    keys = tmp_path / "authorized_keys"
    async with (
        page(tmp_path, account_keys=keys) as (service, url),
        browser_page(chromium, tmp_path / "profile", width=360, height=740) as tab,
    ):
        with trio.fail_after(120):
            await tab.goto(url)
            await tab.wait_until("document.querySelector('#serial')?.textContent == 'SN-7'")
            service.desk.offer(OFFER)
            await tab.wait_until("document.querySelector('.leases li')")
            # What came from elsewhere is text, and nothing else.
            assert await tab.evaluate("document.querySelector('.who strong').textContent") == (
                "<b>Ada</b>"
            )
            assert await tab.evaluate("document.querySelector('.who b') === null")
            await tab.evaluate("document.querySelector('.leases button').click()")
            await tab.wait_until("document.querySelector('.leases li')?.dataset.state == 'running'")
            await tab.evaluate("document.querySelector('#make').click()")
            await tab.wait_until("!document.querySelector('#code').hidden")
            code = await tab.evaluate("document.querySelector('#letters').textContent")
            assert len(code.replace("-", "")) == 16
            # Nothing is wider than a telephone.
            assert await tab.evaluate("document.documentElement.scrollWidth") <= 360
            await tab.evaluate("document.querySelector('#off').click()")
            await tab.wait_until("document.querySelector('#state').dataset.mode == 'off'")
            assert service.desk.leases == []
            await tab.wait_until("document.querySelector('#code').hidden")
