"""Which records of TLS bring no data, and when a peer has sent too many."""

from __future__ import annotations

import ssl
from typing import cast

import pytest

from tunnelmux.pump.tls_records import RecordWatch, watch_for

MOST = 1_024
DATA = 4_096


class Tls:
    """Stands for a TLS library that says which version it speaks, None until it knows."""

    def __init__(self, version: str | None) -> None:
        self.said = version

    def version(self) -> str | None:
        return self.said


def record(size: int = 20, kind: int = 23) -> bytes:
    return bytes([kind, 3, 3]) + size.to_bytes(2, "big") + bytes(size)


def opened(version: str = "TLSv1.3") -> tuple[RecordWatch, ssl.SSLObject]:
    """A watch after the handshake."""
    made = Tls(None)
    tls = cast("ssl.SSLObject", made)
    watch = watch_for(tls)
    watch.add(record(500, kind=22))
    made.said = version
    assert watch.judge(tls)
    return watch, tls


def test_records_without_data_are_counted() -> None:
    watch, tls = opened()
    watch.add(record() * MOST)
    assert watch.judge(tls)
    watch.add(record())
    assert not watch.judge(tls)
    assert watch.is_over


def test_once_over_it_stays_so() -> None:
    watch, tls = opened()
    watch.add(record() * (MOST + 1))
    assert not watch.judge(tls)
    watch.add_data(100 * DATA)
    assert not watch.judge(tls)


@pytest.mark.parametrize("size", [1, 4, 5, 6, 333])
def test_records_come_in_pieces(size: int) -> None:
    watch, tls = opened()
    sent = record(0) + record(1) + record(300) * (MOST - 1)
    for at in range(0, len(sent), size):
        assert watch.judge(tls)
        watch.add(sent[at : at + size])
    assert not watch.judge(tls)


def test_records_with_data_are_not() -> None:
    watch, tls = opened()
    for _ in range(3 * MOST):
        watch.add(record(10_000))  # padded
        watch.add_data(1)
        assert watch.judge(tls)


def test_a_record_that_is_read_in_parts_is_one() -> None:
    watch, tls = opened()
    for _ in range(MOST + 1):
        watch.add(record() * 2)
        watch.add_data(1)
        watch.add_data(1, is_new=False)
        is_good = watch.judge(tls)
    assert not is_good


def test_data_makes_up_for_some() -> None:
    watch, tls = opened()
    for _ in range(3 * MOST):
        watch.add(record() * 2)
        watch.add_data(DATA)
        assert watch.judge(tls)


def test_much_data_is_no_stock_for_later() -> None:
    watch, tls = opened()
    watch.add(record() * 100)
    watch.add_data(10_000 * DATA)
    assert watch.judge(tls)
    watch.add(record() * (MOST + 100))
    assert not watch.judge(tls)


@pytest.mark.parametrize(("version", "is_good"), [("TLSv1.2", True), ("TLSv1.3", False)])
def test_older_versions_put_an_empty_record_before_each(version: str, is_good: bool) -> None:
    watch, tls = opened(version)
    for _ in range(MOST + 1):
        watch.add(record() * 2)
        watch.add_data(1)
    assert watch.judge(tls) == is_good


def test_a_handshake_may_have_long_certificates_and_no_end() -> None:
    tls = Tls(None)
    watch = watch_for(cast("ssl.SSLObject", tls))
    for _ in range(16):
        watch.add(record(16_379, kind=22))
    assert watch.judge(cast("ssl.SSLObject", tls))
    watch.add(record(1, kind=22))
    assert not watch.judge(cast("ssl.SSLObject", tls))


def test_records_of_a_handshake_are_none_without_data() -> None:
    tls = Tls(None)
    watch = watch_for(cast("ssl.SSLObject", tls))
    for _ in range(MOST + 1):
        watch.add(record(1, kind=22))
        assert watch.judge(cast("ssl.SSLObject", tls))
    tls.said = "TLSv1.3"
    assert watch.judge(cast("ssl.SSLObject", tls))
    watch.add(record() * MOST)
    assert watch.judge(cast("ssl.SSLObject", tls))


def test_what_cannot_be_counted_is_not_read_on() -> None:
    """A hello of SSL 2, with which a client of TLS 1.2 may begin."""
    tls = Tls(None)
    watch = watch_for(cast("ssl.SSLObject", tls))
    watch.add(b"\x80\x2e\x01\x03\x03")
    assert watch.judge(cast("ssl.SSLObject", tls))
    tls.said = "TLSv1.2"
    assert not watch.judge(cast("ssl.SSLObject", tls))


def test_who_takes_a_connection_over_goes_on_counting() -> None:
    watch, tls = opened()
    assert watch_for(tls) is watch
