"""Any bytes from a WebSocket peer give the payload of its binary messages, or one documented error.

The payload, the control frames and the verdict are the same as those of a reader in plain Python,
however the bytes are cut, and what our own writer writes comes out as it went in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from support.fuzz_input import FuzzInput
from tunnelmux.pump.websocket import FrameReader, apply_mask, encode_binary

FILLER = bytes(range(251)) * 300


@dataclass
class Seen:
    """What a peer's bytes amount to."""

    payload: bytes = b""
    controls: dict[int, bytes] = field(default_factory=dict)
    """By the place where each ends."""
    closing: bytes = b""
    error: int | None = None
    close: int | None = None
    in_message: bool = False


def read_plainly(raw: bytes, *, masked: bool) -> Seen:
    """RFC 6455 section 5.2, one frame after another."""
    seen = Seen()
    at, text = 0, False
    while len(raw) >= at + 2:
        first, second = raw[at], raw[at + 1]
        opcode, fin, size = first & 15, bool(first & 128), second & 127
        control = opcode >= 8
        wrong = (
            first & 0x70
            or bool(second & 128) != masked
            or opcode > 10
            or 2 < opcode < 8
            or (control and (not fin or size > 125))
            or (not control and (opcode == 0) != seen.in_message)
        )
        if wrong:
            seen.error = seen.error or 1002
            break
        if not control:
            seen.in_message = not fin
            text = opcode == 1 or (text and opcode == 0)
            if text and seen.error is None:
                seen.error = 1003
        head = 2 + {126: 2, 127: 8}.get(size, 0) + 4 * masked
        if len(raw) < at + head:
            break
        if size > 125:
            size = int.from_bytes(raw[at + 2 : at + head - 4 * masked], "big")
            if size < (126 if head < 10 else 65_536) or size >> 63:
                seen.error = seen.error or 1002
                break
        mask = raw[at + head - 4 : at + head] if masked else bytes(4)
        body = raw[at + head : at + head + size]
        whole_mask = (mask * (len(body) // 4 + 1))[: len(body)]
        mixed = int.from_bytes(body, "big") ^ int.from_bytes(whole_mask, "big")
        plain = mixed.to_bytes(len(body), "big")
        if not control and seen.error is None:
            seen.payload += plain
        if len(body) < size:
            break
        if opcode == 8:
            seen.closing = raw[at : at + head + size]
        elif control:
            seen.controls[at + head + size] = raw[at : at + head + size]
        at += head + size
        if opcode == 8 and size == 1:
            seen.error = seen.error or 1002
            break
        if opcode == 8:
            seen.close = int.from_bytes(plain[:2], "big") if size else 1005
            break
    return seen


def one_input(data: bytes) -> None:
    """What the fuzzer calls, and `test_corpus.py` with what the fuzzer kept."""
    given = FuzzInput(data)
    kind = given.number()
    masked = bool(kind & 1)
    cut = (1 << 20, 1, 3, 1_000)[kind >> 1 & 3]
    raw = b""
    while given.left and len(raw) < 200_000:
        what = given.number()
        if what < 8:  # a message of ours, then the peer's own bytes again
            payload = FILLER[: given.number(2)] * (1 + what % 2)
            raw += encode_binary(payload, given.take(4).ljust(4, b"\0") if masked else None)
        elif what < 16:
            raw += FILLER[: given.number(2)]
        else:
            raw += given.take(what - 15)
    wanted = read_plainly(raw, masked=masked)
    reader = FrameReader(masked=masked)
    payload = control = latest = b""
    cut = max(cut, len(raw) // 1_000)
    for at in range(0, len(raw), cut):
        payload += reader.receive_data(raw[at : at + cut])
        control += reader.take_control()
        ended = {c[0]: c for end, c in wanted.controls.items() if at < end <= at + cut}
        latest += ended.get(0x89, b"") + ended.get(0x8A, b"")
    assert payload == wanted.payload
    assert reader.steps <= 3 * len(raw)
    assert control == latest + wanted.closing
    assert (reader.error and reader.error[0]) == wanted.error
    assert (reader.close and reader.close[0]) == wanted.close
    if wanted.error is None and wanted.close is None:
        assert reader.in_message == wanted.in_message
    mask = raw[:4].ljust(4, b"\0")
    assert apply_mask(apply_mask(payload, mask), mask) == payload
