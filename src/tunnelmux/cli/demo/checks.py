"""What a visitor does to see that the tunnel works: each check is one way through it."""

from __future__ import annotations

import hashlib
import json
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import trio
import trio_websocket

from tunnelmux.cli.demo.origin import GOODBYE, GREETING
from tunnelmux.cli.demo.stage import DEVICE, Stage

__all__ = ["CHECK_TIMEOUT", "Check", "CheckFailed", "Result", "checks_of", "run_check"]

CHECK_TIMEOUT = 10.0
"""Seconds that one check may take; on one machine it takes milliseconds."""

_UPLOAD_SIZE = 4 * 1024 * 1024
_UPLOAD_PIECE = 64 * 1024
_ROUND_TRIPS = 20
_READ_SIZE = 65_536
_MAX_BODY = 1024 * 1024  # no answer of the demo is longer


@dataclass(frozen=True, slots=True)
class Check:
    """Something to try."""

    name: str
    through: str
    """The way that it takes."""
    run: Callable[[], Awaitable[str]]
    """Does it, and returns what was seen. Raises CheckFailed, or an error of the network."""
    timeout: float | None = None
    """Seconds it may take; None is CHECK_TIMEOUT."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a check."""

    name: str
    through: str
    passed: bool
    seen: str
    seconds: float


class CheckFailed(Exception):
    """The answer is not that of a working tunnel; the message says what came instead."""


async def run_check(check: Check) -> Result:
    """Run it, within its time. Raises nothing, except for a bug."""
    started = trio.current_time()
    timeout = CHECK_TIMEOUT if check.timeout is None else check.timeout
    passed = False
    try:
        with trio.fail_after(timeout):
            seen = await check.run()
        passed = True
    except* CheckFailed as group:
        seen = str(_first(group))
    except* trio.TooSlowError:
        seen = f"nothing came within {timeout:g} s"
    except* (
        OSError,
        trio.BrokenResourceError,
        h11.ProtocolError,
        trio_websocket.ConnectionClosed,
        trio_websocket.HandshakeError,
    ) as group:
        error = _first(group)
        seen = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Result(check.name, check.through, passed, seen, trio.current_time() - started)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def checks_of(stage: Stage) -> list[Check]:
    """All checks of a running demo, in the order in which they are shown."""
    visitor = _Visitor(stage)
    port, tcp = stage.http.port, stage.tcp.port
    return [
        Check("web page", f"{DEVICE}.localhost:{port}", visitor.fetch_page),
        Check("header routing", f"Tunnelmux-Device: {DEVICE}", visitor.route_by_header),
        Check("upload", f"{DEVICE}.localhost:{port}", visitor.upload),
        Check("live events", f"web--{DEVICE}.localhost:{port}", visitor.hear_ticks),
        Check("WebSocket echo", f"{DEVICE}.localhost:{port}", visitor.echo_messages),
        Check("TCP port", f"127.0.0.1:{tcp}", visitor.use_tcp),
        Check("unknown device", f"other.localhost:{port}", visitor.miss_device),
    ]


class _Visitor:
    """Comes in at the proxy's public ports, as every visitor does."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    # -- the checks -------------------------------------------------------------------------

    async def fetch_page(self) -> str:
        async with self._request("GET", "/") as answer:
            body = await answer.body()
        _expect(answer.status == 200, answer.story)
        _expect(b"</html>" in body, "the page is not complete")
        return f"200, {len(body) / 1024:.0f} KiB of HTML"

    async def route_by_header(self) -> str:
        headers = {"Host": str(self._stage.http), "Tunnelmux-Device": DEVICE}
        async with self._request("GET", "/request", headers) as answer:
            body = await answer.body()
        _expect(answer.status == 200, answer.story)
        seen = {name.lower(): value for name, value in json.loads(body)["headers"]}
        _expect(seen.get("x-forwarded-for") == "127.0.0.1", "no X-Forwarded-For at the page")
        _expect("tunnelmux-device" not in seen, "the routing header reached the page")
        return "X-Forwarded-For set"

    async def upload(self) -> str:
        piece = random.randbytes(_UPLOAD_PIECE)  # noqa: S311  test data, no secret
        count = _UPLOAD_SIZE // _UPLOAD_PIECE
        expected = hashlib.sha256(piece * count).hexdigest()
        headers = {"Content-Length": str(_UPLOAD_SIZE)}
        async with self._request("POST", "/digest", headers, [piece] * count) as answer:
            body = await answer.body()
        _expect(answer.status == 200, answer.story)
        _expect(json.loads(body)["sha256"] == expected, "what arrived is not what was sent")
        return f"{_UPLOAD_SIZE // 1024**2} MiB, SHA-256 equal"

    async def hear_ticks(self) -> str:
        host = f"web--{DEVICE}.localhost:{self._stage.http.port}"
        async with self._request("GET", "/ticks", {"Host": host}) as answer:
            _expect(answer.status == 200, answer.story)
            moments: list[float] = []
            while len(moments) < 2 and (data := await answer.read()):
                moments += [trio.current_time()] * data.count(b"\n\n")
        # Both at once would mean that a hop on the way waits for more before passing it on.
        _expect(len(moments) >= 2, "the events ended")
        gap = moments[1] - moments[0]
        _expect(gap > 0.1, "the events were held back on the way")
        return f"2 ticks, {gap * 1000:.0f} ms apart"

    async def echo_messages(self) -> str:
        times = []
        async with (
            await trio.open_tcp_stream(*self._stage.http) as stream,
            trio.open_nursery() as nursery,
        ):
            websocket = await trio_websocket.wrap_client_stream(
                nursery,
                stream,
                host=f"{DEVICE}.localhost:{self._stage.http.port}",
                resource="/echo",
            )
            for number in range(_ROUND_TRIPS):
                started = trio.current_time()
                await websocket.send_message(f"message {number}")
                back = await websocket.get_message()
                times.append(trio.current_time() - started)
                _expect(back == f"message {number}", f"{back!r} came back")
            await websocket.aclose()
        return f"{_ROUND_TRIPS} back, median {statistics.median(times) * 1000:.1f} ms"

    async def use_tcp(self) -> str:
        async with await trio.open_tcp_stream(*self._stage.tcp) as stream:
            await stream.send_all(b"Is anybody there?\n")
            await stream.send_eof()
            received = b""
            while data := await stream.receive_some(_READ_SIZE):
                received += data
        _expect(bool(received), "the connection ended without a byte")
        _expect(
            received == GREETING + b"Is anybody there?\n" + GOODBYE,
            f"{received[:40]!r} came back",
        )
        return "echoed, half-close kept"

    async def miss_device(self) -> str:
        host = f"other.localhost:{self._stage.http.port}"
        async with self._request("GET", "/", {"Host": host}) as answer:
            await answer.body()
        _expect(answer.status == 404, answer.story)
        return f"404, {answer.reason}"

    # -- how ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: list[bytes] | None = None,
    ) -> AsyncIterator[_Answer]:
        """One request on a connection of its own, with the answer's head read."""
        fields = {
            "Host": f"{DEVICE}.localhost:{self._stage.http.port}",
            "User-Agent": "tunnelmux-demo",
            "Connection": "close",
            **(headers or {}),
        }
        async with await trio.open_tcp_stream(*self._stage.http) as stream:
            http = h11.Connection(h11.CLIENT)
            request = h11.Request(method=method, target=target, headers=list(fields.items()))
            await stream.send_all(http.send(request) or b"")
            for piece in body or ():
                await stream.send_all(http.send(h11.Data(data=piece)) or b"")
            await stream.send_all(http.send(h11.EndOfMessage()) or b"")
            answer = _Answer(stream, http)
            await answer.read_head()
            yield answer


class _Answer:
    """One response, read as it comes."""

    def __init__(self, stream: trio.SocketStream, http: h11.Connection) -> None:
        self._stream = stream
        self._http = http
        self.status = 0
        self.reason = ""
        """The proxy's own word for why it refused, from Tunnelmux-Reason."""

    @property
    def story(self) -> str:
        """The status in words, for one that was not expected."""
        return f"status {self.status}" + (f", {self.reason}" if self.reason else "")

    async def read_head(self) -> None:
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next()
        if not isinstance(event, h11.Response):
            raise CheckFailed("the connection ended without an answer")
        self.status = event.status_code
        self.reason = dict(event.headers).get(b"tunnelmux-reason", b"").decode("latin-1")

    async def body(self) -> bytes:
        body = b""
        while data := await self.read():
            body += data
            _expect(len(body) <= _MAX_BODY, "the answer does not end")
        return body

    async def read(self) -> bytes:
        """More of the body, as it came; empty at its end."""
        event = await self._next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def _next(self) -> h11.Event:
        while not isinstance(event := self._http.next_event(), h11.Event):
            self._http.receive_data(await self._stream.receive_some(_READ_SIZE))
        return event


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CheckFailed(otherwise)
