"""Both halves together: a small back end, a running proxy, an agent and the device behind it."""

from __future__ import annotations

import json
import os

import httpx2
import pytest
import trio
import trio_websocket

from support.site import DEVICE_TOKEN, FRAME, FRAME_INTERVAL, SECRET, running_site
from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.config import Secret, hash_token
from tunnelmux.endpoints import dial
from tunnelmux.errors import ConnectError, ConnectRefused, SessionClosed, SessionNotFound
from tunnelmux.sessions import RemoteStore


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, pytest.param(5.0, marks=pytest.mark.long)])
async def test_a_back_end_lists_forwards_streams_echoes_and_kicks(seconds: float) -> None:
    async with running_site() as site, ProxyClient(site.url, secret=SECRET) as client:
        [session] = await client.list_sessions()
        assert session.device_id == "dev1"
        assert session.remote_addr.startswith("127.0.0.1:")

        answer = await client.forward_http(session.token, "GET", "/api/status")
        assert answer.status == 200
        assert answer.headers["Content-Type"] == ["application/json"]
        assert json.loads(answer.body) == {"status": "fine"}
        content = os.urandom(3_000_000)
        answer = await client.forward_http(session.token, "POST", "/echo", body=content)
        assert answer.body == content

        wanted = int(seconds / FRAME_INTERVAL)
        began = trio.current_time()
        with trio.fail_after(30 + seconds):
            await watch_camera(client, session.token, wanted)
        # They come as the camera makes them, and no answer that was kept is served again.
        assert wanted <= (trio.current_time() - began) / FRAME_INTERVAL * 1.1 + 3

        async with client.open_websocket(session.token, "/ws") as websocket:
            for message in ("hello", b"\x00" * 100_000):
                await websocket.send_message(message)
                assert await websocket.get_message() == message

        async with client.events() as events:
            await client.close_session(session.token)
            _, event = await anext(events)
            assert event is not None
            assert (event.type, event.reason) == ("lost", "closed through the internal API")
            _, event = await anext(events)  # the agent comes back by itself
            assert event is not None
            assert event.type == "connected"


async def watch_camera(client: ProxyClient, token: str, frames: int) -> None:
    """Return when so many frames have come, each of them whole."""
    stream = await client.open_stream(token)
    await stream.send_all(b"GET /camera HTTP/1.1\r\nHost: camera\r\n\r\n")
    received = bytearray()
    while received.count(FRAME) < frames:
        received += await stream.receive_some()
    await stream.aclose()
    assert b"multipart/x-mixed-replace" in received
    assert abs(received.count(FRAME) - received.count(b"--frame\r\n")) <= 1


async def test_the_store_of_a_back_end_sees_what_the_proxy_sees() -> None:
    async with running_site() as site:
        store, token = RemoteStore(site.client), await site.token()
        assert [s.token for s in await store.list()] == [token]
        handle = await store.lookup(token)
        before = handle.summary().last_heartbeat
        await site.client.forward_http(token, "GET", "/")
        # Whatever the agent sends is a heartbeat.
        assert (await store.lookup(token)).summary().last_heartbeat > before


async def test_a_websocket_ends_on_both_sides_when_the_session_does() -> None:
    async with running_site() as site:
        token = await site.token()
        async with site.client.open_websocket(token, "/ws") as websocket:
            await websocket.send_message("here")
            await websocket.get_message()
            await site.client.close_session(token)
            with trio.fail_after(20), pytest.raises(trio_websocket.ConnectionClosed):
                await websocket.get_message()


async def test_a_token_is_of_one_session_and_of_no_use_to_an_agent() -> None:
    """It lets nobody in, what lets the device in is nowhere, and it ends with its session."""
    async with running_site() as site:
        token = await site.token()
        assert len(token) >= 43
        assert token != DEVICE_TOKEN
        with pytest.raises(ConnectRefused) as caught:
            async with dial(f"ws://{site.proxy.tunnel_address}/tunnel/connect", token=token):
                pass
        assert caught.value.status == 401
        for known in (DEVICE_TOKEN, hash_token(Secret(DEVICE_TOKEN))):
            with pytest.raises(SessionNotFound):
                await site.client.get_session(known)
            with pytest.raises(ApiCallFailed, match="TUNNEL_DISCONNECTED"):
                await site.client.forward_http(known, "GET", "/")
            with pytest.raises(SessionClosed):
                await site.client.open_stream(known)
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as anybody:
            fields = {"authorization": f"Bearer {SECRET}"}
            for path in ("sessions", "visits", "traffic", f"session/{token}", "inspections"):
                answer = await anybody.get(f"{site.url}/internal/{path}", headers=fields)
                assert answer.status_code == 200
                assert DEVICE_TOKEN not in answer.text
                assert hash_token(DEVICE_TOKEN) not in answer.text
        await site.start_agent()
        newer = await site.token()
        assert newer != token
        with pytest.raises(SessionNotFound):
            await site.client.get_session(token)
        with pytest.raises(ApiCallFailed, match="TUNNEL_DISCONNECTED"):
            await site.client.forward_http(token, "GET", "/")
        assert (await site.client.get_session(newer)).device_id == "dev1"


async def test_the_library_says_what_is_wrong() -> None:
    async with running_site() as site:
        with pytest.raises(SessionNotFound):
            await site.client.get_session("nobodys-token")
        with pytest.raises(SessionNotFound):
            await site.client.close_session("nobodys-token")
        with pytest.raises(ApiCallFailed, match="UNAUTHORIZED") as refused:
            await ProxyClient(site.url, secret="wrong").list_sessions()
        assert refused.value.status == 401
        assert "wrong" not in str(refused.value)
        with pytest.raises(ApiCallFailed, match="TUNNEL_DISCONNECTED"):
            await site.client.forward_http("nobodys-token", "GET", "/")
        with pytest.raises(ConnectError, match="cannot connect"):
            await ProxyClient("http://127.0.0.1:1", secret="x").list_sessions()
    with pytest.raises(ValueError, match="http://"):
        ProxyClient("127.0.0.1:3801")


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(0.5, id="0.5s"),
        pytest.param(30.0, marks=[pytest.mark.slow, pytest.mark.long], id="30s"),
    ],
)
async def test_no_request_is_lost_while_sessions_are_replaced(seconds: float) -> None:
    callers, answered, replaced = 64, 0, 0
    async with running_site() as site:
        over = trio.current_time() + seconds
        done = trio.Event()

        async def call() -> None:
            nonlocal answered
            client = site.client
            while not done.is_set():
                # A call that began goes on through the session that replaced its own.
                try:
                    answer = await client.forward_http(await site.token(), "GET", "/api/status")
                except ApiCallFailed as error:
                    assert error.code == "TUNNEL_DISCONNECTED"  # replaced before the call came
                    continue
                assert (answer.status, answer.body) == (200, b'{"status": "fine"}')
                answered += 1

        async def replace() -> None:
            nonlocal replaced
            while replaced < 2 or answered < callers or trio.current_time() < over:
                before = answered
                await trio.sleep(0.2)
                while answered == before:  # noqa: ASYNC110  a busy machine takes longer
                    await trio.sleep(0.01)
                await site.start_agent()
                replaced += 1
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replace)
            for _ in range(callers):
                nursery.start_soon(call)
