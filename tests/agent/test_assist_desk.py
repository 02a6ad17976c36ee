"""The device's switch and its leases, on a clock that the test moves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from tunnelmux.agent.assist import AssistDesk, LeaseOffer
from tunnelmux.agent.assist.clock import SteadyClock
from tunnelmux.agent.assist.diary import Diary, read_diary
from tunnelmux.agent.assist.memory import AssistMemory
from tunnelmux.agent.assist.offers import LeaseAnswer
from tunnelmux.config.assist import AssistConfig

HOUR = 3600.0
OFFER = LeaseOffer(
    id="00000000-0000-7000-8000-000000000001",
    who="Ada",
    reason="printer jams",
    services=("ssh",),
    rights=("shell", "exec"),
    seconds=HOUR,
)


@dataclass
class Machine:
    """A device with a state directory, whose agent and clocks a test restarts and sets."""

    folder: Path
    boot: str = "boot-1"
    steady: float = 1000.0
    wall: float = 1_795_000_000.0
    desks: list[AssistDesk] = field(default_factory=list)

    def start(self, mode: str = "ask", **more: Any) -> AssistDesk:
        """The agent, begun anew."""
        desk = AssistDesk(
            AssistConfig(mode=mode, **more),  # type: ignore[arg-type]
            ["ssh", "web"],
            lease_only=["ssh"],
            memory=AssistMemory(self.folder / "cam1.assist.state"),
            diary=Diary(self.folder / "cam1.assist.log"),
            clock=SteadyClock(lambda: self.steady, lambda: self.wall, lambda: self.boot),
        )
        self.desks.append(desk)
        return desk

    def pass_time(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += seconds
        self.desks[-1]._look()

    def reboot(self, seconds: float, *, wall_is_off_by: float = 0.0) -> None:
        self.boot = f"boot-{self.boot}"
        self.steady = 5.0
        self.wall += seconds + wall_is_off_by


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def events(desk: AssistDesk, kind: str) -> list[dict[str, Any]]:
    return [event for _, event in desk.events_after(0) if event["type"] == kind]


class Visitor:
    """A stream that notes when it was cut."""

    def __init__(self, desk: AssistDesk, service: str, lease_id: str | None) -> None:
        self.is_cut = False
        self.refused = desk.objection(service, lease_id)
        self._desk = desk
        if self.refused is None:
            self._visit = desk.enter(service, lease_id, self.cut)

    def cut(self) -> None:
        self.is_cut = True
        self._desk.leave(self._visit, 10, 20)


def test_off_refuses_everything_and_cannot_be_switched_on(machine: Machine) -> None:
    desk = machine.start("off")
    assert desk.offer(OFFER).state == "refused"
    assert "assist.mode" in (desk.turn_on(by="me") or "")
    assert desk.mode == "off"


def test_a_request_is_asked_about_and_agreed_to(machine: Machine) -> None:
    desk = machine.start()
    asked = []
    desk.on_ask = asked.append
    assert desk.offer(OFFER).state == "asked"
    assert desk.offer(OFFER).state == "asked"
    (question,) = asked
    assert (question.offer.who, question.offer.reason) == ("Ada", "printer jams")
    (shown,) = desk.status()["leases"]
    assert (shown["state"], shown["answer_within"]) == ("asked", 30.0)
    assert Visitor(desk, "ssh", OFFER.id).refused is not None
    assert desk.answer(OFFER.id, True, by="me") is None
    assert desk.answer(OFFER.id, False, by="me") is not None
    assert events(desk, "answer")[-1]["given"] is True
    assert Visitor(desk, "ssh", OFFER.id).refused is None
    assert "not about" in (Visitor(desk, "web", OFFER.id).refused or "")
    assert "over" in (Visitor(desk, "ssh", "another").refused or "")


def test_an_unanswered_request_is_refused_after_30_seconds_and_written_down(
    machine: Machine,
) -> None:
    desk = machine.start()
    desk.offer(OFFER)
    machine.pass_time(29.9)
    assert len(desk.leases) == 1
    machine.pass_time(0.2)
    assert desk.leases == []
    (answer,) = events(desk, "answer")
    assert (answer["given"], "no answer" in answer["reason"]) == (False, True)
    assert desk.offer(OFFER).state == "refused"
    told = read_diary(machine.folder / "cam1.assist.log", OFFER.id)
    assert [entry["what"] for entry in told] == ["asked", "refused"]


def test_a_lease_ends_at_its_second_with_all_that_goes_on_under_it(machine: Machine) -> None:
    desk = machine.start("allow")
    ended: list[str] = []
    desk.on_lease_end = ended.append
    assert desk.offer(OFFER).state == "given"
    named, loose = Visitor(desk, "ssh", OFFER.id), Visitor(desk, "ssh", None)
    machine.pass_time(HOUR - 0.1)
    assert not named.is_cut
    machine.pass_time(0.1)
    assert (named.is_cut, loose.is_cut) == (True, True)
    assert ended == [OFFER.id]
    assert "during a lease only" in (desk.objection("ssh", None) or "")
    assert desk.objection("web", None) is None
    assert desk.offer(OFFER).state == "refused"
    told = read_diary(machine.folder / "cam1.assist.log", OFFER.id)
    assert [entry["what"] for entry in told] == [
        "agreed",
        "connected",
        "ended",
        "disconnected",
    ] or [entry["what"] for entry in told] == ["agreed", "connected", "disconnected", "ended"]
    assert {"bytes_to_device": 10, "bytes_from_device": 20}.items() <= next(
        entry for entry in told if entry["what"] == "disconnected"
    ).items()


def test_one_lease_of_two_leaves_the_other_its_service(machine: Machine) -> None:
    desk = machine.start("allow")
    other = replace(OFFER, id=OFFER.id[:-1] + "2")
    desk.offer(OFFER)
    desk.offer(other)
    loose = Visitor(desk, "ssh", None)
    mine, theirs = Visitor(desk, "ssh", OFFER.id), Visitor(desk, "ssh", other.id)
    assert desk.withdraw(OFFER.id, "done") == 1
    assert (mine.is_cut, theirs.is_cut, loose.is_cut) == (True, False, False)
    assert desk.stop(other.id, by="me") is None
    assert (theirs.is_cut, loose.is_cut) == (True, True)


def test_off_ends_everything_at_once_and_refuses_until_on(machine: Machine) -> None:
    desk = machine.start("allow")
    desk.offer(OFFER)
    visitor = Visitor(desk, "ssh", OFFER.id)
    asked = replace(OFFER, id=OFFER.id[:-1] + "2")
    assert desk.turn_off(by="me") == 1
    assert visitor.is_cut
    assert events(desk, "end")[-1]["lease"] == OFFER.id
    assert "switched off" in desk.offer(asked).reason
    assert desk.turn_on(600, by="me") is None
    again = replace(OFFER, id=OFFER.id[:-1] + "3")
    assert desk.offer(again).state == "given"
    # The window ends, and what was let in by it.
    machine.pass_time(600)
    assert desk.leases == []
    assert desk.status()["switch"] == "unset"


def test_on_is_for_these_services_and_lets_in_what_waits(machine: Machine) -> None:
    desk = machine.start("ask")
    web = replace(OFFER, id=OFFER.id[:-1] + "2", services=("web",))
    desk.offer(OFFER)
    desk.offer(web)
    assert "no assistance with vnc" in (desk.turn_on(600, ["vnc"], by="me") or "")
    assert desk.turn_on(30, by="me") is not None
    assert desk.turn_on(3 * HOUR, by="me") is not None
    assert desk.turn_on(600, ["ssh"], by="me") is None
    states = {lease["id"]: lease["state"] for lease in desk.status()["leases"]}
    assert states == {OFFER.id: "running", web.id: "asked"}


@pytest.mark.parametrize(
    ("config", "offer", "words"),
    [
        ({"services": ["web"]}, {}, "no assistance with ssh"),
        ({}, {"services": ()}, "no assistance with nothing"),
        ({"longest": HOUR}, {"seconds": HOUR + 60}, "1 h at most"),
        ({"hours": "00:00-00:00"}, {}, "by its clock"),
    ],
)
def test_the_device_is_the_stricter_side(
    machine: Machine, config: dict[str, Any], offer: dict[str, Any], words: str
) -> None:
    desk = machine.start("allow", **config)
    answer = desk.offer(replace(OFFER, **offer))
    assert (answer.state, words in answer.reason) == ("refused", True)
    assert events(desk, "refused")


def test_an_extension_goes_as_far_as_the_device_takes(machine: Machine) -> None:
    desk = machine.start("allow", longest=2 * HOUR)
    desk.offer(OFFER)
    machine.pass_time(HOUR - 60)
    assert desk.offer(replace(OFFER, seconds=HOUR)).reason == ""
    assert desk.status()["leases"][0]["seconds_left"] == HOUR
    assert "in all" in desk.offer(replace(OFFER, seconds=1.9 * HOUR)).reason
    machine.pass_time(HOUR)
    assert desk.leases == []


def test_the_switch_and_the_leases_survive_a_restart_and_so_do_their_ends(
    machine: Machine,
) -> None:
    desk = machine.start("ask")
    desk.turn_on(HOUR, by="me")
    assert desk.offer(OFFER).state == "given"
    machine.pass_time(600)
    desk = machine.start("ask")
    assert desk.status()["seconds_left"] == HOUR - 600
    assert desk.offer(replace(OFFER, seconds=HOUR - 600)).state == "given"
    machine.pass_time(HOUR - 600)
    assert desk.leases == []
    off = machine.start("ask")
    off.turn_off(by="me")
    assert machine.start("ask").mode == "off"
    # An end that was told to nobody is told to whoever offers it again.
    assert (
        "switched off" in machine.start("ask").offer(replace(OFFER, id=OFFER.id[:-1] + "9")).reason
    )


@pytest.mark.parametrize("off_by", [0.0, -86_400.0, -1_795_000_000.0, 86_400.0])
def test_after_a_reboot_an_end_is_never_later_than_what_was_left(
    machine: Machine, off_by: float
) -> None:
    desk = machine.start("ask")
    desk.turn_on(HOUR, by="me")
    desk.offer(OFFER)
    machine.reboot(300, wall_is_off_by=off_by)
    desk = machine.start("ask")
    left = desk.status()["seconds_left"]
    if off_by > 0:
        assert (left, desk.leases) == (None, [])  # by that clock it is over
    else:
        assert left == (HOUR - 300 if off_by == 0 else HOUR)
        machine.pass_time(HOUR)
        assert desk.leases == []


@pytest.mark.parametrize("set_to", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_moves_no_end(machine: Machine, set_to: float) -> None:
    desk = machine.start("allow")
    desk.offer(OFFER)
    machine.wall += set_to
    machine.pass_time(HOUR - 1)
    assert len(desk.leases) == 1
    desk = machine.start("allow")
    assert len(desk.leases) == 1
    machine.pass_time(1)
    assert desk.leases == []


def test_a_damaged_file_is_taken_for_off(machine: Machine) -> None:
    machine.start("allow").turn_on(by="me")
    (machine.folder / "cam1.assist.state").write_bytes(b"{")
    assert machine.start("allow").mode == "off"


def test_a_configuration_that_takes_less_ends_what_it_would_not_take(machine: Machine) -> None:
    desk = machine.start("allow")
    desk.offer(OFFER)
    desk.configure(AssistConfig(mode="allow", services=["web"]), ["ssh", "web"], ["ssh"])
    assert desk.leases == []
    web = replace(OFFER, id=OFFER.id[:-1] + "2", services=("web",))
    assert desk.offer(web).state == "given"
    desk.configure(AssistConfig(mode="off"), ["ssh", "web"], ["ssh"])
    assert desk.leases == []


async def test_its_own_task_ends_what_is_over(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    desk = machine.start("allow")
    desk.clock.now = trio.current_time
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.run)
        desk.offer(replace(OFFER, seconds=60.5))
        began = trio.current_time()
        await desk.wait_after(desk.last_event)
        assert trio.current_time() - began == pytest.approx(60.5, abs=0.01)
        assert desk.leases == []
        nursery.cancel_scope.cancel()


def test_a_full_disk_ends_no_assistance() -> None:
    with capture_logs() as logs:
        full = Diary(Path("/dev/full"))
        full.write("agreed", {"lease": "x"})
        full.write("ended", {"lease": "x"})
    assert [log["event"] for log in logs] == ["assistance not written down"]


def offers(count: int, begin: int = 0, **changes: Any) -> list[LeaseOffer]:
    ids = (f"00000000-0000-7000-8000-{number:012d}" for number in range(begin, begin + count))
    return [replace(OFFER, id=lease_id, **changes) for lease_id in ids]


def test_a_proxy_that_offers_leases_without_end_fills_neither_memory_nor_disk(
    machine: Machine,
) -> None:
    """Each was held until its end, was written to the disk with all others, and ran the hook."""
    desk = machine.start(mode="allow")
    with capture_logs() as logs:
        states = [desk.offer(offer).state for offer in offers(1000)]
    assert (states.count("given"), len(desk.leases)) == (60, 60)
    assert len(logs) < 50
    assert (machine.folder / "cam1.assist.log").read_text().count("\n") == 60
    assert [desk.offer(offer).state for offer in offers(60)] == ["given"] * 60  # known ones

    machine.pass_time(300.0)
    states = [desk.offer(offer).state for offer in offers(10, begin=2000)]
    assert (states.count("given"), len(desk.leases)) == (4, 64)
    machine.pass_time(600.0)
    answer = desk.offer(offers(1, begin=3000)[0])
    assert answer == LeaseAnswer("refused", "the device has 64 leases already")


def test_a_device_sets_its_limits_of_leases_itself(machine: Machine) -> None:
    limits = {"max_leases": 3, "max_waiting_leases": 2, "max_new_leases": 4}
    desk = machine.start(mode="ask", **limits)
    assert [desk.offer(offer).state for offer in offers(2)] == ["asked", "asked"]
    answer = desk.offer(offers(1, begin=10)[0])
    assert answer.reason == "2 requests wait for an answer at the device already"
    for offer in offers(2):
        assert desk.answer(offer.id, True, by="me") is None
    assert desk.offer(offers(1, begin=20)[0]).state == "asked"
    answer = desk.offer(offers(1, begin=30)[0])
    assert answer.reason == "the device has 3 leases already"
    desk.answer(offers(1, begin=20)[0].id, False, by="me")
    assert desk.offer(offers(1, begin=40)[0]).state == "asked"
    desk.answer(offers(1, begin=40)[0].id, False, by="me")
    assert "too many leases" in desk.offer(offers(1, begin=50)[0]).reason
    machine.pass_time(890.0)
    assert "too many leases" in desk.offer(offers(1, begin=60)[0]).reason
    machine.pass_time(20.0)  # a quarter of an hour for each of four
    assert desk.offer(offers(1, begin=70)[0]).state == "asked"


def test_no_more_questions_wait_than_people_can_answer(machine: Machine) -> None:
    desk = machine.start(mode="ask")
    asked = list[str]()
    desk.on_ask = lambda lease: asked.append(lease.offer.id)
    states = [desk.offer(offer).state for offer in offers(40)]
    assert states == ["asked"] * 16 + ["refused"] * 24
    assert len(asked) == 16
    assert desk.answer(asked[0], True, by="me") is None
    assert desk.offer(offers(1, begin=100)[0]).state == "asked"


def test_a_lease_that_is_offered_again_is_not_written_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = machine.start(mode="allow")
    desk.offer(OFFER)
    written = list[object]()
    monkeypatch.setattr(AssistMemory, "write", lambda _self, state: written.append(state))
    for _ in range(100):
        machine.pass_time(0.01)
        desk.offer(replace(OFFER, seconds=HOUR - 0.02))
    assert not written
    desk.offer(replace(OFFER, seconds=60.0))
    assert len(written) == 1


def test_a_proxy_washes_no_record_of_assistance_away(tmp_path: Path) -> None:
    now = 1_795_000_000.0
    file = tmp_path / "cam1.assist.log"
    diary = Diary(file, most_of_a_kind=600, clock=lambda: now)
    diary.write("agreed", {"lease": OFFER.id, "who": "x" * 1000, "by": "me"})
    for _ in range(20_000):
        diary.write("connected", {"lease": "another", "service": "web", "who": "y" * 1000})
    assert len(file.read_text().splitlines()) == 601
    assert [entry["by"] for entry in read_diary(file, OFFER.id)] == ["me"]
    assert max(map(len, file.read_text().splitlines())) < 400
    now += 3600.0
    diary.write("ended", {"lease": OFFER.id})
    told = [json.loads(line) for line in file.read_text().splitlines()[601:]]
    assert [(one["what"], one.get("count")) for one in told] == [
        ("lines left out", 19_400),
        ("ended", None),
    ]
