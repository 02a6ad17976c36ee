"""WebSocket masking and framing of 64 KiB messages, as a tunnel's flush makes them."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Iterator

from tunnelmux.pump import websocket

SIZE = 64 * 1024
CALLS = 2000
REPEATS = 5
MASK = b"\x12\x34\x56\x78"


def rate(function: Callable[[], object]) -> float:
    """GB per second of the best of several runs: when nothing else disturbs it."""
    runs = timeit.repeat(function, number=CALLS, repeat=REPEATS, timer=time.process_time)
    return SIZE * CALLS / min(runs) / 1e9


def run() -> Iterator[tuple[str, float, str]]:
    payload = bytes(range(256)) * (SIZE // 256)
    reader = websocket.FrameReader(masked=True)
    frame = websocket.encode_binary(payload, MASK)
    yield "mask 64 KiB", rate(lambda: websocket.apply_mask(payload, MASK)), "GB/s"
    yield "encode 64 KiB, masked", rate(lambda: websocket.encode_binary(payload, MASK)), "GB/s"
    yield "encode 64 KiB, unmasked", rate(lambda: websocket.encode_binary(payload)), "GB/s"
    yield "decode 64 KiB, masked", rate(lambda: reader.receive_data(frame)), "GB/s"
