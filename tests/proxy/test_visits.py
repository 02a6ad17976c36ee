"""Visits: what is known of them, their times, and their end when their device may not go on."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.visitors.visit import PATIENCE, Visit, VisitRegister


def begin(visits: VisitRegister, device: str = "dev1", visitor: str = "192.0.2.1:1") -> Visit:
    return visits.begin("tcp", device=device, service="ssh", visitor=visitor)


async def test_visits_are_found_by_device_and_by_id_until_they_end() -> None:
    visits = VisitRegister()
    first, second, other = begin(visits), begin(visits), begin(visits, "dev2")
    assert visits.of_device("dev1") == [first, second]
    assert visits.find(second.id) is second
    assert VisitRegister().find(second.id) is None
    with first:
        assert len(visits) == 3
    first.end()
    assert list(visits) == [second, other]
    assert visits.find(first.id) is None


async def test_cutting_a_device_cuts_its_visits_once_and_no_others() -> None:
    visits = VisitRegister()
    cut: list[str] = []
    for number, device in enumerate(("dev1", "dev2", "dev1")):
        visit = begin(visits, device)
        visit.on_cut = lambda n=number: cut.append(f"{n}")  # type: ignore[misc]
    assert visits.cut_device("dev1", "it was removed") == 2
    assert visits.cut_device("dev1", "again") == 2
    assert cut == ["0", "2"]
    assert [visit.cut_reason for visit in visits.of_device("dev1")] == ["it was removed"] * 2


async def test_the_visits_of_one_address_are_counted_for_each_device() -> None:
    visits = VisitRegister()
    begin(visits, visitor="[2001:db8::1]:1")
    visit = begin(visits, visitor="[2001:db8::2:2]:1")
    begin(visits, "dev2", visitor="[2001:db8::1]:1")
    visits.begin("raw", device="dev1", service=None, visitor="[2001:db8::3]:1")
    assert visits.crowd("dev1", "[2001:db8::9]:7", 9) == 2
    visit.end()
    assert visits.crowd("dev1", "[2001:db8::9]:7", 9) == 1
    assert visits.crowd("dev1", "[2001:db8:0:1::9]:7", 9) == 0


async def test_a_visit_that_waits_too_long_is_told_once_and_only_then(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    visits, limits = VisitRegister(), IngressLimits(connect_timeout=10, response_timeout=60)
    nursery.start_soon(visits.run)
    late: list[tuple[str, float]] = []
    begun = trio.current_time()

    def watched(name: str) -> Visit:
        visit = begin(visits)
        visit.on_late = lambda: late.append((name, trio.current_time() - begun))
        return visit

    watched("answer").wait_for("answer", limits)
    watched("connect").wait_for("connect", limits)
    content = watched("content with what came")
    content.wait_for("connect", limits)
    content.wait_for("nothing", limits)
    with watched("over") as over:
        over.wait_for("connect", limits)
    prolonged = watched("prolonged")
    prolonged.wait_for("connect", limits)
    await trio.sleep(5)
    prolonged.wait_for("connect", limits)
    await trio.sleep(1000)
    assert late == [
        ("connect", PATIENCE["connect"](limits)),
        ("prolonged", 5 + PATIENCE["connect"](limits)),
        ("answer", PATIENCE["answer"](limits)),
    ]


async def test_times_of_visits_that_are_over_do_not_pile_up(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    visits, limits = VisitRegister(), IngressLimits()
    nursery.start_soon(visits.run)
    for _ in range(20_000):
        with begin(visits) as visit:
            visit.wait_for("connect", limits)
    assert visits.times_kept < 2_000


async def test_a_bug_met_by_one_visit_leaves_the_others_alone(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    visits, limits = VisitRegister(), IngressLimits()
    nursery.start_soon(visits.run)
    told = trio.Event()

    def fail() -> None:
        raise RuntimeError("a bug")

    for call in (fail, told.set):
        visit = begin(visits)
        visit.on_late = call
        visit.wait_for("connect", limits)
    with trio.fail_after(100):
        await told.wait()


def test_all_waits_have_a_time_or_a_reason() -> None:
    limits = IngressLimits()
    seconds = {what: patience(limits) for what, patience in PATIENCE.items()}
    assert seconds.pop("nothing") == seconds.pop("answering") == float("inf")
    assert seconds == {
        "device": pytest.approx(15),
        "connect": pytest.approx(15),
        "answer": pytest.approx(75),
        "handshake": pytest.approx(10),
        "silent": pytest.approx(10),
        "agreeing": pytest.approx(10),
        "idle": pytest.approx(75),
        "reading": pytest.approx(10),
        "sending": pytest.approx(60),
        "waiting": pytest.approx(60),
        "leaving": pytest.approx(5),
    }
