"""The Python peer of the interoperability tests: py-libp2p's yamux behind the command language of
../README.md. Runs in a virtual environment of its own; one process holds one session."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio
import trio_websocket
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

PERIOD = 251
BLOCK = bytes(i % PERIOD for i in range(65_536 + PERIOD))
MAX_MESSAGE = 4 * 1024 * 1024


class Unsupported(Exception):
    def __init__(self) -> None:
        super().__init__("unsupported")


# ----------------------------------------------------------------------------------- transports


class Connection:
    """The few methods that Yamux asks of a connection, on a Trio stream or a WebSocket."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]], stream: Any) -> None:
        self._receive = receive
        self.stream = stream
        self._buffer = bytearray()

    async def read(self, count: int | None = None) -> bytes:
        """Exactly *count* bytes; fewer at the end."""
        assert count is not None
        while len(self._buffer) < count:
            data = await self._receive()
            if not data:
                break
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        await self.stream.aclose()

    def get_remote_address(self) -> None:
        return None


class WebSocket:
    """Sends and receives bytes as binary messages, cut as `messages=` says."""

    def __init__(self, connection: trio_websocket.WebSocketConnection, messages: str) -> None:
        self.connection = connection
        self._next = {"bytes": lambda: 1, "random": lambda: random.randint(1, 20_000)}.get(messages)

    async def send_all(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            size = self._next() if self._next else len(data)
            await self.connection.send_message(data[at : at + size])
            at += size

    async def receive(self) -> bytes:
        with suppress(trio_websocket.ConnectionClosed):
            while True:
                message = await self.connection.get_message()
                if message:
                    return message
        return b""

    async def aclose(self) -> None:
        with trio.move_on_after(1):
            await self.connection.aclose()


def on_tcp(stream: trio.SocketStream) -> Connection:
    return Connection(lambda: stream.receive_some(65_536), stream)


def on_websocket(connection: trio_websocket.WebSocketConnection, messages: str) -> Connection:
    websocket = WebSocket(connection, messages)
    return Connection(websocket.receive, websocket)


async def listen(
    nursery: trio.Nursery, transport: str, messages: str
) -> tuple[int, Callable[[], Awaitable[Connection]]]:
    """The port, and a function that waits for the one connection."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]

    async def wait() -> Connection:
        stream = await listener.accept()
        if transport == "tcp":
            return on_tcp(stream)
        request = await trio_websocket.wrap_server_stream(
            nursery, stream, max_message_size=MAX_MESSAGE
        )
        return on_websocket(await request.accept(), messages)

    return port, wait


async def dial(nursery: trio.Nursery, transport: str, address: str, messages: str) -> Connection:
    authority, _, path = address.partition("/")
    host, _, port = authority.partition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    if transport == "tcp":
        return on_tcp(stream)
    connection = await trio_websocket.wrap_client_stream(
        nursery, stream, authority, "/" + path, max_message_size=MAX_MESSAGE
    )
    return on_websocket(connection, messages)


# -------------------------------------------------------------------------------------- payload


async def write(stream: YamuxStream, count: int, chunk: int, seed: int) -> str:
    digest = hashlib.sha256()
    at = 0
    while at < count:
        data = b""
        wanted = min(chunk, count - at)
        while len(data) < wanted:
            start = (seed + at + len(data)) % PERIOD
            data += BLOCK[start : start + min(wanted - len(data), 65_536)]
        await stream.write(data)
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


async def receive(stream: YamuxStream, most: int) -> bytes:
    try:
        return await stream.read(most)
    except MuxedStreamEOF:
        if stream.conn.event_shutting_down.is_set():
            raise  # the session is gone, which is no end of this stream
        return b""


async def read(stream: YamuxStream, wanted: str, rate: int) -> str:
    limit = None if wanted == "eof" else int(wanted)
    digest = hashlib.sha256()
    total, end = 0, "more"
    while limit is None or total < limit:
        most = 65_536 if limit is None else min(65_536, limit - total)
        if rate:
            most = min(most, max(1, rate // 10))
        try:
            data = await receive(stream, most)
        except Exception as exc:
            raise RuntimeError(f"after {total} bytes: {exc!r}") from exc
        if not data:
            end = "eof"
            break
        digest.update(data)
        total += len(data)
        if rate:
            await trio.sleep(len(data) / rate)
    return f"bytes={total} sha256={digest.hexdigest()} end={end}"


# ----------------------------------------------------------------------------------------- peer


class Peer:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.ready = trio.Event()
        self.streams: dict[str, YamuxStream] = {}
        self.counts: Counter[str] = Counter()

    def begin(self, connection: Connection, role: str) -> None:
        self.connection = connection
        self.session = Yamux(connection, None, is_initiator=role == "client")  # type: ignore[arg-type]
        self.nursery.start_soon(self._run_session)

    async def _run_session(self) -> None:
        self.nursery.start_soon(self._announce)
        await self.session.start()
        self.session.event_closed.set()

    async def _announce(self) -> None:
        await self.session.event_started.wait()
        self.ready.set()

    async def reply(self, number: str, command: str, words: list[str], options: Any) -> None:
        try:
            text = await self.run(command, words, options)
        except Exception as exc:
            line = f"{number} error {str(exc) or repr(exc)}".replace("\n", "; ")
        else:
            line = f"{number} ok {text}".strip()
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    async def run(self, command: str, words: list[str], options: dict[str, str]) -> str:
        """What follows "ok" in the reply."""
        messages = options.get("messages", "")
        if messages == "large" or options.get("window"):
            raise Unsupported
        if command == "about":
            return "implementation=py-libp2p language=python"
        if command == "listen":
            port, wait = await listen(self.nursery, words[0], messages)

            async def accept() -> None:
                self.begin(await wait(), words[1])

            self.nursery.start_soon(accept)
            return f"port={port}"
        if command == "dial":
            self.begin(await dial(self.nursery, words[0], words[2], messages), words[1])
            await self.ready.wait()
            return ""
        if command == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        await self.ready.wait()
        on_session = getattr(self, "do_" + command.replace("-", "_"), None)
        if on_session is not None:
            return await on_session(words, options) or ""
        return await self.run_on_stream(command, words, options)

    async def do_session(self, words: list[str], options: dict[str, str]) -> None:
        pass

    async def do_closed(self, words: list[str], options: dict[str, str]) -> None:
        await self.session.event_closed.wait()

    async def do_close_session(self, words: list[str], options: dict[str, str]) -> None:
        await self.session.close()

    async def do_stats(self, words: list[str], options: dict[str, str]) -> str:
        counts = (f"{name}={self.counts[name]}" for name in ("accepted", "finished", "failed"))
        live = len(self.session.streams)
        return f"streams={live} {' '.join(counts)} bytes={self.counts['bytes']}"

    async def do_open(self, words: list[str], options: dict[str, str]) -> None:
        self.streams[words[0]] = await self.session.open_stream()  # type: ignore[assignment]

    async def do_accept(self, words: list[str], options: dict[str, str]) -> None:
        self.streams[words[0]] = await self.session.accept_stream()  # type: ignore[assignment]

    async def do_serve(self, words: list[str], options: dict[str, str]) -> None:
        self.nursery.start_soon(self._serve, words)

    async def do_exchange(self, words: list[str], options: dict[str, str]) -> str:
        streams, count = int(words[0]), int(words[1])
        places = trio.CapacityLimiter(int(options.get("concurrent", "1")))
        failures: list[Exception] = []

        async def one(seed: int) -> None:
            try:
                await self._exchange_one(count, seed)
            except Exception as exc:
                failures.append(exc)
            finally:
                places.release_on_behalf_of(seed)

        async with trio.open_nursery() as nursery:
            for i in range(streams):
                await places.acquire_on_behalf_of(i)
                nursery.start_soon(one, i)
        if failures:
            raise RuntimeError(f"{len(failures)} of {streams} streams: {failures[0]!r}")
        return f"streams={streams} bytes={streams * count}"

    async def _exchange_one(self, count: int, seed: int) -> None:
        stream: YamuxStream = await self.session.open_stream()  # type: ignore[assignment]
        sums: list[str] = []

        async def send() -> None:
            sums.append(await write(stream, count, 65_536, seed))
            await stream.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            got = await read(stream, "eof", 0)
        if got != f"bytes={count} sha256={sums[0]} end=eof":
            raise RuntimeError(f"echo differs: {got}, not {count} bytes {sums[0]}")

    async def _serve(self, words: list[str]) -> None:
        while True:
            try:
                stream: YamuxStream = await self.session.accept_stream()  # type: ignore[assignment]
            except Exception:
                return
            self.counts["accepted"] += 1
            self.nursery.start_soon(self._treat, stream, words)

    async def _treat(self, stream: YamuxStream, words: list[str]) -> None:
        try:
            if words[0] == "greet":
                await write(stream, int(words[1]), 65_536, 0)
            elif words[0] in {"echo", "sink"}:
                while data := await receive(stream, 65_536):
                    self.counts["bytes"] += len(data)
                    if words[0] == "echo":
                        await stream.write(data)
            else:
                return
            await stream.close()
        except Exception as exc:
            sys.stderr.write(f"stream failed: {exc!r}\n")
            self.counts["failed"] += 1
        else:
            self.counts["finished"] += 1

    async def run_on_stream(self, command: str, words: list[str], options: dict[str, str]) -> str:
        stream = self.streams.get(words[0]) if words else None
        if command in {"ping", "goaway", "text", "ws-close"}:
            raise Unsupported
        if stream is None:
            raise RuntimeError(f"no command {command}, or no such stream")
        if command == "write":
            chunk, seed = int(options.get("chunk", "65536")), int(options.get("seed", "0"))
            return f"bytes={words[1]} sha256={await write(stream, int(words[1]), chunk, seed)}"
        if command == "read":
            return await read(stream, words[1], int(options.get("rate", "0")))
        if command == "reset":
            await stream.reset()
        elif command in {"finish", "close"}:
            await stream.close()
        else:
            raise RuntimeError(f"no command {command}")
        return ""


async def main() -> None:
    async with trio.open_nursery() as nursery:
        peer = Peer(nursery)
        commands = trio.wrap_file(sys.stdin)
        async for line in commands:
            number, command, *rest = line.split()
            words = [word for word in rest if "=" not in word]
            options = dict(word.split("=", 1) for word in rest if "=" in word)
            nursery.start_soon(peer.reply, number, command, words, options)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
