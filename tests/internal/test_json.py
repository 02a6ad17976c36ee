"""The JSON that existing back ends read, key by key."""

from __future__ import annotations

import re

from support.internal import running_bench
from tunnelmux.sessions import LocalHandle

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


async def test_one_session_is_in_snake_case() -> None:
    async with running_bench() as bench, bench.agent():
        session = (await bench.ask("GET", "/internal/session/token-of-dev1")).json
    assert TIME.fullmatch(session.pop("connected_at"))
    assert TIME.fullmatch(session.pop("last_heartbeat"))
    assert session == {
        "token": "token-of-dev1",
        "connected": True,
        "remote_addr": "192.0.2.7:50000",
        "user_id": "",
        "device_id": "dev1",
    }


async def test_the_list_is_in_camel_case() -> None:
    async with running_bench() as bench, bench.agent("dev2"), bench.agent("dev1"):
        content = (await bench.ask("GET", "/internal/sessions")).json
    assert sorted(content) == ["sessions", "total"]
    assert content["total"] == 2
    first, second = content["sessions"]
    assert TIME.fullmatch(first.pop("connectedAt"))
    assert TIME.fullmatch(first.pop("lastHeartbeat"))
    assert first == {
        "token": "token-of-dev1",
        "userId": "",
        "deviceId": "dev1",
        "remoteAddr": "192.0.2.7:50000",
    }
    assert second["deviceId"] == "dev2"


async def test_what_an_agent_says_is_in_the_list_if_that_is_asked_for() -> None:
    """Back ends that exist may refuse keys that they do not know."""
    async with running_bench() as bench, bench.agent("dev1"):
        handle = await bench.store.find_device("dev1")
        assert isinstance(handle, LocalHandle)
        handle.agent_version, handle.services = "1.2.3", ("web", "ssh")
        [bare] = (await bench.ask("GET", "/internal/sessions")).json["sessions"]
        [full] = (await bench.ask("GET", "/internal/sessions?agents=true")).json["sessions"]
    assert (full.pop("agentVersion"), full.pop("services")) == ("1.2.3", ["web", "ssh"])
    assert full.keys() == bare.keys()


async def test_an_empty_list_is_a_list() -> None:
    async with running_bench() as bench:
        reply = await bench.ask("GET", "/internal/sessions")
    assert reply.json == {"sessions": [], "total": 0}
    assert reply.headers["content-type"] == "application/json"


async def test_closing_a_session_says_closed_and_ends_it() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        reply = await bench.ask("POST", "/internal/session/token-of-dev1/close")
        assert reply.json == {"closed": True}
        assert not await bench.store.exists("token-of-dev1")
        await agent.session.wait_closed()
        again = await bench.ask("POST", "/internal/session/token-of-dev1/close")
        assert (again.status, again.code) == (404, "NOT_FOUND")


async def test_a_token_may_need_percent_encoding() -> None:
    async with running_bench() as bench, bench.agent(token="a/b+c=="):
        reply = await bench.ask("GET", "/internal/session/a%2Fb+c==")
        assert reply.json["token"] == "a/b+c=="
        assert (await bench.client.get_session("a/b+c==")).device_id == "dev1"


async def test_metrics_name_no_session() -> None:
    async with running_bench() as bench, bench.agent():
        await bench.ask("GET", "/internal/session/token-of-dev1")
        await bench.ask("GET", "/made/up/path")
        reply = await bench.ask("GET", "/metrics")
    text = reply.body.decode()
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert 'tunnelmux_session_events_total{type="connected"} 1.0' in text
    assert (
        'tunnelmux_internal_calls_total{code="ok",method="GET",route="/internal/session/{token}"}'
        " 1.0" in text
    )
    assert 'code="NOT_FOUND",method="other",route="other"' in text
    assert "tunnelmux_internal_callers" in text
    assert "token-of" not in text and "dev1" not in text and "made/up" not in text


async def test_readiness_ends_with_a_drain_and_health_does_not() -> None:
    async with running_bench() as bench:
        idle = await bench.caller()
        assert (await idle.ask("GET", "/readyz")).json == {"status": "ready"}
        bench.server.drain()
        assert await idle.read_all() == b""  # a kept-alive connection is closed
        reply = await bench.ask("GET", "/readyz")
        assert (reply.status, reply.code) == (503, "DRAINING")
        assert (await bench.ask("GET", "/healthz")).status == 200
