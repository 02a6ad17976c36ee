"""Workers as processes: any of them answers, and one that ends takes nothing else with it."""

from __future__ import annotations

import signal
from pathlib import Path

import msgspec
import pytest
import trio

from support.daemons import DaemonSet
from support.http_rig import Peer
from support.origin import Origin
from support.workers import PATIENCE, SECRET, Workers
from tunnelmux.config import Address

pytestmark = pytest.mark.slow


async def test_two_workers_are_one_proxy_to_visitors(workers: Workers) -> None:
    assert {workers.worker_of("dev1"), workers.worker_of("dev2")} == {"worker-1", "worker-2"}
    for _ in range(8):
        for device in ("dev1", "dev2"):
            await workers.still_works(device)
    # Whichever worker has the connection, one of the two devices is at the other.
    visitor = await workers.kept()
    for _ in range(3):
        for device in ("dev1", "dev2"):
            assert await visitor.get(device) == b"hello\n"
    await visitor.aclose()
    # A visitor that stalls in its head keeps its connection, and nobody else waits for it.
    slow = Peer(await workers.visit())
    await slow.send(b"GET / HTTP/1.1\r\nHost: x\r\nTunnelm")
    for device in ("dev1", "dev2"):
        await workers.still_works(device)
    await slow.send(b"ux-Device: dev2\r\nConnection: close\r\n\r\n")
    with trio.fail_after(PATIENCE):
        assert (await slow.read_head()).startswith(b"HTTP/1.1 200")
    await trio.aclose_forcefully(slow.stream)
    workers.proxy.send_signal(signal.SIGTERM)
    assert await workers.proxy.wait() == 0


async def test_looks_of_a_load_balancer_leave_agents_spread(
    daemons: DaemonSet, web: Address
) -> None:
    """Such a look counted as an agent of the worker that took it, for good."""
    workers = Workers(daemons)
    names = [f"dev{number}" for number in range(1, 7)]
    await workers.start(web, devices=names)
    for device in names[2:]:
        since = len(workers.proxy.events)
        looking = Peer(await workers.visit(workers.at_tunnel))
        await looking.send(b"GET / HTTP/1.0\r\n\r\n")
        await looking.read_all()
        await trio.aclose_forcefully(looking.stream)
        await workers.proxy.logged("tunnel handshake failed", since=since)
        await workers.start_agent({"web": f"http://{web}"}, device=device)
    where = [workers.worker_of(device) for device in names]
    assert sorted(where) == ["worker-1"] * 3 + ["worker-2"] * 3


async def test_any_worker_answers_for_all(workers: Workers) -> None:
    tokens = {}
    for _ in range(6):  # on connections of their own, which any worker takes
        found = (await workers.json("/internal/sessions"))["sessions"]
        assert [one["deviceId"] for one in found] == ["dev1", "dev2"]
        tokens = {one["deviceId"]: one["token"] for one in found}
        for device, token in tokens.items():
            shown = await workers.json(f"/internal/session/{token}")
            assert shown["device_id"] == device
            call = {"session_token": token, "path": "/"}
            answer = await workers.json("/internal/forward/http", "POST", call)
            assert answer["status"] == 200
        traffic = await workers.json("/internal/traffic")
        assert {one["device"] for one in traffic["devices"]} == {"dev1", "dev2"}
        assert await workers.counted("tunnelmux_sessions") == 2
        assert await workers.counted("tunnelmux_build_info") == 1
    workers.daemons.secrets.update(tokens.values())

    before = await workers.counted("tunnelmux_http_requests_total")
    for _ in range(10):
        await workers.still_works("dev1")
    with trio.fail_after(PATIENCE):  # a request is counted when its connection is through with it
        while await workers.counted("tunnelmux_http_requests_total") < before + 10:  # noqa: ASYNC110
            await trio.sleep(0.05)
    assert await workers.counted("tunnelmux_http_requests_total") == before + 10

    assert (await workers.ask("/internal/session/unknown")).status == 404
    await workers.json(f"/internal/session/{tokens['dev2']}/close", "POST")
    with trio.fail_after(PATIENCE):
        while (await workers.ask(f"/internal/session/{tokens['dev2']}")).status != 404:  # noqa: ASYNC110
            await trio.sleep(0.05)
    await workers.answers("dev2")  # it has connected again


async def test_visits_and_inspections_are_those_of_all_workers(
    workers: Workers, origin: Origin
) -> None:
    asked, go_on = trio.Event(), trio.Event()

    async def slowly(peer: Peer, _head: bytes) -> None:
        asked.set()
        await go_on.wait()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origin.pages[b"/slow"] = slowly
    wanted = {"id": "inspection-1", "device": "dev1", "service": "web", "seconds": 60}
    await workers.json("/internal/inspections", "POST", wanted)
    for _ in range(10):
        await workers.still_works("dev1")
    for _ in range(4):
        shown = await workers.json("/internal/inspections/inspection-1")
        assert shown["inspection"]["seen"] == len(shown["requests"]) == 10
        [listed] = (await workers.json("/internal/inspections"))["inspections"]
        assert listed["seen"] == 10
        one = shown["requests"][-1]["id"]
        found = await workers.json(f"/internal/inspections/inspection-1/requests/{one}")
        assert found["id"] == one
    await workers.json("/internal/inspections/inspection-1/close", "POST")
    assert (await workers.ask("/internal/inspections/inspection-1")).status == 404

    visitor = Peer(await workers.visit())
    await visitor.send(b"GET /slow HTTP/1.1\r\nHost: x\r\nTunnelmux-Device: dev2\r\n\r\n")
    with trio.fail_after(PATIENCE):
        await asked.wait()
    told = [(await workers.json("/internal/visits?device=dev2"))["visits"] for _ in range(4)]
    for [visit] in told:
        assert visit["way"] == "http"
    await workers.json(f"/internal/visits/{told[-1][0]['id']}/close", "POST")
    with trio.fail_after(PATIENCE), pytest.raises((trio.BrokenResourceError, AssertionError)):
        await visitor.read_head()
    go_on.set()
    await trio.aclose_forcefully(visitor.stream)


async def test_events_and_requests_are_told_by_any_worker(workers: Workers) -> None:
    async with trio.open_nursery() as nursery:
        feeds = [Feed(await trio.open_tcp_stream(*workers.at_internal)) for _ in range(4)]
        for feed in feeds:
            await feed.ask("/internal/requests")
        for device in ("dev1", "dev2"):
            await workers.still_works(device)
        for feed in feeds:
            told = [await feed.next(b"request") for _ in range(2)]
            assert {one["device"] for one in told} == {"dev1", "dev2"}
            await feed.aclose()

        events = [Feed(await trio.open_tcp_stream(*workers.at_internal)) for _ in range(4)]
        for feed in events:
            await feed.ask("/internal/events", "Last-Event-ID: 0-0")
        seen = [[await feed.next(b"connected") for _ in range(2)] for feed in events]
        assert all(one == seen[0] for one in seen)
        assert [one["seq"] for one in seen[0]] == [1, 2]
        for feed in events:
            await feed.aclose()
        nursery.cancel_scope.cancel()


async def test_a_worker_is_killed(workers: Workers, origin: Origin) -> None:
    asked, go_on = trio.Event(), trio.Event()

    async def in_two_parts(peer: Peer, _head: bytes) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        asked.set()
        await go_on.wait()
        await peer.send(b"-last")

    origin.pages[b"/parts"] = in_two_parts
    dies = workers.worker_of("dev2")
    # A visitor of dev1 at the other worker: this one cannot accept any meanwhile.
    workers.kill(dies, signal.SIGSTOP)
    visitor = await workers.kept()
    assert await visitor.get("dev1") == b"hello\n"
    workers.kill(dies, signal.SIGCONT)
    is_whole = trio.Event()

    async def read_on() -> None:
        assert await visitor.get("dev1", "/parts") == b"first-last"
        is_whole.set()

    before = await workers.counted("tunnelmux_http_requests_total")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_on)
        with trio.fail_after(PATIENCE):
            await asked.wait()
        since = len(workers.proxy.events)
        workers.kill(dies)
        ended = await workers.proxy.logged("worker ended", since=since, worker=dies)
        assert "signal 9" in str(ended["cause"])
        await workers.answers("dev2")
        go_on.set()
        with trio.fail_after(PATIENCE):
            await is_whole.wait()
    assert await visitor.get("dev1") == b"hello\n"
    await visitor.aclose()
    # It is there again, and what it had counted is not lost.
    await workers.proxy.logged("worker ready", since=since, worker=dies)
    assert await workers.counted("tunnelmux_http_requests_total") >= before
    feed = Feed(await trio.open_tcp_stream(*workers.at_internal))
    await feed.ask("/internal/events", "Last-Event-ID: 0-0")
    lost = await feed.next(b"lost")
    assert (lost["deviceId"], lost["reason"]) == ("dev2", f"{dies}, which had it, ended")
    again = await feed.next(b"connected")
    assert again["deviceId"] == "dev2"
    await feed.aclose()
    for device in ("dev1", "dev2"):
        await workers.still_works(device)


async def test_the_parent_is_killed(workers: Workers) -> None:
    pids = [workers.pid_of(name) for name in ("worker-1", "worker-2")]
    workers.proxy.send_signal(signal.SIGKILL)
    assert await workers.proxy.wait() == -signal.SIGKILL  # all that hold its output have ended
    # Not by a visit: another program may have the port by now.
    with trio.fail_after(PATIENCE):
        while any(map(runs, pids)):  # noqa: ASYNC110
            await trio.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether the process runs; one that has ended may wait for being reaped (proc(5))."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in {"Z", "X"}


async def test_a_reload_reaches_all_workers(workers: Workers) -> None:
    file = workers.daemons.file("proxy-1")
    new = workers.file(
        devices=("dev1",),
        tcp=[("127.0.0.1:0", "dev1", "raw")],
        tunnel=str(workers.at_tunnel),
        http=str(workers.at_http),
    )
    workers.daemons.write(file, new)
    since = len(workers.proxy.events)
    workers.proxy.send_signal(signal.SIGHUP)
    told = await workers.proxy.logged("configuration reloaded", since=since)
    assert told["ended"] == "dev2"
    assert await workers.agents["dev2"].wait() != 0, "its token is refused, so that it ends"
    raw = await workers.proxy.listening("ingress.tcp[0].listen", since=since)
    for _ in range(6):
        visitor = Peer(await workers.visit(raw))
        await visitor.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.fail_after(PATIENCE):
            assert (await visitor.read_head()).startswith(b"HTTP/1.1 200")
        await trio.aclose_forcefully(visitor.stream)

    # What cannot be used changes nothing, anywhere.
    workers.daemons.write(file, new + "[nonsense]\n")
    since = len(workers.proxy.events)
    workers.proxy.send_signal(signal.SIGHUP)
    await workers.proxy.logged("configuration not reloaded; the one before stays", since=since)
    await workers.still_works("dev1")

    # And a port that is in the configuration no more is free.
    workers.daemons.write(
        file,
        workers.file(devices=("dev1",), tunnel=str(workers.at_tunnel), http=str(workers.at_http)),
    )
    since = len(workers.proxy.events)
    workers.proxy.send_signal(signal.SIGHUP)
    await workers.proxy.logged("configuration reloaded", since=since)
    with trio.fail_after(PATIENCE):
        while True:
            try:
                stream = await workers.visit(raw)
            except OSError:
                break
            await trio.aclose_forcefully(stream)
            await trio.sleep(0.05)


async def test_a_port_that_is_taken_is_told_of_and_nothing_runs(
    daemons: DaemonSet, web: Address
) -> None:
    workers = Workers(daemons)
    proxy = await daemons.start("proxy", workers.file(http=str(web)))
    assert await proxy.wait() == 2
    assert "ingress.http.listen: cannot listen on" in proxy.output


class Feed:
    """Server-sent events of the internal API, one by one."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._rest = b""

    async def ask(self, path: str, *fields: str) -> None:
        """Begin, and return when the stream has begun."""
        lines = [f"GET {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {SECRET}", *fields]
        with trio.fail_after(PATIENCE):
            await self._stream.send_all("\r\n".join([*lines, "", ""]).encode("ascii"))
            while b"retry: 1000\n\n" not in self._rest:
                await self._read()

    async def next(self, kind: bytes) -> dict[str, object]:
        """The data of the next event of that type."""
        with trio.fail_after(PATIENCE):
            while True:
                *events, self._rest = self._rest.split(b"\n\n")
                for index, event in enumerate(events):
                    if b"event: " + kind + b"\n" in event:
                        self._rest = b"\n\n".join([*events[index + 1 :], self._rest])
                        data = event.partition(b"data: ")[2]
                        return msgspec.json.decode(data, type=dict)
                await self._read()

    async def _read(self) -> None:
        data = await self._stream.receive_some()
        assert data, "the stream has ended"
        self._rest += bytes(data)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)
