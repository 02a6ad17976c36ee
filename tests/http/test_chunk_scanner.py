"""`ChunkScanner`: where a chunked body ends, as h11 would have found it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.head_checks import check_chunked
from support.mutations import MUTATIONS, mutated
from tunnelmux.pump.chunks import ChunkScanner

CHUNKED = {
    # what: (bytes, how it ends, how many bytes belong to the body; None for all)
    "nothing": (b"0\r\n\r\n", "done", None),
    "two chunks": (b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", "done", None),
    "the next request behind": (b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1", "done", 11),
    "hexadecimal in both cases": (
        b"a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n",
        "done",
        None,
    ),
    "leading zeros": (b"00001\r\nx\r\n000\r\n\r\n", "done", None),
    "extension": (b'1;a=b; c="d"\r\nx\r\n0;e\r\n\r\n', "done", None),
    "unfinished": (b"5\r\nhel", "", None),
    "size not finished": (b"5", "", None),
    "largest size": (b"f" * 15 + b"\r\nx", "", None),
    "size of 16 digits": (b"1" + b"0" * 15 + b"\r\nx", "broken", 15),
    "size that wraps to 5 in 64 bits": (b"10000000000000005\r\nhello\r\n", "broken", 15),
    "negative size": (b"-1\r\n", "broken", 0),
    "signed size": (b"+1\r\n", "broken", 0),
    "0x": (b"0x5\r\nhello\r\n", "broken", 1),
    "no size": (b"\r\nhello", "broken", 0),
    "extension without size": (b";a\r\n", "broken", 0),
    "underscore": (b"1_0\r\n", "broken", 1),
    "leading space": (b" 1\r\nx", "broken", 0),
    "not hexadecimal": (b"g\r\n", "broken", 0),
    "bare LF behind a size": (b"1\nx\r\n0\r\n\r\n", "broken", 1),
    "bare CR behind a size": (b"1\rx\r\n0\r\n\r\n", "broken", 2),
    "CR CR LF": (b"1\r\r\nx", "broken", 2),
    "bare LF in an extension": (b"1;a\nx\r\n0\r\n\r\n", "broken", 3),
    "bare CR in an extension": (b"1;a\rb\r\nx", "broken", 4),
    "NUL in an extension": (b"1;\x00\r\nx", "", None),
    "longest line": (b"1;" + b"a" * 254 + b"\r\nx", "", None),
    "overlong line": (b"1;" + b"a" * 255 + b"\r\nx", "broken", 256),
    "blanks behind a size": (b"1 \t \r\nx\r\n0 \r\n\r\n", "done", None),
    "blanks before an extension": (b"1 ;a\r\nx", "", None),
    "blanks within a size": (b"1 1\r\nx", "broken", 2),
    "chunk longer than its size": (b"1\r\nxy\r\n0\r\n\r\n", "broken", 4),
    "chunk shorter than its size": (b"3\r\nx\r\n0\r\n\r\n", "broken", 6),
    "bare LF behind a chunk": (b"1\r\nx\n0\r\n\r\n", "broken", 4),
    "bare CR behind a chunk": (b"1\r\nx\r0\r\n\r\n", "broken", 5),
    "bare LF at the end": (b"0\r\n\n", "trailers", 3),
    "CR without LF at the end": (b"0\r\n\rG", "broken", 4),
    "trailer": (b"0\r\nX-Sum: 1\r\n\r\n", "trailers", 3),
    "trailer that frames": (b"0\r\nContent-Length: 5\r\n\r\n", "trailers", 3),
}


@pytest.mark.parametrize(("raw", "end", "size"), CHUNKED.values(), ids=CHUNKED.keys())
def test_chunked_bodies(raw: bytes, end: str, size: int | None) -> None:
    scanner = ChunkScanner()
    used, _ = scanner.feed(raw)
    assert used == (len(raw) if size is None else size)
    ended = {"done": scanner.done, "trailers": scanner.at_trailers, "broken": scanner.broken}
    assert [word for word, is_so in ended.items() if is_so] == ([end] if end else [])
    assert scanner.feed(b"") == (0, b"")
    check_chunked(raw, list(range(len(raw) + 1)))


def test_blanks_and_extensions_stay_behind() -> None:
    raw = b'5 \r\nhello\r\n1;a=b; c="d"\r\n!\r\n00 ;x\r\n\r\n'
    assert ChunkScanner().feed(raw) == (len(raw), b"5\r\nhello\r\n1\r\n!\r\n00\r\n\r\n")


def test_one_byte_at_a_time() -> None:
    scanner = ChunkScanner()
    raw = b"b\r\nhello world\r\n2;x\r\n\r\n\r\n0\r\n\r\n"
    assert [scanner.feed(raw[i : i + 1])[0] for i in range(len(raw))] == [1] * len(raw)
    assert scanner.done


CHUNKS = st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.sampled_from(["x", "X", "04x"])))


@given(CHUNKS, st.sampled_from([b"", b";a=b", b" \t", b" ;a"]), st.binary(max_size=4), MUTATIONS)
@settings(max_examples=300)
def test_chunked_bodies_at_every_split(
    chunks: list[tuple[bytes, str]],
    extension: bytes,
    rest: bytes,
    changes: list[tuple[int, str, bytes]],
) -> None:
    lines = [
        format(len(data), how).encode() + extension + b"\r\n" + data + b"\r\n"
        for data, how in chunks
    ]
    raw = b"".join(lines) + b"0\r\n\r\n" + rest
    assert check_chunked(raw, list(range(len(raw) + 1)))
    raw = mutated(raw, changes)
    check_chunked(raw, list(range(len(raw) + 1)))
