"""`pump.websocket`: RFC 6455 framing of the payload, against wsproto and the text of the RFC."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed

from tunnelmux.pump.websocket import FrameReader, apply_mask, encode_binary

SIZES = (0, 1, 7, 8, 9, 125, 126, 127, 65_535, 65_536, 100_003)


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = b"\x01\x80\xff\x10"
) -> bytes:
    """One frame, written down here from section 5.2 and from nothing else."""
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size <= 65_535:
        length = b"\x7e" + size.to_bytes(2, "big")
    else:
        length = b"\x7f" + size.to_bytes(8, "big")
    second = bytes([length[0] | (0x80 if mask else 0)]) + length[1:]
    body = bytes(octet ^ mask[i % 4] for i, octet in enumerate(payload)) if mask else payload
    return bytes([opcode | (0x80 if fin else 0)]) + second + (mask or b"") + body


def read(reader: FrameReader, data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """The payload and the control frames in *data*, fed in pieces."""
    payload, control = b"", b""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        payload += reader.receive_data(data[start:end])
        control += reader.take_control()
    return payload, control


# -- the RFC's own examples (sections 5.3 and 5.7) ------------------------------------------------


def test_the_masked_hello_of_the_rfc() -> None:
    key = bytes.fromhex("37fa213d")
    assert apply_mask(b"Hello", key) == bytes.fromhex("7f9f4d5158")
    assert encode_binary(b"Hello", key) == bytes.fromhex("828537fa213d7f9f4d5158")


def test_the_unmasked_lengths_of_the_rfc() -> None:
    assert encode_binary(bytes(256))[:4] == bytes.fromhex("827e0100")
    assert encode_binary(bytes(65_536))[:10] == bytes.fromhex("827f0000000000010000")


# -- against wsproto ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_wsproto_reads_what_we_write(size: int, masked: bool) -> None:
    payload = random.Random(size).randbytes(size)
    data = encode_binary(payload, b"\x12\x34\x56\x78" if masked else None)
    protocol = FrameProtocol(client=not masked, extensions=[])
    protocol.receive_bytes(data)
    frames = list(protocol.received_frames())
    assert all(frame.opcode is Opcode.BINARY for frame in frames)
    assert b"".join(bytes(frame.payload) for frame in frames) == payload
    assert frames[-1].message_finished


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_we_read_what_wsproto_writes(size: int, masked: bool) -> None:
    payload = random.Random(size).randbytes(size)
    data = FrameProtocol(client=masked, extensions=[]).send_data(payload, fin=True)
    reader = FrameReader(masked=masked)
    assert reader.receive_data(data) == payload
    assert reader.error is None
    assert not reader.in_message


FRAMES = st.lists(
    st.one_of(
        st.tuples(st.just("data"), st.binary(max_size=300), st.booleans()),
        st.tuples(st.sampled_from(["ping", "pong"]), st.binary(max_size=125), st.just(True)),
    ),
    max_size=12,
)


def write(parts: list[tuple[str, bytes, bool]]) -> tuple[bytes, bytes, dict[int, bytes]]:
    """The bytes of a valid sequence, its payload, and its control frames by where each ends."""
    data, payload, in_message = b"", b"", False
    controls: dict[int, bytes] = {}
    for kind, body, fin in parts:
        if kind == "data":
            data += frame(0 if in_message else 2, body, fin=fin)
            payload, in_message = payload + body, not fin
        else:
            control = frame(9 if kind == "ping" else 10, body)
            data += control
            controls[len(data)] = control
    return data, payload, controls


def latest(controls: dict[int, bytes], size: int, cuts: list[int]) -> bytes:
    """The last of the Pings, and of the Pongs, that end in each piece."""
    edges = [0, *sorted(cut % (size + 1) for cut in cuts), size]
    out = b""
    for start, end in pairwise(edges):
        last = {control[0]: control for at, control in controls.items() if start < at <= end}
        out += last.get(0x89, b"") + last.get(0x8A, b"")
    return out


@given(parts=FRAMES, cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_fragments_and_control_frames_between_them_come_apart(
    parts: list[tuple[str, bytes, bool]], cuts: list[int]
) -> None:
    data, payload, controls = write(parts)
    reader = FrameReader(masked=True)
    assert read(reader, data, cuts) == (payload, latest(controls, len(data), cuts))
    assert reader.error is None


@pytest.mark.parametrize("opcode", [9, 10])
@pytest.mark.parametrize("masked", [False, True])
def test_only_the_latest_ping_and_pong_are_kept(masked: bool, opcode: int) -> None:
    """RFC 6455 section 5.5.3. Once all of them were kept: a peer that sent Pings and read nothing
    made the other end grow as fast as it could send."""
    mask = b"\x01\x80\xff\x10" if masked else None
    last = frame(opcode, b"last" * 31, mask=mask)
    reader = FrameReader(masked=masked)
    for _ in range(100):
        assert reader.receive_data(frame(opcode, bytes(125), mask=mask) * 100) == b""
    assert reader.has_control
    reader.receive_data(last)
    assert reader.take_control() == last
    assert reader.take_control() == b""
    assert not reader.has_control


def test_a_close_comes_behind_the_latest_ping() -> None:
    reader = FrameReader(masked=True)
    close = frame(8, (1000).to_bytes(2, "big") + b"bye")
    pings = frame(9, b"one") + frame(10, b"three") + frame(9, b"two")
    reader.receive_data(pings + close + frame(9, b"late") + close)
    assert reader.take_control() == frame(9, b"two") + frame(10, b"three") + close
    reader.receive_data(close * 1_000)
    assert reader.take_control() == b""


@given(
    parts=FRAMES,
    cuts=st.lists(st.integers(0, 10_000), max_size=4),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
)
def test_what_we_accept_wsproto_accepts_with_the_same_meaning(
    parts: list[tuple[str, bytes, bool]], cuts: list[int], changes: list[tuple[int, int]]
) -> None:
    data = bytearray(write(parts)[0])
    for place, value in changes:
        if data:
            data[place % len(data)] = value
    reader = FrameReader(masked=True)
    payload, control = read(reader, bytes(data), cuts)
    theirs = FrameProtocol(client=False, extensions=[])
    theirs.receive_bytes(bytes(data))
    expected, pings, refused = b"", 0, False
    try:
        for got in theirs.received_frames():
            if got.opcode is Opcode.BINARY:
                expected += bytes(got.payload)
            elif got.opcode in (Opcode.PING, Opcode.PONG):
                pings += 1
            else:
                break  # text is refused by us alone; behind a close nothing counts
    except ParseFailed:
        refused = True
    if reader.error is not None:
        # Refused here: there too, but for text, which only a tunnel refuses.
        assert refused or reader.error[0] == 1003 or reader.close is not None
    elif refused:
        # Left to wsproto on purpose: it gets the control frame, and judges what is in it.
        judge = FrameProtocol(client=False, extensions=[])
        judge.receive_bytes(control)
        with pytest.raises(ParseFailed):
            list(judge.received_frames())
    if reader.error is None and not refused:
        assert payload.startswith(expected)
        # wsproto holds a payload back until it has the whole head of a frame, as we do, and gives
        # parts of a frame as we do: only an unfinished control frame may differ.
        assert payload == expected


# -- the rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code", "sentence"),
    [
        pytest.param(frame(2, b"x", mask=None), 1002, "not masked", id="unmasked from a client"),
        pytest.param(b"\xc2\x80\0\0\0\0", 1002, "reserved bit", id="rsv1"),
        pytest.param(b"\xa2\x80\0\0\0\0", 1002, "reserved bit", id="rsv2"),
        pytest.param(b"\x92\x80\0\0\0\0", 1002, "reserved bit", id="rsv3"),
        pytest.param(frame(3), 1002, "opcode 3", id="reserved data opcode"),
        pytest.param(frame(11), 1002, "opcode 11", id="reserved control opcode"),
        pytest.param(frame(0, b"x"), 1002, "continued", id="continuation of nothing"),
        pytest.param(frame(2, fin=False) + frame(2), 1002, "continued", id="begun twice"),
        pytest.param(frame(9, fin=False), 1002, "fragmented", id="fragmented ping"),
        pytest.param(frame(9, bytes(126)), 1002, "too long", id="long ping"),
        pytest.param(b"\x82\xfe\0\x7d\0\0\0\0", 1002, "shortest", id="16 bits for 125"),
        pytest.param(
            b"\x82\xff" + bytes(6) + b"\xff\xff\0\0\0\0", 1002, "shortest", id="64 for 16"
        ),
        pytest.param(b"\x82\xff\x80" + bytes(11), 1002, "highest bit", id="2**63 bytes"),
        pytest.param(frame(1, b"hi"), 1003, "text", id="text"),
        pytest.param(frame(8, b"x"), 1002, "half a code", id="half a close code"),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_a_broken_rule_is_named_and_what_came_before_is_kept(
    data: bytes, code: int, sentence: str, bytewise: bool
) -> None:
    reader = FrameReader(masked=True)
    whole = frame(2, b"before") + data + frame(2, b"after")
    payload, _ = read(reader, whole, list(range(len(whole))) if bytewise else [])
    assert payload == b"before"
    assert reader.error is not None
    assert reader.error[0] == code
    assert sentence in reader.error[1]


def test_a_masked_frame_from_a_server_is_refused() -> None:
    reader = FrameReader(masked=False)
    reader.receive_data(frame(2, b"x"))
    assert reader.error == (1002, "a frame was masked")


def test_a_close_is_seen_behind_a_text_message() -> None:
    reader = FrameReader(masked=True)
    close = frame(8, (1003).to_bytes(2, "big"))
    assert reader.receive_data(frame(1, b"hi") + close) == b""
    assert reader.take_control() == close
    assert reader.close == (1003, "")


@pytest.mark.parametrize("opcode", [8, 9])
def test_a_control_frame_against_the_rules_is_not_read_behind_a_text_message(opcode: int) -> None:
    """It once was, with its length unchecked: a peer could write behind a buffer of 125 bytes."""
    reader = FrameReader(masked=True)
    reader.receive_data(frame(1, b"hi") + frame(9, b"ping"))
    reader.take_control()
    reader.receive_data(frame(opcode, bytes(100_000)) + frame(opcode, bytes(100_000), fin=False))
    assert reader.take_control() == b""
    assert reader.close is None
    assert reader.error is not None
    assert reader.error[0] == 1003, "what was wrong first"


def test_nothing_counts_behind_a_close() -> None:
    reader = FrameReader(masked=True)
    data = frame(8, (1001).to_bytes(2, "big") + b"geht") + frame(2, b"late")
    assert reader.receive_data(data) == b""
    assert reader.receive_data(frame(2, b"later")) == b""
    assert reader.close == (CloseReason.GOING_AWAY, "geht")
    assert reader.error is None


def test_a_close_without_a_code_is_1005() -> None:
    reader = FrameReader(masked=True)
    reader.receive_data(frame(8))
    assert reader.close == (1005, "")


@pytest.mark.parametrize(
    "raw",
    [
        frame(2, bytes(60_000)),
        frame(2, b"x", fin=False) + frame(0, b"x", fin=False) * 6_000 + frame(0),
        frame(0x9, bytes(125)) * 400,
        (frame(0x9, b"x") + frame(0xA)) * 4_000,
        frame(1, bytes(60_000)),
        frame(8, (1000).to_bytes(2, "big") + bytes(123)),
    ],
    ids=["one long frame", "many short ones", "long pings", "short controls", "text", "a close"],
)
def test_frames_in_single_bytes_cost_as_much_as_in_one_piece(raw: bytes) -> None:
    """Counted in bytes looked at or copied, so that no machine is too slow for it."""
    steps = []
    for size in (1, 1_000, len(raw)):
        reader = FrameReader(masked=True)
        for at in range(0, len(raw), size):
            reader.receive_data(raw[at : at + size])
        steps.append(reader.steps)
    assert steps == [steps[-1]] * 3
    assert steps[-1] <= 3 * len(raw)


@pytest.mark.parametrize("size", range(20))
def test_masking_works_at_every_length_and_cut(size: int) -> None:
    payload = bytes(range(size))
    data = frame(2, payload)
    for cut in range(len(data) + 1):
        reader = FrameReader(masked=True)
        assert reader.receive_data(data[:cut]) + reader.receive_data(data[cut:]) == payload


@pytest.mark.parametrize("mask", [b"", b"123", b"12345"])
def test_a_mask_has_four_bytes(mask: bytes) -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        encode_binary(b"x", mask)
    with pytest.raises(ValueError, match="4 bytes"):
        apply_mask(b"x", mask)


def test_random_bytes_are_read_or_refused() -> None:
    dice = random.Random(6455)
    for _ in range(2_000):
        reader = FrameReader(masked=dice.random() < 0.5)
        for _ in range(5):
            given_bytes = dice.randbytes(dice.randrange(60))
            assert len(reader.receive_data(given_bytes)) <= len(given_bytes)
            assert len(reader.take_control()) <= 3 * 131
