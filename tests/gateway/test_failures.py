"""Failed log-ins, counted by address."""

from __future__ import annotations

import trio
import trio.testing

from tunnelmux.gateway.failures import Failures


async def test_an_address_waits_until_its_failures_are_old(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures = Failures(3, 600.0)
    for _ in range(3):
        assert not failures.are_too_many("192.0.2.1")
        failures.count("192.0.2.1")
        await trio.sleep(10)
    assert failures.are_too_many("192.0.2.1")
    assert not failures.are_too_many("192.0.2.2")
    await trio.sleep(569)
    assert failures.are_too_many("192.0.2.1")
    await trio.sleep(2)
    assert not failures.are_too_many("192.0.2.1")
    failures.count("192.0.2.1")
    assert failures.are_too_many("192.0.2.1")  # three within 600 s again


async def test_a_network_of_ipv6_counts_as_one_and_a_good_login_forgives() -> None:
    failures = Failures(2, 600.0)
    failures.count("2001:db8::1")
    failures.count("2001:db8::2")
    assert failures.are_too_many("2001:db8::3")
    assert not failures.are_too_many("2001:db8:0:1::3")
    failures.forgive("2001:db8::4")
    assert not failures.are_too_many("2001:db8::1")


async def test_what_is_remembered_is_bounded() -> None:
    failures = Failures(1, 600.0)
    for number in range(10_500):
        failures.count(f"10.{number // 256 % 256}.{number % 256}.1")
    assert not failures.are_too_many("10.0.0.1")
    assert failures.are_too_many("10.41.3.1")


async def test_where_a_person_logged_in_lately_a_neighbours_failures_cost_no_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures = Failures(2, 600.0)
    failures.forgive("192.0.2.1")
    for _ in range(1000):
        failures.count("192.0.2.1")
    assert not failures.are_too_many("192.0.2.1")
    await trio.sleep(86_400)
    failures.count("192.0.2.1")
    failures.count("192.0.2.1")
    assert failures.are_too_many("192.0.2.1")
    for number in range(10_500):
        failures.forgive(f"10.{number // 256 % 256}.{number % 256}.1")
    assert len(failures._good) <= 10_000
