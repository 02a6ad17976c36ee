"""What arrives when: nothing waits in the tunnel for more of itself, and no end gets lost."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trio_websocket

from support.http_rig import Peer
from support.origin import Origin, reply, serving
from support.tunnels import Tunnel
from tunnelmux.config import Address

pytestmark = pytest.mark.slow  # each starts processes

REQUEST = b"GET %s HTTP/1.1\r\nHost: dev1.localhost\r\n\r\n"


# -- HTTP -----------------------------------------------------------------------------------


async def test_sse_ticks_arrive_one_by_one(tunnel: Tunnel, origin: Origin, web: Address) -> None:
    wanted = trio.Event()
    ended = trio.Event()

    async def ticks(peer, head):
        nonlocal wanted
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(5):
            await wanted.wait()
            wanted = trio.Event()
            await peer.send(b"data: tick %d\n\n" % number)
        # The visitor leaves, and the target of this endless stream hears of it.
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await peer.send(b"data: anybody there?\n\n")
                await trio.sleep(0.02)
        ended.set()

    origin.pages[b"/ticks"] = ticks
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    visitor = Peer(await tunnel.visit())
    with trio.fail_after(20):
        await visitor.send(REQUEST % b"/ticks")
        assert b"\r\nContent-Type: text/event-stream\r\n" in await visitor.read_head()
        for number in range(5):
            # The next one is not even made before this one is here.
            wanted.set()
            assert b"data: tick %d\n\n" % number in await visitor.read_until(b"\n\n")
        await visitor.stream.aclose()
        await ended.wait()


async def test_answer_of_an_http_1_0_target_ends_with_its_connection(
    tunnel: Tunnel, origin: Origin, web: Address, run
) -> None:
    body = hashlib.shake_128(b"old").digest(1_000_000)

    async def old(peer, head):
        await peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + body)

    origin.pages[b"/old"] = old
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    for version in ("--http1.0", "--http1.1"):
        result = await curl(run, tunnel, version, "/old")
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout == body


async def test_chunks_and_trailers(
    tunnel: Tunnel, origin: Origin, web: Address, run, tmp_path: Path
) -> None:
    async def chunked(peer, head):
        assert b"Transfer-Encoding: chunked\r\n" in head
        digest = hashlib.sha256()
        while chunk := await peer.read_chunk():
            digest.update(chunk)
        text = digest.hexdigest().encode()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"%x\r\n%s\r\n0\r\nX-Sum: 7\r\n\r\n" % (len(text), text)
        )

    origin.pages[b"/chunked"] = chunked
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    sent = hashlib.shake_128(b"upload").digest(3_000_000)
    heads = tmp_path / "heads"
    upload = ["-H", "Transfer-Encoding: chunked", "--data-binary", "@-", "-D", str(heads)]
    result = await curl(run, tunnel, *upload, "/chunked", send=sent)
    assert result.stdout.decode() == hashlib.sha256(sent).hexdigest()
    assert heads.read_bytes().endswith(b"\r\nX-Sum: 7\r\n")


async def test_curl_waits_for_100_continue_and_gets_the_targets_own(
    tunnel: Tunnel, origin: Origin, web: Address, run
) -> None:
    async def picky(peer, head):
        assert b"Expect: 100-continue\r\n" in head
        with trio.move_on_after(0.2) as early:
            await peer.read_exactly(1)
        assert early.cancelled_caught, "the body came before anybody wanted it"
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await peer.send(reply(await peer.read_exactly(6)))

    async def refusing(peer, head):
        await peer.send(reply(b"too much\n", "413 Content Too Large"))

    origin.pages[b"/picky"] = picky
    origin.pages[b"/refusing"] = refusing
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    upload = ["-H", "Expect: 100-continue", "--expect100-timeout", "20", "--data-binary", "@-"]
    result = await curl(run, tunnel, "-v", *upload, "/picky", send=b"wanted")
    assert result.stdout == b"wanted"
    assert b"< HTTP/1.1 100 Continue" in result.stderr
    result = await curl(run, tunnel, "-v", *upload, "/refusing", send=b"unwanted")
    assert result.stdout == b"too much\n"
    assert b"100 Continue" not in result.stderr


async def test_large_heads_both_ways(tunnel: Tunnel, origin: Origin, web: Address) -> None:
    cookies = [f"cookie-{number}={'x' * 4000}" for number in range(12)]

    async def large(peer, head):
        found = [line for line in head.decode().split("\r\n") if line.startswith("Cookie: ")]
        assert found == [f"Cookie: {'; '.join(cookies)}"]
        fields = "".join(f"Set-Cookie: {cookie}\r\n" for cookie in cookies)
        await peer.send(f"HTTP/1.1 204 No Content\r\n{fields}\r\n".encode())

    origin.pages[b"/large"] = large
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    visitor = Peer(await tunnel.visit())
    with trio.fail_after(20):
        fields = b"Cookie: " + "; ".join(cookies).encode() + b"\r\n\r\n"
        await visitor.send((REQUEST % b"/large")[:-2] + fields)
        head = await visitor.read_head()
    assert head.startswith(b"HTTP/1.1 204 ")
    assert [f"Set-Cookie: {cookie}".encode() in head for cookie in cookies] == [True] * 12
    await visitor.stream.aclose()


# -- WebSocket ------------------------------------------------------------------------------


@pytest.fixture
async def echoing_websocket() -> AsyncIterator[Address]:
    async def echo(request):
        websocket = await request.accept()
        try:
            while True:
                await websocket.send_message(await websocket.get_message())
        except trio_websocket.ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        serve = partial(trio_websocket.serve_websocket, echo, "127.0.0.1", 0, ssl_context=None)
        server = await nursery.start(serve)
        yield Address("127.0.0.1", server.port)
        nursery.cancel_scope.cancel()


async def test_websocket_echo(tunnel: Tunnel, echoing_websocket: Address) -> None:
    await tunnel.start_proxy()
    await tunnel.start_agent({"live": f"http://{echoing_websocket}"})
    large = hashlib.shake_128(b"message").digest(900_000)
    with trio.fail_after(20):
        async with trio_websocket.open_websocket(
            *(tunnel.at_http.host, tunnel.at_http.port, "/live"),
            use_ssl=False,
            extra_headers=[(b"Tunnelmux-Device", b"dev1")],
        ) as websocket:
            for message in ("hello", b"\x00\xff", large, ""):
                await websocket.send_message(message)
                assert await websocket.get_message() == message
            await websocket.ping(b"payload")
    line = await tunnel.proxy.logged("request", path="/live")
    assert (line["status"], line["upgraded"]) == (101, True)


# -- TCP ------------------------------------------------------------------------------------


async def test_half_close_by_the_visitor_like_nc(tunnel: Tunnel, run) -> None:
    async def count(stream: trio.SocketStream) -> None:
        """Answers only when it has read to the end, as `nc -l | wc` does."""
        async with stream:
            total = 0
            async for data in stream:
                total += len(data)
            await stream.send_all(b"%d bytes\n" % total)

    async with serving(count) as target:
        await tunnel.start_proxy(tcp=[("127.0.0.1:0", "dev1", "count")])
        await tunnel.start_agent({"count": f"tcp://{target}"})
        address = await tunnel.at_tcp()
        result = await run(
            *("nc", "netcat-openbsd", "-N", address.host, str(address.port)), send=bytes(700_000)
        )
    assert (result.returncode, result.stdout) == (0, b"700000 bytes\n")


async def test_half_close_by_the_target(tunnel: Tunnel) -> None:
    heard = trio.Event()

    async def speak_first(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"that is all I say\n")
            await stream.send_eof()
            data = b"".join([chunk async for chunk in stream])
            assert data == b"and I go on"
            heard.set()

    async with serving(speak_first) as target:
        await tunnel.start_proxy(tcp=[("127.0.0.1:0", "dev1", "speaker")])
        await tunnel.start_agent({"speaker": f"tcp://{target}"})
        visitor = Peer(await tunnel.visit(await tunnel.at_tcp()))
        with trio.fail_after(20):
            assert await visitor.read_all() == b"that is all I say\n"
            await visitor.send(b"and I go on")
            await visitor.end()
            await heard.wait()
            line = await tunnel.proxy.logged("relay")
        await visitor.stream.aclose()
    assert (line["bytes_in"], line["bytes_out"], "problem" in line) == (11, 18, False)


async def curl(run, tunnel: Tunnel, *arguments: str, send: bytes = b""):
    """curl for a path of dev1, the last of the arguments."""
    *options, path = arguments
    port = tunnel.at_http.port
    resolve = ["--noproxy", "*", "--resolve", f"dev1.localhost:{port}:127.0.0.1"]
    url = f"http://dev1.localhost:{port}{path}"
    return await run("curl", "curl", "-sS", *resolve, *options, url, send=send)
