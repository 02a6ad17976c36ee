"""Bodies that are read as a whole, or from which a reader needs the beginning only."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tunnelmux.http.body import BadBody, BodyTooLong
from tunnelmux.http.connection import ClientConnection
from tunnelmux.limits import IngressLimits


async def answer(
    *pieces: bytes, ends: bool = True
) -> tuple[ClientConnection, trio.testing.MemorySendStream]:
    """A client that has read the head of an answer, whose body is these chunks."""
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in pieces:
        await far.send_all(b"%x\r\n%s\r\n" % (len(piece), piece))
    if ends:
        await far.send_all(b"0\r\n\r\n")
    client = ClientConnection(near, IngressLimits())
    await client.send_request(b"GET", b"/", [(b"Host", b"a")], end=True)
    await client.read_head()
    assert far.send_stream is not None
    return client, far.send_stream


async def test_a_body_is_given_whole_up_to_the_limit() -> None:
    client, _ = await answer(b"abc", b"def")
    assert await client.read_whole_body(6) == b"abcdef"
    assert client.is_clean


async def test_a_longer_one_is_refused_without_waiting_for_its_end() -> None:
    client, _ = await answer(b"abc", b"defg", ends=False)
    with pytest.raises(BodyTooLong, match="longer than 6 bytes"):
        await client.read_whole_body(6)


async def test_one_that_was_read_before_is_empty() -> None:
    client, _ = await answer(b"abc")
    await client.read_whole_body(3)
    assert await client.read_whole_body(0) == b""
    assert await client.read_body_start(5) == b""


async def test_the_start_of_one_that_goes_on() -> None:
    client, _ = await answer(b"abc", b"defg", ends=False)
    assert await client.read_body_start(5) == b"abcde"


async def test_one_that_breaks_off_is_not_taken_for_whole() -> None:
    for read in ("read_whole_body", "read_body_start"):
        client, other = await answer(b"abc", ends=False)
        await other.aclose()
        with pytest.raises(BadBody):
            await getattr(client, read)(100)
