"""Which device of a group a visitor gets."""

from __future__ import annotations

from collections import Counter

import trio
from trio.testing import MockClock

from tunnelmux.config.groups import GroupConfig
from tunnelmux.proxy.visitors.groups import (
    FAILED_FOR,
    MOST_FAILURES,
    Group,
    Groups,
    Wish,
)

DEVICES = ["a", "b", "c", "d"]
ANYONE = Wish("192.0.2.1")


def groups_of(busy: dict[str, int], **settings: str) -> tuple[Groups, Group]:
    groups = Groups(lambda device: busy.get(device, 0))
    config = GroupConfig(name="shop", devices=DEVICES, **settings)  # type: ignore[arg-type]
    groups.configure([config])
    group = groups.find("shop")
    assert group is not None
    return groups, group


async def test_the_device_with_the_fewest_visits_is_chosen() -> None:
    groups, group = groups_of({"a": 2, "b": 1, "c": 2, "d": 9})
    assert [groups.choose(group, None, DEVICES, ANYONE) for _ in range(5)] == ["b"] * 5
    assert groups.choose(group, None, ["a", "d"], ANYONE) == "a"


async def test_idle_devices_share_visitors_however_often_each_is_placed() -> None:
    """A visitor may be placed twice until it is served, and only the last time counts."""
    for times in (1, 2, 3):
        groups, group = groups_of({})
        got: Counter[str] = Counter()
        for _ in range(400):
            placed = [groups.choose(group, None, DEVICES[:2], ANYONE) for _ in range(times)]
            got[placed[-1]] += 1
        assert min(got[name] for name in DEVICES[:2]) > 100  # of 200: by chance once in 10^23


async def test_a_connection_stays_until_another_device_is_less_busy() -> None:
    busy = {"a": 3, "b": 2, "c": 2, "d": 2}  # its own visit is one of those at a
    groups, group = groups_of(busy)
    here = Wish("192.0.2.1", present="a")
    assert {groups.choose(group, None, DEVICES, here) for _ in range(8)} == {"a"}
    busy["c"] = 1
    assert groups.choose(group, None, DEVICES, here) == "c"


async def test_a_device_that_failed_is_passed_over_for_a_while(autojump_clock: MockClock) -> None:
    groups, group = groups_of({"b": 1, "c": 1, "d": 1})
    groups.failed("a", "web")
    for _ in range(3):
        assert groups.choose(group, "web", DEVICES, ANYONE) != "a"
    assert groups.choose(group, "ssh", DEVICES, ANYONE) == "a", "another service of it is well"
    assert groups.choose(group, "web", ["a"], ANYONE) == "a", "the only one is asked all the same"
    await trio.sleep(FAILED_FOR)
    assert groups.choose(group, "web", DEVICES, ANYONE) == "a"


async def test_failures_of_other_devices_are_not_kept() -> None:
    groups, _ = groups_of({})
    for number in range(1000):
        groups.failed(f"device-{number}", None)
    assert not len(groups._failed)


async def test_services_that_visitors_invent_are_no_more_than_a_bound() -> None:
    """And do not make the proxy forget which device failed."""
    groups, group = groups_of({"b": 1, "c": 1, "d": 1})
    groups.failed("a", "web", "target-down")
    for number in range(5 * MOST_FAILURES):
        groups.failed("b", f"invented-{number}", "unknown-service")
    assert len(groups._unknown) == MOST_FAILURES
    assert groups.choose(group, "web", DEVICES, ANYONE) != "a"
    for number in range(5 * MOST_FAILURES):
        groups.failed("b", f"service-{number}", "target-down")
    assert len(groups._failed) == MOST_FAILURES


async def test_where_a_device_is_missing_only_its_visitors_go_elsewhere() -> None:
    groups, group = groups_of({}, sticky="address")
    wishes = [Wish(f"192.0.2.{number}") for number in range(200)]
    before = [groups.choose(group, None, DEVICES, wish) for wish in wishes]
    spread = Counter(before)
    assert min(spread[device] for device in DEVICES) >= 30, spread
    after = [groups.choose(group, None, ["a", "b", "d"], wish) for wish in wishes]
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"c"}
    assert len(moved) == spread["c"]


async def test_a_cookie_of_another_group_means_nothing() -> None:
    groups, group = groups_of({"a": 1}, sticky="cookie")
    other = Group(GroupConfig(name="other", devices=DEVICES))
    pair = other.cookie_for("a", is_secure=True).partition(b";")[0]
    assert groups.choose(group, None, DEVICES, Wish("192.0.2.1", pair)) != "a"
    pair = group.cookie_for("a", is_secure=True).partition(b";")[0]
    assert groups.choose(group, None, DEVICES, Wish("192.0.2.1", pair)) == "a"
    assert pair.startswith(b"__Host-tunnelmux-member=")


def test_a_cookie_over_tls_is_for_tls_only() -> None:
    group = Group(GroupConfig(name="shop", devices=DEVICES, sticky="cookie"))
    secure = group.cookie_for("a", is_secure=True).split(b"; ")
    assert secure[1:] == [b"Path=/", b"HttpOnly", b"SameSite=Lax", b"Secure"]
    assert b"Secure" not in group.cookie_for("a", is_secure=False).split(b"; ")
