"""Lines that come in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from support.counted_bytes import CountedBytes, Work
from tunnelmux.commands import LineSplitter


@given(data=st.binary().map(lambda data: data.replace(b"a", b"\n")), sizes=st.data())
def test_lines_are_the_same_in_any_pieces(data: bytes, sizes: st.DataObject) -> None:
    splitter = LineSplitter()
    lines: list[bytes] = []
    rest = data
    while rest:
        size = sizes.draw(st.integers(1, len(rest)))
        lines += splitter.feed(rest[:size])
        rest = rest[size:]
        assert splitter.waiting == len(data[: len(data) - len(rest)].split(b"\n")[-1])
    assert b"\n".join([*lines, splitter.take()]) == data
    assert splitter.waiting == 0


def test_every_byte_is_looked_at_once() -> None:
    work = Work()
    splitter = LineSplitter()
    for _ in range(10_000):
        assert splitter.feed(CountedBytes(b"x", work)) == []
    [line] = splitter.feed(CountedBytes(b"\n", work))
    assert line == b"x" * 10_000
    assert work.bytes == 10_001


def test_the_counter_sees_work_that_is_repeated() -> None:
    work = Work()
    rest = b""
    for _ in range(100):
        *_, rest = (rest + CountedBytes(b"x", work)).split(b"\n")
    assert work.bytes > 5000
