"""What parent and workers are made of, without processes."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from tunnelmux.config import Address, ProxyConfig
from tunnelmux.config.cluster import ClusterConfig
from tunnelmux.config.rules import InvalidSetting
from tunnelmux.config.secret import Secret
from tunnelmux.config.workers import MOST_WORKERS, ProcessConfig
from tunnelmux.errors import ConfigError, ConnectError
from tunnelmux.limits import AuditLimits, IngressLimits
from tunnelmux.observability.audit_file import LineFile
from tunnelmux.observability.sums import add_up
from tunnelmux.proxy.tunnels.presence import PresenceFile, presence_path
from tunnelmux.proxy.workers.events import SharedEvents
from tunnelmux.proxy.workers.link import Link, LinkLost, Reply
from tunnelmux.proxy.workers.siblings import Siblings
from tunnelmux.sessions import EventLog, MemoryStore, SessionEvent

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


# -- the link ---------------------------------------------------------------------------------


class End:
    """One end of a link, which notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes, list[int]]] = []
        self.news = trio.Event()

    async def answer(self, what: str, body: bytes) -> Reply:
        if what == "never":
            await trio.sleep_forever()
        if what == "wrong":
            raise ConfigError("it cannot be listened on")
        reading, writing = os.pipe()
        os.write(writing, body)
        os.close(writing)
        return Reply(b"as a pipe", [reading])

    def hear(self, what: str, body: bytes, descriptors: Sequence[int]) -> None:
        self.told.append((what, body, list(descriptors)))
        self.news.set()


@contextmanager
def few_files(*, left: int) -> Iterator[None]:
    """This process may open so many files, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(file.name) for file in Path("/proc/self/fd").iterdir()) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def test_a_call_is_answered_with_descriptors() -> None:
    ours, theirs = socket.socketpair()
    async with trio.open_nursery() as nursery:
        link, other = Link(ours, End()), Link(theirs, End())
        nursery.start_soon(link.run)
        nursery.start_soon(other.run)
        replies: dict[bytes, bytes] = {}

        async def call(body: bytes) -> None:
            reply = await link.call("pipe", body)
            [descriptor] = reply.descriptors
            replies[body] = os.read(descriptor, 100)
            os.close(descriptor)

        async with trio.open_nursery() as calls:
            for number in range(100):
                calls.start_soon(call, b"%d" % number)
        assert replies == {b"%d" % number: b"%d" % number for number in range(100)}
        with pytest.raises(ConfigError, match="cannot be listened on"):
            await link.call("wrong")
        nursery.cancel_scope.cancel()


async def test_what_is_told_comes_in_order_and_whole() -> None:
    ours, theirs = socket.socketpair()
    heard = End()
    async with trio.open_nursery() as nursery:
        link, other = Link(ours, End()), Link(theirs, heard)
        nursery.start_soon(link.run)
        nursery.start_soon(other.run)
        sizes = [0, 1, 70_000, 2_000_000, 3]
        for size in sizes:
            one, two = os.pipe()
            os.close(two)
            link.tell("news", b"x" * size, [one])
        with trio.fail_after(30):
            while len(heard.told) < len(sizes):
                heard.news = trio.Event()
                await heard.news.wait()
        assert [len(body) for _, body, _ in heard.told] == sizes
        for _, _, descriptors in heard.told:
            assert len(descriptors) == 1
            os.close(descriptors[0])
        nursery.cancel_scope.cancel()


async def test_descriptors_that_do_not_fit_in_cost_their_message_only() -> None:
    """The worker that was told ended, with all its sessions, or took the next visitor for this."""
    ours, theirs = socket.socketpair()
    heard = End()
    async with trio.open_nursery() as nursery:
        link, other = Link(ours, End()), Link(theirs, heard)
        pipes = [os.pipe() for _ in range(3)]
        link.tell("two", b"", [reading for reading, _ in pipes[:2]])
        link.tell("one", b"", [pipes[2][0]])
        nursery.start_soon(link.run)
        await trio.testing.wait_all_tasks_blocked()  # both are on their way, and closed here
        with few_files(left=1):
            nursery.start_soon(other.run)
            with trio.fail_after(30):
                await heard.news.wait()
        [(what, _, [descriptor])] = heard.told
        assert what == "one"
        os.write(pipes[2][1], b"its own")
        assert os.read(descriptor, 100) == b"its own"
        os.close(descriptor)
        for _, writing in pipes:
            os.close(writing)
        nursery.cancel_scope.cancel()


async def test_calls_end_with_the_other_process() -> None:
    ours, theirs = socket.socketpair()
    async with trio.open_nursery() as nursery:
        link = Link(ours, End())

        async def call() -> None:
            with pytest.raises(LinkLost):
                await link.call("never")

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        theirs.close()
        await link.run()
    with pytest.raises(LinkLost):
        link.tell("news")


async def test_one_that_does_not_read_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours, End())
    with theirs, pytest.raises(LinkLost, match="does not read"):
        for _ in range(100):
            link.tell("news", b"x" * 1_000_000)
    await link.run()


# -- the other workers ---------------------------------------------------------------------------


async def test_one_that_ends_within_its_answer_is_no_bug() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    class Parent:
        async def reach(self, node: str, way: str) -> socket.socket:
            assert (node, way) == ("worker-2", "internal")
            ours, theirs = socket.socketpair()
            theirs.sendall(head + b"3\r\none\r\n")
            theirs.shutdown(socket.SHUT_WR)
            ours.setblocking(False)
            ends.append(theirs)
            return ours

        others = ("worker-2",)

    ends: list[socket.socket] = []
    siblings = Siblings(Parent(), IngressLimits())  # type: ignore[arg-type]
    assert await siblings.ask_all(b"GET", b"/metrics") == []
    found = []
    with pytest.raises(ConnectError, match="worker-2 ended within its answer"):
        async with siblings.stream("worker-2", b"/internal/requests") as content:
            async for data in content:
                found.append(data)  # noqa: PERF401  it ends with an error
    assert found == [b"one"]
    for end in ends:
        end.close()


# -- events -----------------------------------------------------------------------------------


def event(kind: str, device: str) -> bytes:
    return msgspec.json.encode(
        {
            "seq": 7,
            "type": kind,
            "time": NOON,
            "tokenPrefix": "abc",
            "deviceId": device,
            "userId": "",
            "remoteAddr": "192.0.2.1:1",
        }
    )


def told(shared: SharedEvents, events: Sequence[SessionEvent | None]) -> list[tuple[int, str, str]]:
    return read([shared.number(one) for one in events if one is not None])


def read(events: Sequence[bytes]) -> list[tuple[int, str, str]]:
    found = [msgspec.json.decode(one, type=SessionEvent) for one in events]
    return [(one.seq, one.type, one.device_id) for one in found]


def test_a_device_that_moves_to_another_worker_is_never_lost() -> None:
    events = SharedEvents(10)
    seen = [
        events.take("worker-1", event("connected", "dev1")),
        events.take("worker-2", event("connected", "dev1")),
        events.take("worker-1", event("lost", "dev1")),  # the older session
    ]
    assert told(events, seen) == [(1, "connected", "dev1"), (2, "replaced", "dev1")]
    assert (events.sessions_of("worker-1"), events.sessions_of("worker-2")) == (0, 1)


def test_what_a_worker_had_is_lost_with_it() -> None:
    events = SharedEvents(2)
    for device in ("dev1", "dev2"):
        told(events, [events.take("worker-1", event("connected", device))])
    told(events, [events.take("worker-2", event("connected", "dev3"))])
    assert told(events, events.worker_ended("worker-1")) == [
        (4, "lost", "dev1"),
        (5, "lost", "dev2"),
    ]
    assert events.worker_ended("worker-1") == []
    assert events.sessions_of("worker-1") == 0
    # What a worker that begins is told: no more than is kept.
    kept = [bytes(one) for one in events.welcome().events]
    assert read(kept) == [(4, "lost", "dev1"), (5, "lost", "dev2")]


# -- metrics ----------------------------------------------------------------------------------

ONE = b"""# HELP tunnelmux_visits_total Visits.
# TYPE tunnelmux_visits_total counter
tunnelmux_visits_total{way="http"} 2.0
tunnelmux_visits_total{way="tcp"} 1.0
# HELP tunnelmux_sessions Now.
# TYPE tunnelmux_sessions gauge
tunnelmux_sessions 3.0
# HELP tunnelmux_draining Now.
# TYPE tunnelmux_draining gauge
tunnelmux_draining 1.0
# HELP process_start_time_seconds Start.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 100.0
# HELP seconds How long.
# TYPE seconds histogram
seconds_bucket{le="1.0"} 1.0
seconds_bucket{le="+Inf"} 2.0
seconds_count 2.0
seconds_sum 5.5
"""


def lines(text: bytes) -> set[str]:
    return {line for line in text.decode().splitlines() if not line.startswith("#")}


def test_metrics_are_added_series_by_series() -> None:
    other = ONE.replace(b'way="tcp"', b'way="exec"').replace(b" 100.0", b" 90.0")
    assert lines(add_up([ONE, other, b""])) == {
        'tunnelmux_visits_total{way="http"} 4.0',
        'tunnelmux_visits_total{way="tcp"} 1.0',
        'tunnelmux_visits_total{way="exec"} 1.0',
        "tunnelmux_sessions 6.0",
        "tunnelmux_draining 1.0",
        "process_start_time_seconds 90.0",
        'seconds_bucket{le="1.0"} 2.0',
        'seconds_bucket{le="+Inf"} 4.0',
        "seconds_count 4.0",
        "seconds_sum 11.0",
    }


def test_a_counter_of_several_processes_began_with_the_first() -> None:
    text = (
        b"# TYPE tunnelmux_visits_total counter\ntunnelmux_visits_total 2.0\n"
        b"# TYPE tunnelmux_visits_created gauge\ntunnelmux_visits_created %s\n"
    )
    both = lines(add_up([text % b"1795887590.5", text % b"1795887557.25"]))
    assert both == {"tunnelmux_visits_total 4.0", "tunnelmux_visits_created 1.79588755725e+09"}


def test_of_a_process_that_is_over_only_counters_stay() -> None:
    kept = add_up([add_up([ONE], is_over=True), ONE], is_over=True)
    assert 'tunnelmux_visits_total{way="http"} 4.0' in lines(kept)
    assert "seconds_count 4.0" in lines(kept)
    assert not any("sessions" in line or "process" in line for line in lines(kept))


# -- the setting --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1, MOST_WORKERS + 1])
def test_a_number_of_workers_that_cannot_be(count: int) -> None:
    with pytest.raises(InvalidSetting, match="write 1 to 64"):
        ProcessConfig(workers=count)


def test_auto_is_one_for_each_core() -> None:
    assert ProcessConfig(workers="auto").count == min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def test_a_node_may_have_several_workers() -> None:
    cluster = ClusterConfig(redis=Secret("redis://10.0.0.5"), listen="127.0.0.1:3803")
    assert ProxyConfig(cluster=cluster, proxy=ProcessConfig(workers=2)).cluster == cluster


# -- files that processes share ------------------------------------------------------------------


async def test_a_device_that_was_at_another_worker_is_waited_for(tmp_path: Path) -> None:
    address = Address("127.0.0.1", 3800)
    paths = [presence_path(tmp_path, address, name) for name in ("worker-1", "worker-2")]
    own, other = (path for path in paths if path is not None)
    seen = {"online": False, "last_seen": NOON, "reason": "it left"}
    own.write_bytes(msgspec.json.encode({"devices": {"dev1": seen, "dev2": seen}}))
    there = {"online": True, "last_seen": NOON}
    other.write_bytes(msgspec.json.encode({"devices": {"dev1": there}}))
    store = MemoryStore()
    file = PresenceFile(own, store, EventLog(10), [other, tmp_path / "not-there.json"])
    await file.load(lambda _device: True, 5.0)
    known = store.presence()
    assert (known["dev1"].online, known["dev2"].online) == (True, False)


def test_processes_on_one_audit_file_rotate_it_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    limits = AuditLimits(max_bytes=100, keep=100)
    files = [LineFile(path, limits), LineFile(path, limits)]
    lines = [b"%039d\n" % number for number in range(20)]
    for number, line in enumerate(lines):
        files[number % 2].write(line)
    for file in files:
        file.close()
    found = [one.read_bytes() for one in tmp_path.iterdir()]
    assert sorted(b"".join(found).splitlines(keepends=True)) == lines
    assert {len(one) for one in found} == {80}
