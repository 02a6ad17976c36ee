"""HTTP visitors that need no task: who they are, and that they can tell no difference."""

from __future__ import annotations

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from support.carried_http import OK, Target, get, rig
from support.http_rig import Peer
from tunnelmux.config import DeviceConfig, Secret
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy import RunningProxy
from tunnelmux.proxy.visitors import visit
from tunnelmux.proxy.visitors.http_visit import HttpVisit
from tunnelmux.proxy.visitors.names import Destination, KnownNames
from tunnelmux.pump.http_relay import HttpRelay
from tunnelmux.relay import abort

CLOSE = "Connection: close\r\n"


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "way", "direct")


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def gauge(proxy: RunningProxy) -> float:
    """The visitors that the metrics count."""
    return proxy._gauges()["tunnelmux_http_visitors"][1]


async def until_served(proxy: RunningProxy, count: int) -> None:
    with trio.fail_after(20):
        while gauge(proxy) != count:  # noqa: ASYNC110
            await trio.sleep(0.005)


async def test_many_visitors_and_not_one_task() -> None:
    async with rig() as target:
        await target.first_exchange()
        await target.visitor.stream.aclose()
        await until_served(target.proxy, 0)
        silent = [await target.new_visitor() for _ in range(20)]
        await until_served(target.proxy, 20)
        before = tasks()
        for number, visitor in enumerate(silent):
            await visitor.send(get(f"/{number}", CLOSE))
        peers = [await target.connection() for _ in silent]
        for peer in peers:
            await peer.read_head()
        # The test's own target has one for each, and the agent one for all.
        assert tasks() - before <= len(peers) + 1
        for peer in peers:
            await peer.send(OK + b"ok")
        for visitor in silent:
            assert b"Connection: close\r\n" in await visitor.read_head()
            assert await visitor.read_all() == b"ok"
            await visitor.stream.aclose()
        await until_served(target.proxy, 0)


@pytest.mark.parametrize("how", ["at once", "waits", "pieces", "pipelined"])
async def test_the_first_request_may_come_in_any_way(how: str) -> None:
    request = get("/first", "Accept: */*\r\n")
    async with rig() as target:
        await target.first_exchange()
        if how == "waits":
            await trio.sleep(0.05)
        for at in range(0, len(request), 9 if how == "pieces" else 4096):
            await target.visitor.send(request[at : at + (9 if how == "pieces" else 4096)])
            await trio.sleep(0.001)
        if how == "pipelined":
            await target.visitor.send(get("/second", CLOSE))
        peer = await target.connection()
        assert (await peer.read_head()).startswith(b"GET /first ")
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        if how != "pipelined":
            await target.visitor.send(get("/second", CLOSE))
        assert (await peer.read_head()).startswith(b"GET /second ")
        await peer.send(OK + b"ok")
        assert b"Connection: close\r\n" in await target.visitor.read_head()
        assert await target.visitor.read_all() == b"ok"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/", host="dev2.localhost"), b"503"),
        (get("/", host="nobody.localhost"), b"404"),
        (get("/", "Host: dev2.localhost\r\n"), b"400"),
        (get("/", "Tunnelmux-Device: dev2\r\n"), b"400"),
        (get("http://dev2.localhost/"), b"503"),
        (b"GET / HTTP/1.1\r\nX: y\r\n\r\nHost: dev1.localhost\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: y\nHost: dev1.localhost\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n\r\nHost: dev1.localhost\r\n\r\n", b"404"),
        (get("/", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), b"400"),
        (get("/", "Connection: close, Host\r\nContent-Length: 1, 2\r\n"), b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"SSH-2.0-client\r\n\r\n", b"400"),
    ],
)
async def test_a_first_request_with_any_doubt_is_h11s(data: bytes, status: bytes) -> None:
    async with rig(IngressLimits(reconnect_wait=0)) as target:
        await target.first_exchange()
        await target.visitor.send(data)
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 " + status)
        with trio.move_on_after(0.02):
            await target.connection()
            pytest.fail("the device got something")


async def test_who_must_give_way_just_before_its_task_begins_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It once ended the whole proxy: the task found a socket that was closed meanwhile."""
    given_way = []
    hand_over = HttpVisit._judge_soon

    def give_way_meanwhile(live: HttpVisit, relay: HttpRelay) -> None:
        hand_over(live, relay)
        live.place.give_way()
        given_way.append(live)

    async with rig() as target:
        await target.first_exchange()
        monkeypatch.setattr(HttpVisit, "_judge_soon", give_way_meanwhile)
        await target.visitor.send(get("/", host="nobody.localhost"))
        with pytest.raises(trio.BrokenResourceError):
            await target.visitor.read_all()
        assert len(given_way) == 1
        monkeypatch.undo()
        monkeypatch.setattr(Target, "way", "direct")
        visitor = await target.new_visitor()
        await visitor.send(get("/", host="nobody.localhost"))
        assert (await visitor.read_head()).startswith(b"HTTP/1.1 404 ")
        await visitor.stream.aclose()
        await target.visitor.stream.aclose()
        await until_served(target.proxy, 0)


@pytest.mark.parametrize("first", ["nothing", "a request"])
async def test_who_says_nothing_more_is_let_go(first: str) -> None:
    async with rig(IngressLimits(head_timeout=0.2, idle_timeout=0.3)) as target:
        await target.first_exchange()
        if first == "a request":
            peer, _ = await target.ask(get("/"))
            await peer.send(OK + b"ok")
            await target.visitor.read_exactly(len(OK) + 2)
        assert await target.visitor.read_all() == b""
        await target.visitor.stream.aclose()
        await until_served(target.proxy, 0)


async def test_after_a_target_has_left_the_visitor_may_be_idle_as_long_as_ever() -> None:
    async with rig(IngressLimits(head_timeout=0.2)) as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/1"))
        await peer.send(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n") + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        await peer.stream.aclose()
        with trio.move_on_after(0.4) as waited:
            await target.visitor.read_exactly(1)
        assert waited.cancelled_caught, "it was closed"
        peer, _ = await target.ask(get("/2", CLOSE))
        await peer.send(OK + b"ok")
        assert b"Connection: close\r\n" in await target.visitor.read_head()
        assert await target.visitor.read_all() == b"ok"


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_visitor_that_leaves_without_a_word_leaves_nothing(how: str) -> None:
    with capture_logs() as logs:
        async with rig() as target:
            await target.first_exchange()
            if how == "end":
                await target.visitor.end()
                assert await target.visitor.read_all() == b""
            else:
                await abort(target.visitor.stream)
            await until_served(target.proxy, 0)
    assert not [line for line in logs if line["log_level"] in ("warning", "error")]


async def test_a_visitor_that_stays_needs_no_task_either() -> None:
    body = bytes(i % 251 for i in range(1000)) * 3000
    async with rig() as target, trio.open_nursery() as nursery:
        await target.first_exchange()
        peer, _ = await target.ask(get("/1"))
        before = tasks()
        await trio.sleep(0.2)
        assert tasks() == before
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        nursery.start_soon(peer.send, answer)
        assert await target.visitor.read_exactly(len(answer)) == answer
        for path in (b"/2", b"/3"):
            await trio.sleep(0.06)
            await target.visitor.send(get(path.decode()))
            assert (await peer.read_head()).startswith(b"GET " + path)
            await peer.send(OK + path)
            assert await target.visitor.read_exactly(len(OK) + 2) == OK + path
        await trio.sleep(0.1)
        assert tasks() <= before
        [live] = target.proxy.visits.of_device("dev1")
        assert (live.way, live.state, live.is_idle) == ("http", "idle", True)
        assert live.bytes[1] > len(body)


async def test_who_does_not_hang_up_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "DRAIN_TIMEOUT", 0.1)
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/1", CLOSE))
        await peer.send(OK + b"ok")
        assert b"Connection: close\r\n" in await target.visitor.read_head()
        assert await target.visitor.read_all() == b"ok"
        await target.visitor.send(b"what?")
        await until_served(target.proxy, 0)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await target.visitor.send(b"what?")
                await trio.sleep(0.005)


async def test_one_visitor_too_many_is_503() -> None:
    async with rig(IngressLimits(max_visitors=1)) as target:
        await target.first_exchange()
        await target.visitor.send(get("/1"))
        peer = await target.connection()
        second = await target.new_visitor()
        assert (await second.read_head()).startswith(b"HTTP/1.1 503 ")
        await peer.read_head()
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        await target.visitor.stream.aclose()
        await until_served(target.proxy, 0)
        target.visitor = await target.new_visitor()
        await target.ask(get("/3"))


async def test_a_drain_says_goodbye_to_the_silent_and_lets_the_others_finish() -> None:
    async with rig() as target, trio.open_nursery() as nursery:
        await target.first_exchange()
        silent, idle, closing = [await target.new_visitor() for _ in range(3)]
        for visitor in (idle, closing):
            await visitor.send(get("/idle"))
            idle_peer = await target.connection()
            await idle_peer.read_head()
            await idle_peer.send(OK + b"ok")
            assert await visitor.read_exactly(len(OK) + 2) == OK + b"ok"
            await idle_peer.stream.aclose()
        peer, _ = await target.ask(get("/busy"))
        nursery.start_soon(target.proxy.drain, 5.0)
        for visitor in (silent, idle, closing):
            assert await visitor.read_all() == b""
            await visitor.stream.aclose()
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        assert await target.visitor.read_all() == b""
        await target.visitor.stream.aclose()
        await peer.stream.aclose()


async def test_the_end_of_the_proxy_is_a_cut_for_who_is_being_answered() -> None:
    with capture_logs() as logs:
        async with rig() as target:
            await target.first_exchange()
            silent = await target.new_visitor()
            said = await target.new_visitor()
            await said.send(get("/said", CLOSE))
            peer = await target.connection()
            await peer.send(OK + b"ok")
            await said.read_until(b"ok")
            peer, _ = await target.ask(get("/half"))
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            await target.visitor.read_until(b"half")
            visitor = target.visitor
            await target.proxy.drain(0.0)
            with pytest.raises(trio.BrokenResourceError):
                await visitor.read_all()
            assert await silent.read_all() == b""
            assert await said.read_all() == b"", "the whole answer was there"
            for peer in (silent, said):
                await peer.stream.aclose()
    assert not [line for line in logs if line["log_level"] == "error"]


async def test_hosts_are_learnt_anew_after_a_reload() -> None:
    async with rig(IngressLimits(reconnect_wait=0)) as target:
        await target.first_exchange()
        ingress = target.proxy.config.ingress
        assert ingress.http is not None
        moved = msgspec.structs.replace(ingress.http, domain="example.org")
        ingress = msgspec.structs.replace(ingress, http=moved)
        await target.proxy.reload(msgspec.structs.replace(target.proxy.config, ingress=ingress))
        visitor = await target.new_visitor()
        await visitor.send(get("/"))
        assert (await visitor.read_head()).startswith(b"HTTP/1.1 404 ")


async def test_a_device_that_may_not_go_on_gets_nothing() -> None:
    async with rig(IngressLimits(reconnect_wait=0)) as target:
        await target.first_exchange()
        disabled = DeviceConfig(name="dev1", token=Secret("token-of-dev1"), enabled=False)
        config = msgspec.structs.replace(target.proxy.config, devices=[disabled])
        await target.proxy.reload(config)
        await target.visitor.send(get("/"))
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 403 ")


async def test_each_of_many_connections_gets_its_own_answer() -> None:
    async with rig() as target:
        await target.first_exchange()

        async def visit(number: int) -> None:
            visitor = await target.new_visitor()
            closes = number % 2
            await visitor.send(get(f"/{number}", CLOSE if closes else ""))
            assert (b"Connection: close\r\n" in await visitor.read_head()) == closes
            if closes:
                assert await visitor.read_all() == b"%06d" % number
            else:
                assert await visitor.read_exactly(6) == b"%06d" % number
            await visitor.stream.aclose()

        async def answer(peer: Peer) -> None:
            number = int((await peer.read_head()).split()[1][1:])
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n%06d" % number)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(visit, number)
            for _ in range(100):
                nursery.start_soon(answer, await target.connection())
        await target.visitor.stream.aclose()
        await until_served(target.proxy, 0)


async def test_an_overlong_host_is_served_and_not_remembered() -> None:
    host = "dev1.localhost:" + "0" * 300 + "80"
    async with rig() as target:
        await target.first_exchange()
        for path in ("/1", "/2", "/3"):
            visitor = await target.new_visitor()
            await visitor.send(get(path, CLOSE, host=host))
            peer = await target.connection()
            assert (await peer.read_head()).startswith(b"GET " + path.encode())
            await peer.send(OK + b"ok")
            assert b"Connection: close\r\n" in await visitor.read_head()
            assert await visitor.read_all() == b"ok"


def test_names_are_forgotten_when_there_are_too_many() -> None:
    names, there = KnownNames(), Destination("dev1")
    for number in range(5000):
        names.learn((b"dev1.localhost:%d" % number, b"", b""), there)
    assert names.find((b"dev1.localhost:0", b"", b"")) is None
    assert names.find((b"dev1.localhost:4999", b"", b"")) == there
    assert names.find((b"dev1.localhost:4999", b"dev1", b"")) is None
    names.learn((b"x" * 300, b"y" * 60, b"z" * 41), there)
    assert names.find((b"x" * 300, b"y" * 60, b"z" * 41)) is None
