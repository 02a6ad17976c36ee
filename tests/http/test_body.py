"""Where bodies end: our decoders against h11's, whole and in pieces."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.counted_bytes import CountedBytes, Work
from tunnelmux.http.body import BadBody, ChunkedBody, LengthBody, UntilEndBody, encode_chunk
from tunnelmux.pump.chunks import whole_chunks

PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def feed_in_pieces(decoder: ChunkedBody | LengthBody, data: bytes, cuts: list[int]) -> bytes:
    """What the decoder gives for `data` cut at these places; stops when it is done."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    content = b""
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        if decoder.done:
            decoder.rest += data[start:end]
        elif end > start:
            content += decoder.feed(data[start:end])
    return content


def through_h11(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes] | None:
    """Content, trailers and rest as h11 reads them; None when it refuses, or wants more."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.next_event()
    connection.receive_data(data)
    content = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                return content, event.headers.raw_items(), connection.trailing_data[0]
            else:
                return None
    except h11.RemoteProtocolError:
        return None


@given(PIECES, st.lists(st.integers(0, 500), max_size=8), st.binary(max_size=20), st.booleans())
def test_chunked_body_is_read_whole_however_it_is_cut(
    pieces: list[bytes], cuts: list[int], rest: bytes, trailers: bool
) -> None:
    body = b"".join(encode_chunk(piece) for piece in pieces) + b"0\r\n"
    body += b"X-Sum: 1\r\n\r\n" if trailers else b"\r\n"
    decoder = ChunkedBody(1000)
    assert feed_in_pieces(decoder, body + rest, cuts) == b"".join(pieces)
    assert decoder.done
    assert decoder.rest == rest
    assert decoder.trailers == ([(b"X-Sum", b"1")] if trailers else [])


MUTATED = st.lists(
    st.sampled_from(
        [
            b"3\r\nabc\r\n",
            b"0\r\n",
            b"\r\n",
            b"\n",
            b"\r",
            b"a",
            b"3",
            b";x",
            b" ",
            b"X: y\r\n",
            b"0",
        ]
    ),
    max_size=8,
).map(b"".join)


@given(MUTATED, st.lists(st.integers(0, 100), max_size=5))
@settings(max_examples=200)
def test_whatever_we_take_as_chunked_h11_reads_the_same_way(data: bytes, cuts: list[int]) -> None:
    decoder = ChunkedBody(1000)
    try:
        content = feed_in_pieces(decoder, data, cuts)
    except BadBody:
        return  # stricter than h11 is fine
    if decoder.done:
        expected = through_h11(data)
        assert expected is not None
        assert (content, decoder.trailers, decoder.rest) == expected


@given(st.binary(max_size=60), st.integers(0, 60), st.lists(st.integers(0, 60), max_size=5))
def test_length_body(data: bytes, length: int, cuts: list[int]) -> None:
    decoder = LengthBody(length)
    content = feed_in_pieces(decoder, data, cuts)
    assert content == data[:length]
    assert decoder.done == (len(data) >= length)
    if decoder.done:
        assert decoder.rest == data[length:]
        decoder.feed_eof()
    else:
        with pytest.raises(BadBody):
            decoder.feed_eof()


def test_body_until_the_end() -> None:
    decoder = UntilEndBody()
    assert decoder.feed(b"abc") == b"abc"
    assert not decoder.done
    decoder.feed_eof()
    assert decoder.done


@pytest.mark.parametrize(
    "data",
    [
        b"3\r\nabc",
        b"3\r\nabc\r\n",
        b"0\r\n",
        b"0\r\nX: y\r\n",
        b"",
    ],
)
def test_chunked_body_that_ends_early(data: bytes) -> None:
    decoder = ChunkedBody(1000)
    if data:
        decoder.feed(data)
    with pytest.raises(BadBody):
        decoder.feed_eof()


@pytest.mark.parametrize(
    "data",
    [
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b"1_0\r\n",
        b" 1\r\n",
        b"\r\n",
        b"3\nabc\r\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n",
        b"3;a\rb\r\n",
        b"3;a\nb\r\nabc",
        b"f" * 17 + b"\r\n",
        b"3;" + b"x" * 300,
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\nX: " + b"y" * 2000,
    ],
)
def test_malformed_chunks(data: bytes) -> None:
    with pytest.raises(BadBody):
        ChunkedBody(1000).feed(data)


def test_size_lines_in_single_bytes_are_looked_at_once() -> None:
    raw = (b"1;" + b"x" * 250 + b"\r\ny\r\n") * 40 + b"0\r\n\r\n"
    work, body, content = Work(), ChunkedBody(1000), b""
    for at in range(len(raw)):
        content += body.feed(CountedBytes(raw[at : at + 1], work))
    assert body.done
    assert content == b"y" * 40
    assert work.bytes <= 2 * len(raw)


class StepsCounted(ChunkedBody):
    steps = 0

    def _read_size(self, data: bytes, at: int) -> int:
        self.steps += 1
        return super()._read_size(data, at)


def test_chunks_of_one_byte_cost_no_step_each() -> None:
    """A device that sent nothing else kept the visitors of others waiting for half a second."""
    body, raw, content = (
        StepsCounted(1000),
        b"1\r\nx\r\n1;\r\nx\r\n" * 5_000 + b"0\r\n\r\nrest",
        b"",
    )
    for at in range(0, len(raw), 16_384):
        content += body.feed(raw[at : at + 16_384])
    assert (content, body.done, body.rest) == (b"x" * 10_000, True, b"rest")
    assert body.steps <= 12


@pytest.mark.parametrize(
    ("data", "content", "end"),
    [
        (b"1\r\na\r\nA\r\n0123456789\r\n0\r\n\r\n", b"a0123456789", 21),
        (b"1\r\na\r\n2\r\nb", b"a", 6),
        (b"1\r\na\r\n2\r\nbc\r", b"a", 6),
        (b"1\r\na\r\n1 \t;x\r\nb\r\n", b"ab", 16),
        (b"1\r\na\r\n1;x\ny\r\nb\r\n", b"a", 6),
        (b"1\r\na\r\n1;x\r", b"a", 6),
        (b"1\r\na\r\n ;x\r\nb\r\n", b"a", 6),
        (b"1;" + b"x" * 254 + b"\r\na\r\n", b"a", 261),
        (b"1;" + b"x" * 255 + b"\r\na\r\n", b"", 0),
        (b"1" + b" " * 256 + b"\r\na\r\n", b"", 0),
        (b"1\r\nab\r\n", b"", 0),
        (b"1\r\na\n\n", b"", 0),
        (b"1\na\r\n", b"", 0),
        (b"000000000000001\r\na\r\n", b"a", 20),
        (b"0000000000000001\r\na\r\n", b"", 0),
        (b"fffffffffffffff\r\na\r\n", b"", 0),
        (b"7fffffff\r\n\r\n", b"", 0),
        (b"1\r\n", b"", 0),
        (b"1\r", b"", 0),
        (b"1", b"", 0),
        (b"\r\n", b"", 0),
        (b"", b"", 0),
    ],
)
def test_whole_chunks_are_those_that_are_here_and_right(
    data: bytes, content: bytes, end: int
) -> None:
    assert whole_chunks(data, 0) == (content, end)
    assert whole_chunks(b"xx" + data, 2) == (content, end + 2)
    assert whole_chunks(data, len(data)) == (b"", len(data))


def test_trailers_in_single_bytes_are_looked_at_once() -> None:
    raw = b"0\r\nA: " + b"b" * 30_000 + b"\r\n\r\n"
    body = ChunkedBody(65_536)
    for at in range(len(raw)):
        assert body.feed(raw[at : at + 1]) == b""
    assert body.done
    assert body.trailers == [(b"A", b"b" * 30_000)]
    assert body._section.steps <= len(raw)


def test_too_many_trailers_are_refused() -> None:
    with pytest.raises(BadBody, match="more than 3 trailer fields"):
        ChunkedBody(65_536, 3).feed(b"0\r\n" + b"a:\r\n" * 4 + b"\r\n")
