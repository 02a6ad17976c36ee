"""The frame codec and the two windows. The U case 1 of the conformance plan is here."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmux import _frame
from tunnelmux._frame import Header, ReceiveWindow, SendWindow, decode_header, encode_header
from tunnelmux.limits import INITIAL_WINDOW

LARGEST = 2**32 - 1
FRAME = 16_384


def test_the_modules_are_compiled() -> None:
    """A build that silently left an extension out must not pass as a slow success."""
    from tunnelmux.yamux import engine

    for module in (_frame, engine):
        assert module.__file__ is not None
        assert not module.__file__.endswith((".py", ".pyc"))


def test_the_numbers_of_the_specification() -> None:
    types = (
        _frame.TYPE_DATA,
        _frame.TYPE_WINDOW_UPDATE,
        _frame.TYPE_PING,
        _frame.TYPE_GO_AWAY,
    )
    flags = (_frame.FLAG_SYN, _frame.FLAG_ACK, _frame.FLAG_FIN, _frame.FLAG_RST)
    codes = (
        _frame.GO_AWAY_NORMAL,
        _frame.GO_AWAY_PROTOCOL_ERROR,
        _frame.GO_AWAY_INTERNAL_ERROR,
    )
    assert types == (0, 1, 2, 3)
    assert flags == (1, 2, 4, 8)
    assert codes == (0, 1, 2)
    assert (_frame.HEADER_SIZE, _frame.PROTOCOL_VERSION, INITIAL_WINDOW) == (12, 0, 256 * 1024)


# -- codec ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", range(4), ids=lambda type_: f"type-{type_}")
def test_encode_and_decode_are_inverse(type_: int) -> None:
    edges = (0, 1, 2**31, LARGEST)
    for flags, stream_id, length in itertools.product(range(16), edges, edges):
        encoded = encode_header(type_, flags, stream_id, length)
        assert encoded == struct.pack(">BBHII", 0, type_, flags, stream_id, length)
        assert decode_header(encoded) == (0, type_, flags, stream_id, length)


@given(st.binary(min_size=12, max_size=40))
def test_decode_takes_any_twelve_bytes_unchecked(data: bytes) -> None:
    header = decode_header(data)
    assert header == struct.unpack_from(">BBHII", data)
    assert isinstance(header, Header)
    assert header._fields == ("version", "type", "flags", "stream_id", "length")


@pytest.mark.parametrize("size", range(12))
def test_decode_of_too_little(size: int) -> None:
    with pytest.raises(ValueError, match="12"):
        decode_header(bytes(size))


@pytest.mark.parametrize(
    "fields",
    [
        (256, 0, 0, 0),
        (0, 65_536, 0, 0),
        (0, 0, 2**32, 0),
        (0, 0, 0, 2**32),
        (-1, 0, 0, 0),
        (0, -1, 0, 0),
        (0, 0, -1, 0),
        (0, 0, 0, -1),
    ],
    ids=str,
)
def test_encode_of_what_does_not_fit(fields: tuple[int, int, int, int]) -> None:
    with pytest.raises(OverflowError):
        encode_header(*fields)


def test_encode_of_the_largest_fields() -> None:
    assert encode_header(255, 65_535, LARGEST, LARGEST) == b"\0" + b"\xff" * 11


# -- the send window -----------------------------------------------------------------------------


def test_send_window_starts_with_the_initial_window() -> None:
    assert SendWindow().credit == INITIAL_WINDOW
    assert SendWindow(7).credit == 7


def test_send_window_spends_what_it_has_and_no_more() -> None:
    window = SendWindow(10)
    window.spend(4)
    window.spend(6)
    window.spend(0)
    assert window.credit == 0
    with pytest.raises(ValueError):
        window.spend(1)
    assert window.credit == 0


def test_send_window_cannot_spend_less_than_nothing() -> None:
    window = SendWindow(10)
    with pytest.raises(ValueError):
        window.spend(-1)
    assert window.credit == 10


def test_send_window_grows_to_the_largest_number_and_no_further() -> None:
    window = SendWindow(1)
    assert window.grant(LARGEST - 1)
    assert window.credit == LARGEST
    assert not window.grant(1)
    assert not window.grant(LARGEST)
    assert window.credit == LARGEST
    assert window.grant(0)


@pytest.mark.parametrize("call", [SendWindow().grant, SendWindow, ReceiveWindow().resize])
@pytest.mark.parametrize("number", [-1, 2**32])
def test_window_numbers_are_unsigned_32_bits(call: Callable[[int], object], number: int) -> None:
    with pytest.raises(OverflowError):
        call(number)


@given(st.integers(0, LARGEST), st.lists(st.integers(-(2**20), LARGEST)))
def test_send_window_credit_is_never_negative(start: int, steps: list[int]) -> None:
    window, expected = SendWindow(start), start
    for step in steps:
        if step < 0:
            if -step <= expected:
                window.spend(-step)
                expected += step
            else:
                with pytest.raises(ValueError):
                    window.spend(-step)
        elif window.grant(step):
            expected += step
        else:
            assert expected + step > LARGEST
        assert window.credit == expected
        assert 0 <= window.credit <= LARGEST


# -- the receive window --------------------------------------------------------------------------


def test_receive_window_starts_full() -> None:
    window = ReceiveWindow()
    assert (window.target, window.credit, window.unread) == (INITIAL_WINDOW, INITIAL_WINDOW, 0)
    assert not window.update_due()
    assert window.take_update() == 0


def test_receive_window_accepts_up_to_its_credit() -> None:
    window = ReceiveWindow(100, 100)
    assert window.accept(60)
    assert (window.credit, window.unread) == (40, 60)
    assert not window.accept(41)
    assert (window.credit, window.unread) == (40, 60)
    assert window.accept(40)
    assert window.accept(0)
    assert (window.credit, window.unread) == (0, 100)
    assert not window.accept(1)


def test_receive_window_consumes_what_is_unread_and_no_more() -> None:
    window = ReceiveWindow()
    window.accept(10)
    window.consume(4)
    assert window.unread == 6
    for size in (7, -1):
        with pytest.raises(ValueError):
            window.consume(size)
    assert window.unread == 6
    assert window.credit == INITIAL_WINDOW - 10


def test_an_update_is_due_at_half_the_target() -> None:
    window = ReceiveWindow()
    window.accept(INITIAL_WINDOW - FRAME)
    window.consume(INITIAL_WINDOW // 2 - 1)
    assert not window.update_due()
    window.consume(1)
    assert window.update_due()
    assert window.take_update() == INITIAL_WINDOW // 2
    assert window.credit == FRAME + INITIAL_WINDOW // 2
    assert not window.update_due()
    assert window.take_update() == 0


def test_an_update_is_due_when_less_than_a_frame_is_left_and_a_frame_can_be_given() -> None:
    window = ReceiveWindow()
    window.accept(INITIAL_WINDOW - FRAME)
    window.consume(FRAME)
    assert not window.update_due(), "a whole frame of credit is left"
    window.accept(1)
    assert window.update_due()
    window = ReceiveWindow()
    window.accept(INITIAL_WINDOW)
    window.consume(FRAME - 1)
    assert not window.update_due(), "less than a frame could be given"
    window.consume(1)
    assert window.update_due()
    assert window.take_update() == FRAME


def test_unread_bytes_hold_credit_back() -> None:
    window = ReceiveWindow()
    window.accept(INITIAL_WINDOW)
    assert not window.update_due()
    assert window.take_update() == 0
    assert window.credit == 0


def test_a_larger_target_is_announced() -> None:
    window = ReceiveWindow()
    window.resize(2 * INITIAL_WINDOW)
    assert window.target == 2 * INITIAL_WINDOW
    assert window.update_due()
    assert window.take_update() == INITIAL_WINDOW
    assert window.credit == 2 * INITIAL_WINDOW


def test_a_smaller_target_withholds_and_takes_nothing_back() -> None:
    window = ReceiveWindow()
    window.resize(INITIAL_WINDOW // 4)
    assert window.credit == INITIAL_WINDOW
    assert not window.update_due()
    assert window.take_update() == 0
    window.accept(INITIAL_WINDOW)
    window.consume(INITIAL_WINDOW)
    assert window.take_update() == INITIAL_WINDOW // 4


window_steps = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), st.integers(0, 2 * INITIAL_WINDOW)),
        st.tuples(st.just("consume"), st.integers(0, INITIAL_WINDOW)),
        st.tuples(st.just("resize"), st.integers(0, 4 * INITIAL_WINDOW)),
        st.tuples(st.just("update"), st.just(0)),
    )
)


@given(window_steps)
def test_receive_window_gives_no_more_than_was_consumed_and_wanted(
    steps: list[tuple[str, int]],
) -> None:
    window, largest_target = ReceiveWindow(), INITIAL_WINDOW
    granted, accepted, consumed = INITIAL_WINDOW, 0, 0
    for step, size in steps:
        if step == "accept":
            assert window.accept(size) == (size <= granted - accepted)
            accepted += size if size <= granted - accepted else 0
        elif step == "consume" and size <= accepted - consumed:
            window.consume(size)
            consumed += size
        elif step == "resize":
            window.resize(size)
            largest_target = max(largest_target, size)
        elif step == "update":
            due = window.update_due()
            delta = window.take_update()
            assert delta >= 0 and (delta > 0 or not due)
            granted += delta
        assert window.credit == granted - accepted >= 0
        assert window.unread == accepted - consumed >= 0
        assert window.credit + window.unread <= largest_target
