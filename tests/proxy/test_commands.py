"""Who gets a command: the least busy, another when one is gone, and never two."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from support.cancellation import Outcome, at_every_checkpoint, cancelled_after
from support.internal import RecordList
from tunnelmux.commands import CommandRequest, Event, Exited, Output, Started, failure
from tunnelmux.limits import InternalLimits
from tunnelmux.observability import AuditLog
from tunnelmux.proxy.commands.dispatcher import Dispatcher, UnknownDevices
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.sessions import MemoryStore

REQUEST = CommandRequest(command_id="c1", host="h", username="u", command="uptime", timeout=10)


class FakeTarget:
    """Answers with these events; each command may be held until `gate` is set."""

    def __init__(self, name: str, *events: Event | Exception, busy: int = 0) -> None:
        self.name = name
        self.events = events or (Started("c1", 1.0), Exited(0, 0.5))
        self.busy = busy
        self.gate: trio.Event | None = None
        self.asked: list[tuple[str, str]] = []

    @asynccontextmanager
    async def execute(
        self, request: CommandRequest, *, asked_by: str
    ) -> AsyncIterator[AsyncIterator[Event]]:
        self.asked.append((request.command_id, asked_by))
        self.busy += 1
        try:
            yield self._events()
        finally:
            self.busy -= 1

    async def _events(self) -> AsyncIterator[Event]:
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Exited) and self.gate is not None:
                await self.gate.wait()
            yield event


def make_dispatcher(*devices: str, **limits: int) -> tuple[Dispatcher, RecordList]:
    records = RecordList()
    known = [KnownDevice(name=name, token_sha256=name.encode().ljust(32)) for name in devices]
    dispatcher = Dispatcher(
        MemoryStore(),
        DeviceRegister(known),
        audit=AuditLog([records]),
        limits=InternalLimits(**limits),
    )
    return dispatcher, records


async def run(dispatcher: Dispatcher, name: str) -> tuple[Exited, list[Event]]:
    events: list[Event] = []

    async def emit(event: Event) -> None:
        events.append(event)

    return await dispatcher.run(name, REQUEST, asked_by="alice", emit=emit), events


async def test_work_goes_to_the_least_busy() -> None:
    dispatcher, _ = make_dispatcher()
    first, second = FakeTarget("p1", busy=2), FakeTarget("p2", busy=1)
    for target in (first, second):
        target.gate = trio.Event()
        dispatcher.add(target, groups=["rack"])
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(run, dispatcher, "rack")
        await trio.testing.wait_all_tasks_blocked()
        assert (len(first.asked), len(second.asked)) == (2, 3)
        first.gate.set()
        second.gate.set()


@pytest.mark.parametrize("reason", ["undelivered", "busy", "device-offline"])
async def test_what_nobody_ran_moves_to_another(reason: str) -> None:
    dispatcher, records = make_dispatcher()
    gone = FakeTarget("p1", failure(reason, "no"))
    there = FakeTarget("p2", busy=1)
    for target in (gone, there):
        dispatcher.add(target, groups=["rack"])
    end, events = await run(dispatcher, "rack")
    assert (end.exit_code, events) == (0, [Started("c1", 1.0)])
    assert gone.asked == there.asked == [("c1", "alice")]
    [record] = records.all
    assert (record.device, record.exit_code) == ("rack", 0)


@pytest.mark.parametrize(
    "events",
    [
        (failure("lost", "the way broke"),),
        (Started("c1", 1.0), failure("lost", "the way broke")),
        (Started("c1", 1.0), failure("undelivered", "a target that lies")),
        (Output("stdout", b"x"), failure("busy", "another")),
        (Started("c1", 1.0),),
        (RuntimeError("a bug"),),
    ],
)
async def test_what_may_have_run_is_never_run_again(events: tuple[Event | Exception, ...]) -> None:
    dispatcher, records = make_dispatcher()
    first, second = FakeTarget("p1", *events), FakeTarget("p2", busy=1)
    for target in (first, second):
        dispatcher.add(target, groups=["rack"])
    end, _ = await run(dispatcher, "rack")
    assert end.exit_code == 255
    assert second.asked == []
    assert len(records.all) == 1


async def test_when_all_refuse_the_last_word_counts() -> None:
    dispatcher, _ = make_dispatcher()
    for number in range(3):
        target = FakeTarget(f"p{number}", failure("busy", f"number {number}"), busy=number)
        dispatcher.add(target, groups=["rack"])
    end, _ = await run(dispatcher, "rack")
    assert (end.reason, end.message) == ("busy", "number 2")


async def test_names_and_selectors() -> None:
    dispatcher, _ = make_dispatcher("dev1", "dev2")
    p1, p2, p3 = (FakeTarget(name) for name in ("p1", "p2", "p3"))
    dispatcher.add(p1, groups=["rack"])
    dispatcher.add(p2, groups=["rack", "lab"])
    dispatcher.add(p3)
    # The members of a group are reached through it.
    assert dispatcher.select(["all"]) == ["dev1", "dev2", "lab", "p3", "rack"]
    assert dispatcher.select(["p1", "dev*"]) == ["p1", "dev1", "dev2"]
    dispatcher.remove(p2)
    dispatcher.remove(p2)
    assert dispatcher.select(["all"]) == ["dev1", "dev2", "p3", "rack"]
    dispatcher.remove(p1)
    with pytest.raises(UnknownDevices):
        dispatcher.select(["rack"])
    end, _ = await run(dispatcher, "rack")  # gone since it was selected
    assert end.reason == "device-offline"


async def test_agents_that_are_away_are_known(autojump_clock: trio.testing.MockClock) -> None:
    dispatcher, _ = make_dispatcher("dev1")
    dispatcher.expect({"p1": "rack", "p2": "rack", "p3": None})
    assert dispatcher.select(["all"]) == ["dev1", "p3", "rack"]
    assert dispatcher.select(["p1"]) == ["p1"]
    started = trio.current_time()
    end, _ = await run(dispatcher, "p3")  # it never came: nobody waits for it
    assert (end.reason, trio.current_time() - started) == ("device-offline", 0)
    dispatcher.add(target := FakeTarget("p3"))
    dispatcher.remove(target)
    end, _ = await run(dispatcher, "p3")  # it was just lost, and does not come back in time
    assert (end.reason, trio.current_time() - started) == ("device-offline", 5)
    dispatcher.expect({})
    with pytest.raises(UnknownDevices):
        dispatcher.select(["p3"])
    assert dispatcher._lost_at == {}


@pytest.mark.parametrize("name", ["p1", "rack"])
async def test_a_command_waits_for_an_agent_that_was_just_lost(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    dispatcher, _ = make_dispatcher()
    dispatcher.expect({"p1": "rack"})
    dispatcher.add(before := FakeTarget("p1"), groups=["rack"])
    dispatcher.remove(before)
    after = FakeTarget("p1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, dispatcher, name)
        await trio.sleep(3)
        dispatcher.add(FakeTarget("other"))
        await trio.sleep(1)
        dispatcher.add(after, groups=["rack"])
    assert (len(before.asked), len(after.asked)) == (0, 1)


async def test_what_its_agent_never_got_goes_there_again_when_it_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dispatcher, _ = make_dispatcher()
    dispatcher.expect({"p1": None})
    dispatcher.add(before := FakeTarget("p1", failure("undelivered", "its connection broke")))
    after = FakeTarget("p1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, dispatcher, "p1")
        await trio.sleep(2)
        dispatcher.remove(before)
        dispatcher.add(after)
    assert (len(before.asked), len(after.asked)) == (1, 1)


async def test_a_target_of_the_same_name_replaces_the_one_before() -> None:
    dispatcher, _ = make_dispatcher()
    old, new = FakeTarget("p1"), FakeTarget("p1")
    dispatcher.add(old, groups=["rack"])
    dispatcher.add(new, groups=["rack"])
    dispatcher.remove(old)  # it notices late that it was replaced
    await run(dispatcher, "rack")
    assert (len(old.asked), len(new.asked)) == (0, 1)


async def test_an_agent_without_a_tunnel_may_have_a_devices_name() -> None:
    dispatcher, _ = make_dispatcher("dev1")
    dispatcher.add(target := FakeTarget("dev1"))
    assert dispatcher.select(["all"]) == ["dev1"]
    end, _ = await run(dispatcher, "dev1")  # its tunnel is down
    assert end.exit_code == 0
    assert len(target.asked) == 1


async def test_commands_at_once_are_bounded() -> None:
    dispatcher, _ = make_dispatcher(max_commands=2)
    dispatcher.add(target := FakeTarget("p1"))
    target.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(run, dispatcher, "p1")
        await trio.testing.wait_all_tasks_blocked()
        assert target.busy == 2
        assert dispatcher.gauges()["tunnelmux_commands_waiting"][1] == 2
        target.gate.set()
    assert len(target.asked) == 4


async def test_a_tenants_devices_take_three_quarters_of_the_places_at_most() -> None:
    dispatcher, _ = make_dispatcher(max_commands=8)
    evil, good = FakeTarget("dev1--evil"), FakeTarget("dev1--good")
    gate = evil.gate = good.gate = trio.Event()
    dispatcher.add(evil)
    dispatcher.add(good)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(run, dispatcher, "dev1--evil")
        await trio.testing.wait_all_tasks_blocked()
        assert evil.busy == 6
        for _ in range(2):
            nursery.start_soon(run, dispatcher, "dev1--good")
        await trio.testing.wait_all_tasks_blocked()
        assert (evil.busy, good.busy) == (6, 2)
        gate.set()
    assert (len(evil.asked), len(good.asked)) == (20, 2)


async def test_commands_for_devices_that_are_away_do_not_fill_the_audit() -> None:
    dispatcher, records = make_dispatcher("dev1")
    dispatcher.add(FakeTarget("p1"))
    for _ in range(70):
        await run(dispatcher, "dev1")
    for _ in range(70):  # those that ran are written down in any case
        await run(dispatcher, "p1")
    reasons = [record.reason for record in records.all]
    assert reasons == ["device-offline"] * 60 + [None] * 70


async def test_refusals_of_one_tenant_leave_records_to_those_of_others() -> None:
    dispatcher, records = make_dispatcher("dev1--evil", "dev1--good")
    for _ in range(70):
        await run(dispatcher, "dev1--evil")
    await run(dispatcher, "dev1--good")
    assert [record.device for record in records.all] == ["dev1--evil"] * 45 + ["dev1--good"]


async def test_cancelling_ends_the_command_and_writes_it_down() -> None:
    dispatcher, records = make_dispatcher()
    dispatcher.add(target := FakeTarget("p1"))
    target.gate = trio.Event()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, dispatcher, "p1")
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert target.busy == 0
    [record] = records.all
    assert (record.reason, record.exit_code) == ("cancelled", 255)
    assert dispatcher.gauges()["tunnelmux_commands_running"][1] == 0


async def test_cancelling_anywhere_leaves_nothing_behind() -> None:
    async def attempt(checkpoint: int) -> Outcome:
        dispatcher, records = make_dispatcher(max_commands=1)
        gone, there = FakeTarget("p1", failure("busy", "no")), FakeTarget("p2", busy=1)
        for target in (gone, there):
            dispatcher.add(target, groups=["rack"])

        async def emit(event: Event) -> None:
            await trio.lowlevel.checkpoint()

        async def operation() -> None:
            await dispatcher.run("rack", REQUEST, asked_by="alice", emit=emit)

        outcome = await cancelled_after(operation, checkpoint)
        assert (gone.busy, there.busy) == (0, 1)
        assert dispatcher.gauges()["tunnelmux_commands_running"][1] == 0
        assert dispatcher._busy == {}
        [record] = records.all  # one line, however it ended
        assert record.reason == ("cancelled" if outcome.cancelled else None)
        return outcome

    assert await at_every_checkpoint(attempt) > 1


async def test_a_target_that_says_nothing_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dispatcher, _ = make_dispatcher()
    dispatcher.add(target := FakeTarget("p1"))
    target.gate = trio.Event()
    end, events = await run(dispatcher, "p1")
    assert (end.reason, end.duration) == ("lost", 40.0)
    assert end.message == "p1 did not end the command within 40 s"
    assert events == [Started("c1", 1.0)]
