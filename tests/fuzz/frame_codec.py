"""Any header, window arithmetic and ring operation gives what plain integers and bytes would give.

What does not fit is refused with the documented error and changes nothing: OverflowError for a
field, ValueError for too few bytes, credit or unread bytes, False for a window that would pass its
end.
"""

from __future__ import annotations

import contextlib
import struct

from support.fuzz_input import FuzzInput
from tunnelmux._frame import ReceiveWindow, SendWindow, decode_header, encode_header
from tunnelmux.yamux.ring import ByteRing

UINT32_MAX = 2**32 - 1


def one_input(data: bytes) -> None:
    """What the fuzzer calls, and `test_corpus.py` with what the fuzzer kept."""
    given = FuzzInput(data)
    part = given.choice((header, send_window, receive_window, ring))
    part(given)


def header(given: FuzzInput) -> None:
    raw = given.take(given.number() % 20)
    try:
        seen = decode_header(raw)
    except ValueError:
        assert len(raw) < 12
    else:
        assert seen == struct.unpack(">BBHII", raw[:12])
        if seen.version == 0:
            assert encode_header(*seen[1:]) == raw[:12]
    fields = [given.number(size) for size in (2, 3, 5, 5)]
    try:
        made = encode_header(*fields)
    except OverflowError:
        assert any(f >> bits for f, bits in zip(fields, (8, 16, 32, 32), strict=True))
    else:
        assert made == struct.pack(">BBHII", 0, *fields)
        assert decode_header(made)[1:] == tuple(fields)


def send_window(given: FuzzInput) -> None:
    credit = given.number(4)
    window = SendWindow(credit)
    while given.left:
        if given.number() & 1:
            delta = given.number(4)
            assert window.grant(delta) == (credit + delta <= UINT32_MAX)
            if credit + delta <= UINT32_MAX:
                credit += delta
        else:
            size = given.number(4)
            try:
                window.spend(size)
            except ValueError:
                assert size > credit
            else:
                credit -= size
        assert window.credit == credit >= 0


def receive_window(given: FuzzInput) -> None:
    """The peer is never believed to have more credit than was announced to it."""
    target = given.number(4) & 0x7FFFFFFF
    credit = given.number(4) & 0x7FFFFFFF
    unread = 0
    window = ReceiveWindow(target, credit)
    while given.left:
        act = given.number() % 4
        if act == 0:
            size = given.number(4)
            fits = size <= credit
            if unread + size > UINT32_MAX:
                return  # the engine's targets stay under 2**31: unread cannot come here
            assert window.accept(size) == fits
            if fits:
                credit, unread = credit - size, unread + size
        elif act == 1:
            size = given.number(4)
            with contextlib.suppress(ValueError):
                window.consume(size)
                assert size <= unread
                unread -= size
        elif act == 2:
            room = max(target - credit - unread, 0)
            due = window.update_due()
            assert due <= (room > 0)
            delta = window.take_update()
            assert delta == room
            credit += delta
        else:
            target = given.number(4) & 0x7FFFFFFF
            window.resize(target)
        assert (window.target, window.credit, window.unread) == (target, credit, unread)


def ring(given: FuzzInput) -> None:
    held = bytearray()
    most = 0
    ring = ByteRing()
    while given.left:
        act = given.number()
        if act < 120:
            piece = bytes([act]) * given.choice((0, 1, 63, 64, 65, 1_000, 4_096, 5_000, 70_000))
            ring.write(piece)
            held += piece
        elif act < 240:
            size = given.choice((0, 1, 63, 64, 65, 999, 4_096, 100_000))
            assert ring.read(size) == held[:size]
            del held[:size]
        elif act < 250:
            piece = given.take(act - 239)
            ring.write(memoryview(piece))
            held += piece
        else:
            ring.clear()
            held.clear()
        if len(held) > 400_000:
            return
        most = max(most, len(held)) if held else 0
        assert len(ring) == len(held)
        assert ring.capacity <= max(2 * most, 64)
    assert ring.read(len(held) + 1) == held
