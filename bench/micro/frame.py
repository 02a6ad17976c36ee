"""The frame codec, one call at a time, beside the same work done by `struct`."""

from __future__ import annotations

import struct
import time
import timeit
from collections.abc import Callable, Iterator

from tunnelmux import _frame

CALLS = 200_000
REPEATS = 5


def nanoseconds(function: Callable[[], object]) -> float:
    """The best of several runs: what it costs when nothing else disturbs it."""
    runs = timeit.repeat(function, number=CALLS, repeat=REPEATS, timer=time.process_time)
    return min(runs) / CALLS * 1e9


def send_and_grant(window: _frame.SendWindow) -> None:
    window.spend(16_384)
    window.grant(16_384)


def receive_and_update(window: _frame.ReceiveWindow) -> None:
    window.accept(16_384)
    window.consume(16_384)
    window.take_update()


def run() -> Iterator[tuple[str, float, str]]:
    layout = struct.Struct(">BBHII")
    header = _frame.encode_header(_frame.TYPE_DATA, _frame.FLAG_SYN, 1, 16_384)
    yield "encode a header", nanoseconds(lambda: _frame.encode_header(0, 1, 1, 16_384)), "ns"
    yield "  with struct, encode", nanoseconds(lambda: layout.pack(0, 0, 1, 1, 16_384)), "ns"
    yield "decode a header", nanoseconds(lambda: _frame.decode_header(header)), "ns"
    yield (
        "  with struct, decode",
        nanoseconds(lambda: _frame.Header._make(layout.unpack_from(header))),
        "ns",
    )
    send_window = _frame.SendWindow()
    yield "send window: spend, grant", nanoseconds(lambda: send_and_grant(send_window)), "ns"
    receive_window = _frame.ReceiveWindow()
    yield (
        "receive window: accept, consume, update",
        nanoseconds(lambda: receive_and_update(receive_window)),
        "ns",
    )
