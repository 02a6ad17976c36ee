"""A target that answers before it has read the request, and breaks: its answer still arrives."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from support.carried_http import Target, rig
from support.http_rig import Peer
from tunnelmux.relay import abort

REFUSED = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large"
SENT = 3_000_000
"""Bytes of the body that are sent: more than the sockets between visitor and target hold."""


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    folder = tmp_path_factory.mktemp("ingress")
    authority = trustme.CA()
    certificate = authority.issue_cert("dev1.localhost")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return folder, trust


@pytest.fixture(params=["plain", "tls"])
async def target(
    request: pytest.FixtureRequest, tls: tuple[Path, ssl.SSLContext]
) -> AsyncIterator[Target]:
    async with rig(tls=tls if request.param == "tls" else None) as target:
        yield target


async def upload(visitor: Peer, framing: bytes) -> None:
    """Send the body until the other side takes no more of it."""
    piece = bytes(50_000)
    if framing == b"chunked":
        piece = b"%x\r\n%s\r\n" % (len(piece), piece)
    try:
        for _ in range(SENT // 50_000):
            await visitor.send(piece)
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize("framing", [b"length", b"chunked"])
@pytest.mark.parametrize("way", ["kept", "direct", "h11"])
async def test_an_answer_before_the_end_of_an_upload_arrives_although_the_target_breaks(
    target: Target, way: str, framing: bytes
) -> None:
    """A server that refuses an upload closes with most of it unread, which is a reset."""
    if way != "h11":
        target.way = way
        await target.first_exchange()
    length = b"Transfer-Encoding: chunked"
    if framing == b"length":
        length = b"Content-Length: %d" % (10 * SENT)
    head = b"POST /up HTTP/1.1\r\nHost: dev1.localhost\r\n" + length + b"\r\n"
    if way == "h11":
        head += b"TE: trailers\r\nConnection: TE\r\n"
    async with trio.open_nursery() as nursery:
        peer, asked = await target.ask(head + b"\r\n")
        assert asked.startswith(b"POST /up ")
        nursery.start_soon(upload, target.visitor, framing)
        await trio.testing.wait_all_tasks_blocked(0.01)  # until no socket on the way takes more
        await peer.send(REFUSED)
        await abort(peer.stream)
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 413 ")
        assert await target.visitor.read_exactly(9) == b"too large"
        nursery.cancel_scope.cancel()
