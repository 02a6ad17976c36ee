"""The proxy's end of a measurement of the way between it and an agent (`tunnelmux doctor --agent`).

The agent's machine connects as an agent does, with the device's token, and opens one stream. It
sends until the proxy answers with a line of JSON that says how much came, `{"bytes": …, "seconds":
…}`. Behind this line the proxy sends, and the other end counts.
"""

from __future__ import annotations

import contextlib
import json
import os
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import trio

from tunnelmux.errors import SessionError
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import IngressLimits, Limits
from tunnelmux.mux import open_session
from tunnelmux.mux.stream import Stream

__all__ = ["Measurements"]

_ROUND_TRIPS = 6.0
# Seconds for what is not measured: the stream's first frame, and the line in between.

_PIECE = 65_536

_RETRY_AFTER = 10


class Measurements:
    """The measurements that are under way, one of a device at most."""

    def __init__(self) -> None:
        self._running: set[str] = set()

    def check_place(self, device: str, most: int) -> None:
        """Raises Refused with 503 when this device is being measured, or `most` others are."""
        if device in self._running or len(self._running) >= most:
            raise Refused(
                Refusal(
                    503,
                    "device-busy",
                    "this device is measuring its way already, or as many devices as "
                    "limits.max_measurements allows: try again in a moment",
                    _RETRY_AFTER,
                )
            )

    async def serve(
        self,
        device: str,
        accepted: AbstractAsyncContextManager[trio.abc.Stream],
        limits: IngressLimits,
        session_limits: Limits,
    ) -> None:
        """Measure once, over the connection that `accepted` opens. Ends quietly when the other end
        leaves. To be called without a wait after `check_place`. Raises ConnectError when the
        connection does not open.
        """
        held = replace(session_limits, max_streams=1, close_grace=1.0)
        self._running.add(device)
        try:
            with (
                trio.move_on_after(2 * limits.measurement_time + _ROUND_TRIPS),
                contextlib.suppress(SessionError, trio.BrokenResourceError),
            ):
                async with accepted as transport:
                    await _measure(transport, held, limits)
        finally:
            self._running.discard(device)


async def _measure(transport: trio.abc.Stream, held: Limits, limits: IngressLimits) -> None:
    async with (
        open_session(transport, is_client=False, limits=held) as session,
        await session.accept_stream() as stream,
    ):
        came = await _receive(stream, limits)
        await stream.send_all(json.dumps(came).encode() + b"\n")
        await _send(stream, limits)
        # The other end closes the connection when it has counted; the caller bounds the wait.
        await session.accept_stream()


async def _receive(stream: Stream, limits: IngressLimits) -> dict[str, float]:
    count = 0
    began = trio.current_time()
    with trio.move_on_after(limits.measurement_time):
        while count < limits.measurement_bytes and (data := await stream.receive_some()):
            count += len(data)
    return {"bytes": count, "seconds": trio.current_time() - began}


async def _send(stream: Stream, limits: IngressLimits) -> None:
    piece = os.urandom(_PIECE)  # nothing on the way can make it smaller
    left = limits.measurement_bytes
    with trio.move_on_after(limits.measurement_time):
        while left > 0:
            await stream.send_all(piece[:left])
            left -= _PIECE
    await stream.send_eof()
