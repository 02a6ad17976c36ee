"""The gate before all routes: lengths, bodies that stall, addresses behind proxies."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from support.apis import LiveApi, live_api
from support.tenants import person
from tunnelmux.config.api import ApiLimits


async def raw(api: LiveApi, data: bytes) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", api.running.port)
    async with stream:
        await stream.send_all(data)
        answer = b""
        with trio.move_on_after(10):
            async for piece in stream:
                answer += piece
        return answer


async def test_two_lengths_are_refused(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        answer = await raw(
            api,
            b"POST /api/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        )
        assert answer.startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_stalls_is_ended(tmp_path: Path) -> None:
    async with live_api(tmp_path, limits=ApiLimits(body_stall=0.2)) as api:
        token = (await person(api, "ada")).token
        answer = await raw(
            api,
            f"POST /api/devices HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{".encode(),
        )
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"slow_body" in answer


async def test_a_body_over_the_limit_is_refused_and_the_answer_arrives(tmp_path: Path) -> None:
    async with live_api(tmp_path, limits=ApiLimits(max_body=2048)) as api:
        token = (await person(api, "ada")).token
        answer = await api.call("POST", "/api/devices", token, content=b"{" + b" " * 4_000_000)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


async def test_a_refusal_reaches_a_caller_that_is_still_sending(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        for _ in range(20):
            answer = await api.call("POST", "/api/devices", content=b"x" * 1_000_000)
            assert answer.status_code == 401


@pytest.mark.parametrize(
    ("trusted", "field", "address"),
    [
        ([], "203.0.113.9", "127.0.0.1"),
        (["127.0.0.1"], "203.0.113.9", "203.0.113.9"),
        (["127.0.0.1"], "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        (["127.0.0.1", "10.0.0.0/8"], "203.0.113.9, 10.1.1.1", "203.0.113.9"),
        (["127.0.0.1"], "rubbish", "rubbish"),
    ],
)
async def test_the_audit_has_the_address_that_only_trusted_proxies_tell(
    tmp_path: Path, trusted: list[str], field: str, address: str
) -> None:
    async with live_api(tmp_path, trusted_proxies=trusted) as api:
        ada = await person(api, "ada")
        headers = {"authorization": f"Bearer {ada.token}", "x-forwarded-for": field}
        new = {"name": "dev1"}
        await api.client.post(f"{api.base}/api/devices", headers=headers, json=new)
        entries = (await api.call("GET", "/api/audit?action=device.", ada.token)).json()["items"]
        assert entries[0]["actor"]["address"] == address
