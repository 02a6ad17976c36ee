"""The gate before all routes: lengths, bodies that stall, addresses behind proxies."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import httpx2
import pytest
import trio

from support.apis import LiveApi, live_api
from support.crowds import dial_from
from support.own_thread import replace_here
from support.tenants import person
from tunnelmux.api.fetch_metadata import is_of_own_page, is_opened_by_person
from tunnelmux.config import Address
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


SITE, MODE, DEST = b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"
OPENED = {MODE: b"navigate", DEST: b"document"}


@pytest.mark.parametrize(
    ("fields", "own", "own_or_unknown", "opened"),
    [
        ({}, False, True, False),
        ({SITE: b"same-origin"}, True, True, False),
        ({SITE: b"none"} | OPENED, False, True, True),
        ({SITE: b"same-site"}, False, False, False),
        ({SITE: b"cross-site"} | OPENED, False, False, True),
        ({SITE: b"same-site", MODE: b"navigate", DEST: b"iframe"}, False, False, False),
        ({SITE: b"same-site", MODE: b"navigate", DEST: b"object"}, False, False, False),
        ({SITE: b"same-site", b"sec-purpose": b"prefetch"} | OPENED, False, False, False),
        ({b"host": b"a:1", b"origin": b"https://a:1"}, True, True, False),
        ({b"host": b"a:1", b"origin": b"https://a:2"}, False, False, False),
        ({b"host": b"", b"origin": b"null"}, False, False, False),
    ],
)
def test_what_a_browser_says_of_the_page_that_asks(
    fields: dict[bytes, bytes], own: bool, own_or_unknown: bool, opened: bool
) -> None:
    assert is_of_own_page(fields.items(), unknown=False) is own
    assert is_of_own_page(fields.items(), unknown=True) is own_or_unknown
    assert is_opened_by_person(fields.items()) is opened


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


async def test_a_caller_who_sends_without_end_is_left(tmp_path: Path) -> None:
    """Its connection ends although it never stops, and what it sends waits for nobody."""
    async with live_api(tmp_path) as api:
        for _ in range(5):
            stream = await trio.open_tcp_stream("127.0.0.1", api.running.port)
            async with stream:
                await stream.send_all(
                    b"POST /api/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
                )
                with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(b"x" * 65_536)


@pytest.mark.parametrize(
    ("trusted", "field", "address"),
    [
        ([], "203.0.113.9", "127.0.0.1"),
        (["127.0.0.1"], "203.0.113.9", "203.0.113.9"),
        (["127.0.0.1"], "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        (["127.0.0.1", "10.0.0.0/8"], "203.0.113.9, 10.1.1.1", "203.0.113.9"),
        (["127.0.0.1"], "rubbish", "127.0.0.1"),
        (["127.0.0.1"], "198.51.100.1, 203.0.113.9:51234", "203.0.113.9"),
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


async def silent_connections(api: LiveApi, count: int) -> list[socket.socket]:
    """So many connections that say nothing; those that were refused are among them."""
    opened = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", api.running.port))
        opened.append(connection)
        await trio.lowlevel.checkpoint()
    return opened


async def test_connections_that_say_nothing_give_way(tmp_path: Path) -> None:
    limits = ApiLimits(max_connections=10, max_connections_per_address=10)
    async with live_api(tmp_path, limits=limits) as api:
        opened = await silent_connections(api, 30)
        answer = await api.call("GET", "/api/auth/me")
        assert answer.status_code == 401
        with trio.fail_after(20):
            assert await trio.to_thread.run_sync(_ended, opened[0])
        for connection in opened:
            connection.close()


@pytest.mark.slow
async def test_an_address_has_so_many_connections(tmp_path: Path) -> None:
    limits = ApiLimits(max_connections_per_address=3)
    async with live_api(tmp_path, limits=limits) as api:
        ann = await person(api, "ann")
        opened = await silent_connections(api, 3)
        for connection in opened:
            await trio.to_thread.run_sync(_ask, connection, ann.token)
        await _until_status(api, None)  # people keep their connections
        opened.pop().close()
        await _until_status(api, 401)
        for connection in opened:
            connection.close()


async def test_strangers_who_begin_requests_keep_no_one_out(tmp_path: Path) -> None:
    limits = ApiLimits(max_connections=6, max_connections_per_address=6)
    async with live_api(tmp_path, limits=limits) as api:
        ann = await person(api, "ann")
        [anns] = await silent_connections(api, 1)
        assert b" 200 " in await trio.to_thread.run_sync(_ask, anns, ann.token)
        strangers = []
        for number in range(18):
            stranger = await dial_from(
                f"127.0.1.{1 + number}", Address("127.0.0.1", api.running.port)
            )
            await stranger.send_all(b"GET /api/health HTTP/1.1\r\n")
            strangers.append(stranger)
        for _ in range(3):
            assert b" 200 " in await trio.to_thread.run_sync(_ask, anns, ann.token)
            assert (await api.call("GET", "/api/auth/me", ann.token)).status_code == 200
        anns.close()
        for stranger in strangers:
            await stranger.aclose()


def _ask(connection: socket.socket, token: str) -> bytes:
    """The first bytes of the answer, on a connection that stays open."""
    connection.settimeout(30)
    field = f"Authorization: Bearer {token}"
    connection.sendall(f"GET /api/auth/me HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n".encode("ascii"))
    answer = b""
    while not answer.endswith(b"}"):
        part = connection.recv(65_536)
        if not part:
            break
        answer += part
    return answer[:20]


async def test_who_takes_all_descriptors_does_not_stop_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "gone")]
    accept = socket.socket.accept

    def failing(listener: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop(0)
        return accept(listener)

    async with live_api(tmp_path) as api:
        replace_here(monkeypatch, socket.socket, "accept", failing)
        assert (await api.call("GET", "/api/auth/me")).status_code == 401
        assert failures == []


async def _status(api: LiveApi) -> int | None:
    """The status of an answer to a new connection; None when that is not let in."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        try:
            return (await client.get(f"{api.base}/api/auth/me")).status_code
        except httpx2.TransportError:
            return None


async def _until_status(api: LiveApi, wanted: int | None) -> None:
    with trio.fail_after(30):
        while True:
            if await _status(api) == wanted:
                return
            await trio.sleep(0.01)


def _ended(connection: socket.socket) -> bool:
    """Whether the other side ends it within the time of the caller."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
