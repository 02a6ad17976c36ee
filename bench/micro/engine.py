"""Two engines back to back in memory: what yamux itself costs, without any I/O."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tunnelmux.limits import Limits
from tunnelmux.yamux.engine import Engine
from tunnelmux.yamux.streams import EngineStream

BULK_BYTES = 512 * 1024 * 1024
EXCHANGES = 20_000
REPEATS = 3
SMALL_FRAME = 128  # bytes: what is not copying shows


def move(source: Engine, target: Engine) -> None:
    """Carry everything *source* has to send over to *target*."""
    while data := source.data_to_send(0.0):
        target.receive_data(data, 0.0)


def settle(one: Engine, other: Engine) -> None:
    while one.wants_send or other.wants_send:
        move(one, other)
        move(other, one)


def read_all(stream: EngineStream) -> int:
    size = 0
    while chunk := stream.receive(65_536):
        size += len(chunk)
    return size


def pair(frame: int = Limits().max_frame_payload) -> tuple[Engine, Engine]:
    limits = Limits(max_frame_payload=frame)
    return (
        Engine(is_client=True, now=0.0, limits=limits),
        Engine(is_client=False, now=0.0, limits=limits),
    )


def bulk_seconds(chunk_size: int, total: int, frame: int = Limits().max_frame_payload) -> float:
    """Seconds of processor time for *total* bytes over one stream, both ends together."""
    client, server = pair(frame)
    out = client.open_stream(0.0)
    settle(client, server)
    into = server.accept_stream()
    assert into is not None
    chunk = bytes(chunk_size)
    sent = received = 0
    start = time.process_time()
    while received < total:
        while sent < total and (taken := out.send(chunk)):
            sent += taken
        move(client, server)
        received += read_all(into)
        move(server, client)
    return time.process_time() - start


def exchange_seconds(count: int) -> float:
    """Seconds for *count* streams: open, 200 bytes there, 400 back, both halves finished."""
    client, server = pair()
    question, answer = bytes(200), bytes(400)
    start = time.process_time()
    for _ in range(count):
        asker = client.open_stream(0.0)
        asker.send(question)
        asker.finish()
        move(client, server)
        answerer = server.accept_stream()
        assert answerer is not None
        assert read_all(answerer) == len(question)
        answerer.send(answer)
        answerer.finish()
        move(server, client)
        assert read_all(asker) == len(answer)
    settle(client, server)
    assert client.stream_count == server.stream_count == 0
    return time.process_time() - start


def run() -> Iterator[tuple[str, float, str]]:
    for chunk_size, total in ((65_536, BULK_BYTES), (1024, BULK_BYTES // 8)):
        seconds = min(bulk_seconds(chunk_size, total) for _ in range(REPEATS))
        yield f"one stream, writes of {chunk_size} bytes", total / seconds / 2**20, "MiB/s"
    seconds = min(bulk_seconds(65_536, BULK_BYTES // 32, SMALL_FRAME) for _ in range(REPEATS))
    frames = BULK_BYTES / 32 / SMALL_FRAME
    yield f"a frame of {SMALL_FRAME} bytes, written and read", seconds / frames * 1e9, "ns"
    seconds = min(exchange_seconds(EXCHANGES) for _ in range(REPEATS))
    yield "open, 200 bytes, 400 back, finish", seconds / EXCHANGES * 1e6, "µs"
