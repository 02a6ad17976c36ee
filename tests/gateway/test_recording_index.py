"""The index of a recording: what a player needs to begin in the middle of it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunnelmux.gateway import recording as module
from tunnelmux.gateway.recording import INDEX_EVERY, Recording
from tunnelmux.gateway.recording_space import RecordingSpace
from tunnelmux.registry import IndexPoint

Write = Callable[[Recording], None]


def made(
    path: Path, write: Write, window: tuple[int, int] = (80, 24)
) -> tuple[bytes, list[IndexPoint]]:
    """The file of a recording and its index, once it has ended."""

    async def main() -> None:
        space = RecordingSpace(path.parent, 1 << 40, 0)
        recording = Recording(path, {"tenant": "t"}, 1 << 30, space, lambda: None, lambda _: None)
        recording.begin(*window, "xterm")
        write(recording)
        await recording.close({"ended": "now"})

    asyncio.run(main())
    return path.read_bytes(), IndexPoint.read(path.with_suffix(".index").read_bytes())


def test_each_point_is_an_event_and_the_last_one_the_end(tmp_path: Path) -> None:
    line = b"x" * 100_000

    def write(recording: Recording) -> None:
        for _ in range(15):
            recording.output(line)
        recording.resized(100, 40)
        for _ in range(15):
            recording.output(line)

    data, points = made(tmp_path / "tenant" / "day" / "id.cast", write)
    head = data.index(b"\n") + 1
    assert points[0].offset == head
    assert points[-1].offset == len(data)
    assert len(points) == 1 + len(data) // INDEX_EVERY + 1
    for point, after in itertools.pairwise(points):
        event = json.loads(data[point.offset : data.index(b"\n", point.offset)])
        assert event[0] == point.seconds
        assert after.offset - point.offset <= INDEX_EVERY + 2 * len(line)
    assert [(point.columns, point.rows) for point in (points[0], points[-1])] == [
        (80, 24),
        (100, 40),
    ]
    resized = data.index(b'"r", "100x40"')
    for point in points:
        assert (point.columns == 100) == (point.offset > resized)


def test_a_window_that_no_screen_has_is_recorded_as_one_that_players_can_show(
    tmp_path: Path,
) -> None:
    def write(recording: Recording) -> None:
        recording.output(b"x")
        recording.resized(4_000_000_000, 0)

    data, points = made(tmp_path / "tenant" / "day" / "id.cast", write, (2**32 - 1, 1001))
    header, *events = [json.loads(line) for line in data.splitlines()]
    assert (header["width"], header["height"]) == (1000, 1000)
    assert events[-1][1:] == ["r", "1000x1"]
    assert [(point.columns, point.rows) for point in points] == [(1000, 1000), (1000, 1)]


def test_pauses_are_cut_to_two_seconds_as_players_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]

    class Time:
        time = staticmethod(lambda: 0.0)
        monotonic = staticmethod(lambda: clock[0])

    def write(recording: Recording) -> None:
        for seconds in (1.0, 3600.0, 0.5):
            clock[0] += seconds
            recording.output(b"x")

    monkeypatch.setattr(module, "time", Time)
    _, points = made(tmp_path / "tenant" / "day" / "id.cast", write)
    assert [(point.seconds, point.played) for point in points] == [(1.0, 1.0), (3601.5, 3.5)]


def test_a_session_without_output_has_an_end_only(tmp_path: Path) -> None:
    data, points = made(tmp_path / "tenant" / "day" / "id.cast", lambda _: None)
    assert [(point.played, point.offset) for point in points] == [(0.0, len(data))]
