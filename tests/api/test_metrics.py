"""What Prometheus reads: on a listener of its own, with labels that no caller can make more of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from prometheus_client.parser import text_string_to_metric_families

from support.apis import LiveApi, live_api
from support.fake_oidc import fake_provider
from support.tenants import person
from tunnelmux.config.api import MetricsListener, OIDCConfig

Labels = dict[str, str]


@asynccontextmanager
async def scraped_api(folder: Path, oidc: Any = None) -> AsyncIterator[LiveApi]:
    metrics = MetricsListener(listen="127.0.0.1:0")
    async with live_api(folder, oidc, metrics=metrics) as api:
        yield api


async def scrape(api: LiveApi) -> dict[str, list[tuple[Labels, float]]]:
    """Every sample by name."""
    url = f"http://127.0.0.1:{api.running.metrics_port}/metrics"
    answer = await api.client.get(url)
    assert answer.status_code == 200
    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


async def value(api: LiveApi, name: str, **labels: str) -> float:
    """The one sample with exactly these labels; 0 where there is none."""
    samples = (await scrape(api)).get(name, [])
    return next((value for found, value in samples if found == labels), 0.0)


def damage(folder: Path) -> None:
    """Make the registry's files something else."""
    for file in folder.glob("registry.db*"):
        file.write_bytes(b"this is no database " * 400)


async def test_requests_count_under_their_routes_template(tmp_path: Path) -> None:
    async with scraped_api(tmp_path) as api:
        owner = await person(api, "ada")
        for number in range(3):
            await api.call("GET", f"/api/devices/018f-{number}", owner.token)
        await api.call("GET", "/api/devices", owner.token)
        await api.call("GET", "/api/devices")
        await api.call("GET", "/api/not/there", owner.token)
        await api.call("BREW", "/api/health")
        requests = (await scrape(api))["tunnelmux_api_requests_total"]
        counted = {
            (labels["method"], labels["route"], labels["status"]): count
            for labels, count in requests
        }
        assert counted == {
            ("GET", "/api/devices/{device_id}", "4xx"): 3,
            ("GET", "/api/devices", "2xx"): 1,
            ("GET", "none", "4xx"): 2,
            ("other", "/api/health", "4xx"): 1,
        }
        name = "tunnelmux_api_request_seconds_count"
        assert await value(api, name, route="/api/devices/{device_id}") == 3


async def test_no_caller_can_add_labels(tmp_path: Path) -> None:
    async with scraped_api(tmp_path) as api:
        owner = await person(api, "ada")
        await api.call("GET", "/api/nothing", owner.token)
        before = len((await scrape(api))["tunnelmux_api_requests_total"])
        for number in range(20):
            await api.call("GET", f"/api/nothing/{number}", owner.token)
            await api.call("GET", f"/api/devices/{number}/http/web/{number}")
        assert len((await scrape(api))["tunnelmux_api_requests_total"]) == before


async def test_a_websocket_counts_too(tmp_path: Path) -> None:
    async with scraped_api(tmp_path) as api:
        owner = await person(api, "ada")
        upgrade = {
            "authorization": f"Bearer {owner.token}",
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        path = "/api/devices/00000000-0000-7000-8000-000000000000/ws/web/"
        answer = await api.client.get(api.base + path, headers=upgrade)
        samples = (await scrape(api))["tunnelmux_api_requests_total"]
        ((labels, count),) = [item for item in samples if item[0]["method"] == "WS"]
        assert labels["route"].startswith("/api/devices/{device_id}/ws/{service}")
        assert (labels["status"], count) == (f"{answer.status_code // 100}xx", 1)


async def test_sign_ins_count_by_outcome(tmp_path: Path) -> None:
    async with fake_provider() as fake:

        @asynccontextmanager
        async def provider(_base: str) -> AsyncIterator[OIDCConfig]:
            yield OIDCConfig(issuer=fake.issuer, client_id=fake.client_id, timeout=20)

        async with scraped_api(tmp_path, provider) as api:
            for nonce in (None, "another"):
                if nonce is not None:
                    fake.claims["nonce"] = nonce
                browser = api.browser()
                page = await browser.request(
                    "GET", f"{api.base}/api/auth/login", stop_at=fake.issuer
                )
                assert isinstance(page, str)
                callback = f"{api.base}/api/auth/callback?{fake.callback_for(page)}"
                await browser.request("GET", callback, stop_at=f"{api.base}/")
                await api.call("GET", f"/api/auth/callback?{fake.callback_for(page)}")
            name = "tunnelmux_api_sign_ins_total"
            assert await value(api, name, outcome="signed_in") == 1
            assert await value(api, name, outcome="sign_in_failed") == 1
            assert await value(api, name, outcome="stale_sign_in") == 2


async def test_a_provider_that_is_away_is_an_outcome(tmp_path: Path) -> None:
    async with scraped_api(tmp_path) as api:
        await api.call("GET", "/api/auth/login")
        assert await value(api, "tunnelmux_api_sign_ins_total", outcome="provider_away") == 1


async def test_followers_count_while_they_follow(tmp_path: Path) -> None:
    async with scraped_api(tmp_path) as api:
        owner = await person(api, "ada")
        name = "tunnelmux_api_event_followers"
        assert await value(api, name) == 0
        headers = {"authorization": f"Bearer {owner.token}"}
        async with api.client.stream("GET", f"{api.base}/api/events", headers=headers):
            assert await value(api, name) == 1
        with trio.fail_after(20):
            while await value(api, name):
                await trio.lowlevel.checkpoint()


async def test_calls_that_the_registry_cannot_do_count(tmp_path: Path) -> None:
    async with scraped_api(tmp_path) as api:
        owner = await person(api, "ada")
        name = "tunnelmux_api_registry_failures_total"
        assert await value(api, name, kind="failed") == 0
        damage(tmp_path)
        answer = await api.call("GET", "/api/devices", owner.token)
        assert answer.status_code == 503
        assert await value(api, name, kind="failed") >= 1


async def test_nothing_else_is_there_and_without_the_table_nothing_at_all(tmp_path: Path) -> None:
    async with scraped_api(tmp_path) as api:
        elsewhere = f"http://127.0.0.1:{api.running.metrics_port}/api/health"
        assert (await api.client.get(elsewhere)).status_code == 404
        assert (await api.call("GET", "/metrics")).status_code == 401
    async with live_api(tmp_path) as api:
        assert api.running.metrics_port is None
