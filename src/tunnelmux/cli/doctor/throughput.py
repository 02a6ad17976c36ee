"""How much goes over an agent's way to its proxy in a second, both ways, measured without a session
(`proxy/tunnels/measuring.py` is the other end)."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

import msgspec
import trio

from tunnelmux.agent.link import ProxyLink
from tunnelmux.cli.doctor.findings import Finding
from tunnelmux.cli.doctor.rates import EXAMPLE, SLOW_FIX, Rate
from tunnelmux.errors import ConfigError, ConnectError, ConnectRefused, SessionError
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import Limits
from tunnelmux.mux import open_session
from tunnelmux.mux.stream import Stream
from tunnelmux.transports.websocket import connect_websocket
from tunnelmux.wire import MEASURE_PATH

__all__ = ["check_throughput"]

_MOST = 4_194_304
# Bytes that are sent: the default of the proxy, which takes no more.

_LONGEST = 2.0
# Seconds of sending, and of receiving.

_PIECE = 65_536
_LONGEST_LINE = 256


class _Received(msgspec.Struct):
    """What the proxy tells of the bytes that came to it."""

    count: int = msgspec.field(name="bytes")
    seconds: float


async def check_throughput(link: ProxyLink, timeout: float) -> list[Finding]:
    """Whether the proxy knows the device's token, and how fast the way is. Moves at most 4 MiB and
    takes at most 2 s each way; `timeout` is for connecting, and again for the rest."""
    credentials = link.credentials
    if credentials.path is not None and not credentials.path.exists():
        return [
            Finding(
                check="token",
                outcome="unknown",
                said="the join line was not used yet, so that the throughput is not measured",
                fix="start the agent, which joins, and ask again",
            )
        ]
    try:
        up, down = await _measure(link, timeout)
    except ConfigError as error:
        return [Finding(check="token", outcome="bad", said=str(error), fix=_READ_FIX)]
    except ConnectRefused as refused:
        return [_refused(refused, credentials.source)]
    except (ConnectError, SessionError, trio.BrokenResourceError, trio.TooSlowError) as error:
        why = "it took too long" if isinstance(error, trio.TooSlowError) else str(error)
        return [
            Finding(
                check="throughput",
                outcome="bad",
                said=f"the tunnel broke while it was measured: {why}",
                fix="something on the way cuts long connections or large messages: try another "
                "way out, or wss:// where it is ws://",
            )
        ]
    token = Finding(check="token", outcome="good", said="the proxy knows this device")
    return [token, _of_rates(up, down)]


_READ_FIX = "run this as the user of the agent, with the agent's own configuration"


def _refused(refused: ConnectRefused, source: str) -> Finding:
    if refused.status == 404:
        return Finding(
            check="throughput",
            outcome="unknown",
            said="not measured: the proxy is older than this program, or passes only one path on",
        )
    if refused.reason is not None and refused.status in {401, 403}:
        fix = f"sent was {source}: give the device one that the proxy knows"
        return Finding(check="token", outcome="bad", said=str(refused), fix=fix)
    return Finding(check="throughput", outcome="unknown", said=f"not measured: {refused}")


def _of_rates(up: Rate, down: Rate) -> Finding:
    is_thin = up.is_thin or down.is_thin
    return Finding(
        check="throughput",
        outcome="warning" if is_thin else "good",
        said=f"{up} to the proxy, {down} from it: {EXAMPLE} take {up.time_of_example} to a visitor "
        f"and {down.time_of_example} to this device",
        fix=SLOW_FIX if is_thin else "",
    )


async def _measure(link: ProxyLink, timeout: float) -> tuple[Rate, Rate]:
    """The rates to the proxy and from it. Raises ConfigError when the token cannot be read,
    ConnectError, SessionError, BrokenResourceError, TooSlowError."""
    token = link.token().reveal().encode("ascii")
    where = link.url
    async with connect_websocket(
        replace(where, target=f"{where.path}{MEASURE_PATH}"),
        headers=[(b"Authorization", b"Bearer " + token)],
        ssl_context=link.ssl_context,
        handshake_timeout=timeout,
        way=link.way,
    ) as transport:
        with trio.fail_after(timeout + 2 * _LONGEST):
            limits = Limits(close_grace=0.1)  # what was sent beyond the measurement is of no use
            async with open_session(transport, is_client=True, limits=limits) as session:
                stream = await session.open_stream()
                try:
                    up, behind = await _send(stream)
                    return up, await _receive(stream, len(behind))
                finally:
                    stream.reset()


async def _send(stream: Stream) -> tuple[Rate, bytes]:
    """Send until the proxy says how much came. Returns this, and what came behind it."""
    answer = b""
    failure: trio.BrokenResourceError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_fill, stream)
        try:
            while b"\n" not in answer and len(answer) < _LONGEST_LINE:
                if not (data := await stream.receive_some(_PIECE)):
                    break
                answer += data
        except trio.BrokenResourceError as error:
            failure = error  # raised below, where no nursery wraps it in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    line, _, behind = answer.partition(b"\n")
    try:
        said = read_json(line, _Received)
    except BadJson:
        raise ConnectError("the answer of the proxy cannot be read") from None
    return Rate(said.count, said.seconds), behind


async def _fill(stream: Stream) -> None:
    piece = os.urandom(_PIECE)  # nothing on the way can make it smaller
    with trio.move_on_after(_LONGEST), contextlib.suppress(trio.BrokenResourceError):
        for _ in range(_MOST // _PIECE):
            await stream.send_all(piece)
        await stream.send_eof()


async def _receive(stream: Stream, count: int) -> Rate:
    began = trio.current_time()
    with trio.move_on_after(_LONGEST):
        while data := await stream.receive_some(_PIECE):
            count += len(data)
    return Rate(count, trio.current_time() - began)
