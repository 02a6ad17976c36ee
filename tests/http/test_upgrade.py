"""WebSocket and other upgrades pass; what is said afterwards is not looked at."""

from __future__ import annotations

import pytest
import trio

from support.http_rig import running_rig

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
AGREED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def test_websocket_passes_with_bytes_that_come_early() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(UPGRADE + b"visitor first")
        target = await rig.target()
        head = await target.read_head()
        assert b"Connection: Upgrade\r\n" in head
        assert b"Upgrade: websocket\r\n" in head
        assert b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" in head
        await target.send(AGREED + b"target first")
        answer = await rig.visitor.read_head()
        assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"Upgrade: websocket\r\n" in answer
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
        assert await rig.visitor.read_exactly(12) == b"target first"
        assert await target.read_exactly(13) == b"visitor first"
        await rig.visitor.send(b"\x81\x85....")
        assert await target.read_exactly(6) == b"\x81\x85...."
        await target.end()
        assert await rig.visitor.read_all() == b""
        await rig.visitor.end()
    (exchange,) = rig.exchanges
    assert (exchange.status, exchange.upgraded) == (101, True)
    assert (exchange.bytes_in, exchange.bytes_out) == (19, 12)


async def test_slow_agreement_to_an_upgrade(autojump_clock: trio.testing.MockClock) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(UPGRADE)
        target = await rig.target()
        await target.read_head()
        await trio.sleep(5)
        await rig.visitor.send(b"impatient")
        await trio.sleep(5)
        await target.send(AGREED)
        await rig.visitor.read_head()
        assert await target.read_exactly(9) == b"impatient"
        rig.front.reset()
        with pytest.raises(trio.BrokenResourceError):
            await target.read_all()


async def test_refused_upgrade_is_an_ordinary_response() -> None:
    async with running_rig() as rig:
        for _ in range(2):
            await rig.visitor.send(UPGRADE)
            target = await rig.target()
            await target.read_head()
            await target.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            assert b" 403 " in await rig.visitor.read_head()
            assert await rig.visitor.read_exactly(2) == b"no"


@pytest.mark.parametrize(
    "request_head",
    [
        *(
            UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: " + other)
            for other in (b"h2c", b"H2", b"HTTP/2.0", b"http", b"TLS/1.0, HTTP/1.1", b"h2c-14")
        ),
        UPGRADE.replace(b"keep-alive, Upgrade", b"keep-alive"),
        UPGRADE.replace(b"GET /ws HTTP/1.1", b"GET /ws HTTP/1.0"),
    ],
    ids=["h2c", "h2", "HTTP/2.0", "HTTP", "RFC 2817", "a draft's", "not in Connection", "HTTP/1.0"],
)
async def test_upgrades_that_are_not_passed_on(request_head: bytes) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(request_head)
        target = await rig.target()
        head = await target.read_head()
        assert b"Upgrade" not in head
        await target.send(AGREED)
        assert b" 502 " in await rig.visitor.read_head()


DOCKER = UPGRADE.replace(b"GET", b"POST").replace(b"websocket", b"tcp")[:-2]


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize(
    ("framing", "body"),
    [(b"Content-Length: 4", b"body"), (b"Transfer-Encoding: chunked", b"4\r\nbody\r\n0\r\n\r\n")],
)
async def test_an_upgrade_goes_with_the_body_of_its_request(
    framing: bytes, body: bytes, later: bool
) -> None:
    """RFC 9110 7.8: as Docker's clients begin exec and attach."""
    async with running_rig() as rig:
        head = DOCKER + framing + b"\r\n\r\n"
        await rig.visitor.send(head if later else head + body + b"typed early")
        target = await rig.target()
        head = await target.read_head()
        assert b"Connection: Upgrade\r\n" in head
        assert b"Upgrade: tcp\r\n" in head
        if later:
            await rig.visitor.send(body + b"typed early")
        assert await target.read_exactly(len(body)) == body
        await target.send(AGREED.replace(b"websocket", b"tcp") + b"hello")
        assert b" 101 " in await rig.visitor.read_head()
        assert await rig.visitor.read_exactly(5) == b"hello"
        assert await target.read_exactly(11) == b"typed early"
        await rig.visitor.send(b"typed")
        assert await target.read_exactly(5) == b"typed"
        await target.end()
        await rig.visitor.end()


async def test_a_target_must_not_change_the_protocol_within_a_request() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(DOCKER + b"Content-Length: 4\r\n\r\nbo")
        target = await rig.target()
        await target.read_head()
        await target.send(AGREED)
        assert b" 502 " in await rig.visitor.read_head()


async def test_reset_after_the_upgrade_reaches_the_other_side() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(UPGRADE)
        target = await rig.target()
        await target.send(AGREED)
        await rig.visitor.read_head()
        rig.target_ends[0].reset()
        with pytest.raises(trio.BrokenResourceError):
            await rig.visitor.read_all()
    assert rig.exchanges[0].problem == "the target broke the connection"
