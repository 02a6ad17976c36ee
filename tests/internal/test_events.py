"""GET /internal/events: who came and went, in order, and again for who was away."""

from __future__ import annotations

import json

import pytest
import trio

from support.internal import SECRET, Bench, Caller, running_bench
from support.resettable import resettable_pair
from tunnelmux.backend import ProxyClient
from tunnelmux.errors import ConnectError
from tunnelmux.limits import InternalLimits
from tunnelmux.sessions import SessionEvent

TOKEN = "abcdefghijklmnopqrstuvwxyz"


class Reader:
    """A reader of events that takes the blocks apart by hand."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.text = b""

    async def block(self) -> dict[str, str]:
        while b"\n\n" not in self.text:
            chunk = await self.caller.read_chunk()
            assert chunk, "the stream ended"
            self.text += chunk
        block, _, self.text = self.text.partition(b"\n\n")
        pairs = (line.partition(": ") for line in block.decode().split("\n"))
        return {name: value for name, _, value in pairs}

    async def event(self) -> tuple[str, dict[str, object]]:
        """The next event's id and what it says."""
        while "data" not in (block := await self.block()):
            pass
        return block["id"], {"event": block["event"], **json.loads(block["data"])}


async def read_events(bench: Bench, last: str | None = None, capacity: int | None = None) -> Reader:
    caller = await bench.caller(capacity)
    field = f"Last-Event-ID: {last}\r\n" if last is not None else ""
    await caller.send(
        f"GET /internal/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\r\n"
        f"{field}\r\n".encode()
    )
    head = await caller.read_head()
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
    reader = Reader(caller)
    assert await reader.block() == {"retry": "1000"}
    return reader


async def test_each_kind_with_its_reason_and_number() -> None:
    async with running_bench() as bench:
        reader = await read_events(bench)
        async with bench.agent(token=TOKEN), bench.agent(token=TOKEN):
            await bench.ask("POST", f"/internal/session/{TOKEN}/close")
        events = [await reader.event() for _ in range(3)]
    told = [
        (e["seq"], e["event"], e["type"], e["deviceId"], e["tokenPrefix"], e["reason"])
        for _, e in events
    ]
    assert told == [
        (1, "connected", "connected", "dev1", "abcdef…", ""),
        (2, "replaced", "replaced", "dev1", "abcdef…", "the device connected again"),
        (3, "lost", "lost", "dev1", "abcdef…", "closed through the internal API"),
    ]
    assert [event_id.partition("-")[2] for event_id, _ in events] == ["1", "2", "3"]
    assert all(sorted(e) == sorted(events[0][1]) for _, e in events)
    assert "ghijk" not in repr(events)


async def test_a_session_that_breaks_is_lost_with_the_cause() -> None:
    async with running_bench() as bench:
        reader = await read_events(bench)
        async with bench.agent() as agent:
            agent.session.abort()
            handle = await bench.store.find_device("dev1")
            assert handle is not None
            await handle.session.wait_closed()  # type: ignore[attr-defined]
            assert await bench.store.list() == []
            await bench.store.find_device("dev1")
        await reader.event()
        _, event = await reader.event()
        assert event["type"] == "lost"
        assert event["reason"]


async def test_who_was_away_gets_what_it_missed() -> None:
    async with running_bench() as bench:
        reader = await read_events(bench)
        async with bench.agent("dev1"):
            last, _ = await reader.event()
        async with bench.agent("dev2"):
            again = await read_events(bench, last)
            seen = [(await again.event())[1] for _ in range(2)]
            assert [(e["type"], e["deviceId"]) for e in seen] == [
                ("lost", "dev1"),
                ("connected", "dev2"),
            ]


async def test_a_reader_without_an_id_begins_now_and_is_told_where_that_is() -> None:
    async with running_bench() as bench:
        async with bench.agent():
            pass
        reader = await read_events(bench)
        assert (await reader.block()) == {"id": f"{bench.events.epoch}-2"}
        async with bench.agent():
            assert (await reader.event())[1]["seq"] == 3


@pytest.mark.parametrize("last", ["{epoch}-1", "00000000-4", "{epoch}-99", "rubbish", "{epoch}-x"])
async def test_missing_events_are_a_gap_and_not_silence(last: str) -> None:
    async with running_bench(limits=InternalLimits(event_history=2)) as bench:
        for _ in range(2):
            async with bench.agent():
                pass
        reader = await read_events(bench, last.format(epoch=bench.events.epoch))
        event_id, gap = await reader.event()
        assert gap == {"event": "gap", "oldestSeq": 3}
        assert event_id.endswith("-2")
        assert [(await reader.event())[1]["seq"] for _ in range(2)] == [3, 4]


async def test_a_reader_that_stops_reading_costs_no_memory_and_finds_a_gap(
    autojump_clock: object,
) -> None:
    async with running_bench(limits=InternalLimits(event_history=4)) as bench:
        reader = await read_events(bench)
        for _ in range(20):
            async with bench.agent():
                pass
        assert len(bench.events.after(0)) == 4
        seen = []
        while not seen or seen[-1] != 40:
            _, event = await reader.event()
            seen.append(event.get("seq", "gap"))
        assert seen[-4:] == [37, 38, 39, 40]


async def test_silence_is_broken_by_comments(autojump_clock: object) -> None:
    async with running_bench(limits=InternalLimits(event_heartbeat=15)) as bench:
        reader = await read_events(bench)
        await reader.block()
        started = trio.current_time()
        for turn in (1, 2):
            assert await reader.block() == {"": "still here"}
            assert trio.current_time() - started == pytest.approx(15 * turn)


async def test_a_drain_ends_the_stream_in_order() -> None:
    async with running_bench() as bench:
        reader = await read_events(bench)
        await reader.block()
        bench.server.drain()
        assert await reader.caller.read_chunk() == b""
        assert await reader.caller.read_until(b"\r\n") == b"\r\n"
        assert await reader.caller.read_all() == b""


async def test_a_reader_that_takes_nothing_is_cut(autojump_clock: object) -> None:
    async with running_bench(limits=InternalLimits(event_heartbeat=15)) as bench:
        reader = await read_events(bench, capacity=300)
        await reader.block()
        started = trio.current_time()
        for _ in range(5):
            async with bench.agent():
                pass
        await trio.sleep(29)
        assert len(bench.server._callers) == 1
        await trio.sleep(2)
        assert bench.server._callers == set()
        assert trio.current_time() - started < 40
        with pytest.raises(trio.BrokenResourceError):
            await reader.caller.read_all()


async def test_a_reader_that_leaves_is_forgotten() -> None:
    async with running_bench() as bench:
        reader = await read_events(bench)
        await reader.block()
        reader.caller.stream.reset()  # type: ignore[attr-defined]
        with trio.fail_after(20):
            while bench.server._callers:  # noqa: ASYNC110  no event says so
                await trio.sleep(0.01)


async def test_the_library_reads_them_and_knows_a_gap() -> None:
    async with running_bench() as bench:
        async with bench.client.events("00000000-7") as events:
            assert (await anext(events))[1] is None
            async with bench.agent():
                event_id, event = await anext(events)
                assert isinstance(event, SessionEvent)
                assert (event.type, event.device_id) == ("connected", "dev1")
        async with bench.client.events(event_id) as events:
            _, event = await anext(events)
            assert event is not None
            assert event.type == "lost"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [(b"data: " + b"x" * 70_000, "longer than"), (b"data: {\n\n", "malformed")],
)
async def test_a_client_takes_no_event_that_cannot_be_one(answer: bytes, problem: str) -> None:
    front, back = resettable_pair()

    async def dial() -> trio.abc.Stream:
        return front

    client = ProxyClient("http://127.0.0.1:3801", dial=dial)
    await back.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + answer)
    with pytest.raises(ConnectError) as caught:
        async with client.events() as events:
            await anext(events)
    assert problem in str(caught.value.__cause__)
