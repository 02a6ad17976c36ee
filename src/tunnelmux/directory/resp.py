"""A client of Redis on Trio: the protocol RESP2, a few connections, Sentinels.

The directory runs scripts, and waits for entries of a stream; this client does no more than that. A
connection serves one call
at a time; when a call was cancelled or failed, its connection is dropped, so that its answer is
never read as the answer to another call.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tunnelmux.config.redis_url import RedisPlace
from tunnelmux.errors import ConfigError, TunnelmuxError

__all__ = ["Redis", "RedisFailed", "Reply", "Script", "open_redis"]

Reply = str | int | list["Reply"] | None

_MOST_CONNECTIONS = 16
# Concurrent connections; one more call waits. Redis runs one script at a time, so more would wait
# there.

_DIAL_TIMEOUT = 1.0
# Seconds for one of several Sentinels to answer before the next one is asked.

_READ_SIZE = 65_536

_LONGEST_LINE = 65_536
# Bytes of a line: Redis sends a number or the text of an error.

_LARGEST_REPLY = 16 * 1024 * 1024
# Bytes of one answer with all its parts. A beat's answer is a thousand bytes for each node, and
# some hundred for each of at most a thousand messages.

_PART = 512
# Bytes that a part of an answer counts beside its text: a million numbers take long to read.

_DEEPEST = 8
# Lists within lists: the answer to a beat has three.


class RedisFailed(TunnelmuxError):
    """Redis could not be reached, or answered with an error."""


@asynccontextmanager
async def open_redis(url: str, ca_file: Path | None = None) -> AsyncIterator[Redis]:
    """A client of the Redis at *url* (see `RedisPlace.parse`) for the length of the block. It
    connects when it is used. Under TLS, the system's authorities are trusted, or those in
    *ca_file*. Raises ConfigError."""
    try:
        place = RedisPlace.parse(url)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    tls = None
    if place.tls:
        try:
            tls = ssl.create_default_context(cafile=ca_file)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the authorities in {ca_file} cannot be loaded ({error}): it must be a readable "
                "PEM file"
            ) from error
    client = Redis(place, tls)
    try:
        yield client
    finally:
        client.close()


class Redis:
    """Runs scripts in a Redis. Calls may run concurrently, and be cancelled; the caller sets their
    deadline.
    """

    def __init__(self, place: RedisPlace, tls: ssl.SSLContext | None = None) -> None:
        self._place = place
        self._tls = tls
        self._idle: list[_Connection] = []
        self._room = trio.Semaphore(_MOST_CONNECTIONS)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str]) -> Reply:
        """Run the script; returns its answer. Raises RedisFailed."""
        words = (script.digest, str(len(keys)), *keys, *arguments)
        async with self._connection() as connection:
            try:
                return await connection.ask("EVALSHA", *words)
            except _ErrorReply as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
                return await connection.ask("EVAL", script.text, *words[1:])

    async def wait_entry(self, stream: str, after: str, seconds: float) -> None:
        """Return when the stream has an entry after that id, or after so many seconds. Raises
        RedisFailed."""
        milliseconds = str(int(seconds * 1000))
        async with self._connection() as connection:
            words = "COUNT", "1", "BLOCK", milliseconds, "STREAMS", stream, after
            await connection.ask("XREAD", *words)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Connection]:
        """A connection for one call, which is dropped when the call fails. Raises RedisFailed."""
        async with self._room:
            connection = self._idle.pop() if self._idle else await self._dial()
            is_fine = False
            try:
                yield connection
                is_fine = True
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                raise RedisFailed(f"the connection broke: {error.__cause__ or error}") from error
            finally:
                if is_fine:
                    self._idle.append(connection)
                else:
                    # The other idle connections lead to the same server, which has ended or is no
                    # primary any more.
                    connection.close()
                    self.close()

    async def _dial(self) -> _Connection:
        place = self._place
        if place.primary:
            return await self._connect(*await self._ask_sentinels())
        if place.socket:
            return await self._connect(place.socket, 0)
        return await self._connect(*place.hosts[0])

    async def _ask_sentinels(self) -> tuple[str, int]:
        """The address of the current primary."""
        problem = "none of them answered"
        for host, port in self._place.hosts:
            try:
                with trio.fail_after(_DIAL_TIMEOUT):
                    sentinel = await self._connect(host, port, is_sentinel=True)
                    try:
                        words = "SENTINEL", "get-master-addr-by-name", self._place.primary
                        reply = await sentinel.ask(*words)
                    finally:
                        sentinel.close()
            except (RedisFailed, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
                problem = str(error) or problem
                continue
            match reply:
                case [str(found), str(number)] if 0 < (port := _number(number)) <= 65535:
                    return found, port
            problem = f'they know no primary "{self._place.primary}"'
        raise RedisFailed(f"the Sentinels did not tell where the primary is: {problem}")

    async def _connect(self, host: str, port: int, *, is_sentinel: bool = False) -> _Connection:
        place = self._place
        try:
            stream: trio.abc.Stream
            if not port:
                stream = await trio.open_unix_socket(host)
            else:
                stream = await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise RedisFailed(f"it cannot be reached: {error.strerror or error}") from error
        except UnicodeError as error:
            raise RedisFailed(f"{host!r} is no host") from error
        connection = _Connection(stream)
        is_ready = False
        try:
            if self._tls is not None:
                tls = trio.SSLStream(stream, self._tls, server_hostname=host)
                await tls.do_handshake()
                connection = _Connection(tls)
            if not is_sentinel:
                await self._introduce(connection, place)
            is_ready = True
        except (OSError, trio.BrokenResourceError) as error:
            raise RedisFailed(f"the connection broke: {error.__cause__ or error}") from error
        finally:
            if not is_ready:
                connection.close()
        return connection

    async def _introduce(self, connection: _Connection, place: RedisPlace) -> None:
        if place.password:
            who = [place.user, place.password] if place.user else [place.password]
            await connection.ask("AUTH", *who)
        if place.database:
            await connection.ask("SELECT", str(place.database))
        if place.primary:
            match await connection.ask("ROLE"):
                case ["master", *_]:
                    pass
                case _:
                    raise RedisFailed("the server that the Sentinels named is not the primary now")


class Script:
    """A Lua script for Redis."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class _ErrorReply(RedisFailed):
    """Redis answered with an error."""


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _not_redis() from None


def _not_redis() -> RedisFailed:
    return RedisFailed("what answers there does not speak the protocol of Redis")


class _Connection:
    """One connection, for one call at a time."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._left = 0  # bytes that the answer may still have

    def close(self) -> None:
        # At once: RESP2 has no closing handshake.
        stream = self._stream
        if isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        assert isinstance(stream, trio.SocketStream)
        stream.socket.close()

    async def ask(self, *words: str) -> Reply:
        """The answer to a command. Raises RedisFailed, or the stream's own error."""
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            data = word.encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
        await self._stream.send_all(b"".join(parts))
        self._left = _LARGEST_REPLY
        reply = await self._read()
        if isinstance(reply, _ErrorReply):
            raise reply
        return reply

    async def _read(self, depth: int = 0) -> Reply | _ErrorReply:
        line = await self._read_line()
        kind, text = line[:1], line[1:]
        self._count(_PART + len(line))
        match kind:
            case "+":
                return text
            case "-":
                return _ErrorReply(text)
            case ":":
                return _number(text)
            case "$" if (size := _number(text)) >= -1:
                if size < 0:
                    return None
                self._count(size)
                # What is not UTF-8 is another program's, and must not hide the rest.
                return (await self._take(size + 2))[:-2].decode(errors="replace")
            case "*" if (count := _number(text)) >= -1 and depth < _DEEPEST:
                if count < 0:
                    return None
                found: list[Reply] = []
                for _ in range(count):
                    item = await self._read(depth + 1)
                    if isinstance(item, _ErrorReply):
                        raise item
                    found.append(item)
                return found
        raise _not_redis()

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise RedisFailed(f"it answers with more than {_LARGEST_REPLY} bytes")

    async def _read_line(self) -> str:
        searched = 0
        while (end := self._buffer.find(b"\r\n", searched)) < 0:
            if len(self._buffer) > _LONGEST_LINE:
                raise _not_redis()
            searched = max(0, len(self._buffer) - 1)
            await self._receive()
        return (await self._take(end + 2))[:-2].decode(errors="replace")

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._receive()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _receive(self) -> None:
        data = await self._stream.receive_some(_READ_SIZE)
        if not data:
            raise RedisFailed("it closed the connection")
        self._buffer += data
