"""The exchange over real sockets, with curl as the visitor."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from support.http_rig import Peer
from tunnelmux.http import RequestHead, ServerConnection, Upstream, serve_requests
from tunnelmux.http.fields import end_to_end
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import abort

LIMITS = IngressLimits()
Target = Callable[[Peer, bytes], Awaitable[None]]


@asynccontextmanager
async def gateway(target: Target) -> AsyncIterator[str]:
    """The URL of our code before a target, which gets each connection with its request's head."""

    async def serve_target(stream: trio.SocketStream) -> None:
        peer = Peer(stream)
        await target(peer, await peer.read_head())
        await stream.aclose()

    async def serve_visitor(stream: trio.SocketStream) -> None:
        await serve_requests(ServerConnection(stream, LIMITS), route, LIMITS, lambda _: None)

    async with trio.open_nursery() as nursery:
        listen = partial(trio.serve_tcp, host="127.0.0.1", handler_nursery=nursery)
        (inner,) = await nursery.start(listen, serve_target, 0)
        (outer,) = await nursery.start(listen, serve_visitor, 0)
        target_port = inner.socket.getsockname()[1]

        async def route(request: RequestHead) -> Upstream:
            stream = await trio.open_tcp_stream("127.0.0.1", target_port)
            return Upstream(stream, end_to_end(request.headers), "the target", 60.0)

        with trio.fail_after(30):
            yield f"http://127.0.0.1:{outer.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.fixture
def curl(
    debian_program: Callable[[str, str], str],
) -> Callable[..., Awaitable[subprocess.CompletedProcess[bytes]]]:
    """Runs curl with these arguments and gives its result, also when it failed."""
    program = debian_program("curl", "curl")

    async def run(*arguments: str, send: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [program, "-sS", "--noproxy", "*", *arguments]
        return await trio.run_process(
            command, stdin=send, capture_stdout=True, capture_stderr=True, check=False
        )

    return run


Curl = Callable[..., Awaitable[subprocess.CompletedProcess[bytes]]]


async def test_two_requests_on_one_connection(curl: Curl) -> None:
    async def target(peer: Peer, _head: bytes) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")

    async with gateway(target) as url:
        result = await curl("-v", url, url)
    assert result.stdout == b"hello\nhello\n"
    assert b"Re-using existing" in result.stderr


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
async def test_body_that_ends_with_the_targets_connection(curl: Curl, version: str) -> None:
    async def target(peer: Peer, _head: bytes) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nthe ")
        await peer.send(b"end\n")

    async with gateway(target) as url:
        result = await curl(version, url)
    assert (result.returncode, result.stdout) == (0, b"the end\n")


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
async def test_cut_body_makes_curl_fail(curl: Curl, version: str) -> None:
    async def target(peer: Peer, _head: bytes) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf of")
        await trio.sleep(0.05)
        assert isinstance(peer.stream, trio.SocketStream)
        await abort(peer.stream)

    async with gateway(target) as url:
        result = await curl(version, url)
    assert result.returncode != 0


@pytest.mark.parametrize("fields", [(), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect:")])
async def test_large_upload_arrives_whole(curl: Curl, fields: tuple[str, ...]) -> None:
    async def target(peer: Peer, head: bytes) -> None:
        if b"Expect: 100-continue" in head:
            await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        digest = hashlib.sha256()
        if b"Transfer-Encoding: chunked" in head:
            while chunk := await peer.read_chunk():
                digest.update(chunk)
        else:
            for _ in range(5):
                digest.update(await peer.read_exactly(1_000_000))
        text = digest.hexdigest().encode()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))

    data = hashlib.shake_128(b"upload").digest(5_000_000)
    async with gateway(target) as url:
        result = await curl("--data-binary", "@-", *fields, url, send=data)
    assert result.stdout.decode() == hashlib.sha256(data).hexdigest()


async def test_early_answer_to_a_large_upload_is_read(curl: Curl) -> None:
    async def target(peer: Peer, _head: bytes) -> None:
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nstop")

    async with gateway(target) as url:
        result = await curl("--data-binary", "@-", "-H", "Expect:", url, send=bytes(3_000_000))
    assert (result.returncode, result.stdout) == (0, b"stop")


async def test_interim_responses_and_trailers(curl: Curl, tmp_path: Path) -> None:
    async def target(peer: Peer, _head: bytes) -> None:
        await peer.send(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n"
        )

    heads = tmp_path / "heads"
    async with gateway(target) as url:
        result = await curl("-D", str(heads), url)
    assert result.stdout == b"abc"
    assert b"103 Early Hints" in heads.read_bytes()
    assert b"X-Sum: 7" in heads.read_bytes()
