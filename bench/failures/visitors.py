"""Visitors who keep asking, and what each of their requests came to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

VISITORS = 200
THINK = 0.5
"""Seconds between an answer and the next request of one visitor, on average."""

TIMEOUT = 10.0
"""Seconds after which a visitor gives a request up."""

RETRY = 0.1
"""Seconds until a visitor whose request failed tries the next proxy."""

MOST = 65_536
"""Bytes of an answer that are read."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request that is over. Times are Trio's."""

    device: str
    began: float
    ended: float
    problem: str = ""
    """Why it failed; empty for an answer of 200."""
    retried: bool = False
    """Whether its connection, kept from earlier requests, ended without an answer, so that it was
    sent once more on a new one, as browsers do with a GET (RFC 9112 section 9.3.1)."""
    wrong: str = ""
    """The device that answered in place of the one that was asked for."""
    asked: str = ""
    """The proxy that was asked; of two, the second."""


@dataclass(frozen=True)
class Door:
    """Where visitors come in: a proxy and its address."""

    proxy: str
    host: str
    port: int


class Lost(Exception):
    """A request failed, and the connection with it."""


class Refused(Exception):
    """The proxy answered, and not with 200; the connection may go on."""


@dataclass
class Crowd:
    """VISITORS tasks, each of which asks for one device, by one proxy until that fails."""

    devices: Sequence[str]
    doors: Sequence[Door]
    requests: list[Request] = field(default_factory=list)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(VISITORS):
                device = self.devices[number % len(self.devices)]
                nursery.start_soon(self._visit, device, number // len(self.devices))

    async def _visit(self, device: str, first: int) -> None:
        visitor = Visitor(device, self.doors, first)
        await trio.sleep(random.uniform(0, THINK))
        while True:
            request = await visitor.ask()
            self.requests.append(request)
            await trio.sleep(RETRY if request.problem else random.uniform(0, 2 * THINK))


class Visitor:
    """One visitor, and the connection that it keeps."""

    def __init__(self, device: str, doors: Sequence[Door], turn: int) -> None:
        self._device = device
        self._doors = doors
        self._turn = turn
        self._stream: trio.SocketStream | None = None

    @property
    def _door(self) -> Door:
        return self._doors[self._turn % len(self._doors)]

    async def ask(self) -> Request:
        """Make one request. After a failure the next one goes to another proxy."""
        began = trio.current_time()
        problem = answered = ""
        retried = False
        try:
            with trio.fail_after(TIMEOUT):
                try:
                    answered = await self._ask_once()
                except (Lost, trio.BrokenResourceError):
                    if self._stream is None or not self._is_kept:
                        raise
                    retried = True
                    await self.leave()
                    answered = await self._ask_once()
        except Refused as exc:
            problem = str(exc)
        except trio.TooSlowError:
            problem = f"no answer within {TIMEOUT:g} s"
        except trio.BrokenResourceError:
            problem = "connection lost"
        except OSError:
            problem = "connection refused"
        except Lost as exc:
            problem = str(exc)
        asked = self._door.proxy
        if problem:
            await self.leave()
        wrong = answered if answered not in ("", self._device) else ""
        ended = trio.current_time()
        return Request(self._device, began, ended, problem, retried, wrong, asked)

    async def _ask_once(self) -> str:
        self._is_kept = self._stream is not None
        if self._stream is None:
            door = self._door
            self._stream = await trio.open_tcp_stream(door.host, door.port)
        return await _ask(self._stream, self._device)

    async def leave(self) -> None:
        """Close the connection: the next one goes to another proxy."""
        self._turn += 1
        stream, self._stream = self._stream, None
        if stream is not None:
            await trio.aclose_forcefully(stream)


async def _ask(stream: trio.SocketStream, device: str) -> str:
    """The body of the answer to one request: the name of the device that gave it."""
    head = f"GET / HTTP/1.1\r\nHost: {device}.localhost\r\n\r\n"
    await stream.send_all(head.encode("ascii"))
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += await _more(stream, seen)
    head_bytes, _, body = seen.partition(b"\r\n\r\n")
    lines = head_bytes.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    size = int(fields.get("content-length", "0"))
    while len(body) < size:
        body += await _more(stream, body)
    status = lines[0].split(" ")[1]
    if status != "200":
        raise Refused(f"{status} {fields.get('tunnelmux-reason', '')}".strip())
    return body.decode("latin-1")


async def _more(stream: trio.SocketStream, seen: bytes) -> bytes:
    data = await stream.receive_some()
    if not data or len(seen) > MOST:
        raise Lost("connection ended" if not data else "the answer is too long")
    return bytes(data)
