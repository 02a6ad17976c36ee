"""The request feed: every way in, bounded, and nothing of it while nobody watches."""

from __future__ import annotations

import pytest
import trio

from support.carried_http import OK, get, rig
from support.ingress import running_site
from tunnelmux.proxy.visitors.feed import FeedReader, RequestFeed
from tunnelmux.sessions import RequestFilter, RequestSeen


async def taken(reader: FeedReader) -> RequestSeen:
    with trio.fail_after(30):
        await reader.wait()
    [seen], dropped = reader.take(10)
    assert dropped == 0
    return seen


async def test_a_request_that_the_pump_carries_is_told_and_stays_in_the_pump() -> None:
    async with rig() as target:
        await target.first_exchange()  # by h11
        counts = target.proxy.visits.figures
        wanted = RequestFilter(device="dev1", path="/1")
        with target.proxy.visits.feed.reading(wanted, 10) as reader:
            peer, _ = await target.ask(get("/1?token=hidden"))
            await peer.send(OK + b"ok")
            await target.visitor.read_until(b"ok")
            seen = await taken(reader)
        assert (counts.by_pump.by_class["2xx"], counts.by_h11.by_class["2xx"]) == (1, 1)
    assert (seen.way, seen.device, seen.method, seen.path) == ("http", "dev1", "GET", "/1")
    assert (seen.status, seen.bytes_in, seen.bytes_out) == (200, 0, 2)
    assert seen.visitor.startswith("127.0.0.1:")
    assert 0 <= seen.seconds < 30


async def test_it_is_told_also_where_the_log_has_no_such_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunnelmux.observability.logs._is_wanted", False)
    async with rig() as target:
        await target.first_exchange()
        feed = target.proxy.visits.feed
        with feed.reading(RequestFilter(path="/later"), 10) as reader:
            peer, _ = await target.ask(get("/later/0"))
            for number in range(2):
                if number:
                    await target.visitor.send(get(f"/later/{number}"))
                    await peer.read_head()
                await peer.send(OK + b"ok")
                await target.visitor.read_until(b"ok")
                assert (await taken(reader)).path == f"/later/{number}"


async def test_requests_by_h11_refusals_and_connections_are_told() -> None:
    async with running_site() as site:
        feed = site.http.visits.feed
        with feed.reading(RequestFilter(), 10) as reader:
            visitor = site.visit()
            await visitor.send(b"GET /x HTTP/1.1\r\nHost: dev1.localhost\r\n\r\n")
            await visitor.read_head()
            seen = await taken(reader)
        assert (seen.status, seen.reason, seen.path) == (503, "device-offline", "/x")
        with site.tcp.visits.feed.reading(RequestFilter(service="ssh"), 10) as reader:
            async with site.agent() as agent:
                peer = site.dial("ssh")
                stream = await agent.stream()
                await stream.read_head()
                await stream.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
                await peer.read_exactly(5)
                await stream.end()
                await peer.end()
                seen = await taken(reader)
        assert (seen.way, seen.service, seen.bytes_out) == ("tcp", "ssh", 5)


def seen_at(path: str, status: int = 200, service: str = "web") -> dict[str, object]:
    return {"device": "dev1", "service": service, "path": path, "status": status}


def test_a_reader_that_does_not_read_loses_the_oldest_and_is_told_how_many() -> None:
    feed = RequestFeed()
    with feed.reading(RequestFilter(), 3) as reader:
        for number in range(5):
            feed.tell("http", seen_at(f"/{number}"))
        found, dropped = reader.take(2)
        assert ([one.path for one in found], dropped) == (["/2", "/3"], 2)
        found, dropped = reader.take(2)
        assert ([one.path for one in found], dropped) == (["/4"], 0)
    assert feed.dropped == 2
    assert not feed.is_read


@pytest.mark.parametrize(
    ("said", "paths"),
    [
        ({"status": "5xx"}, ["/b"]),
        ({"status": "404, 502"}, ["/b", "/a/c"]),
        ({"path": "/a"}, ["/a", "/a/c"]),
        ({"path": "*/c"}, ["/a/c"]),
        ({"service": "other"}, ["/d"]),
        ({"device": "dev2"}, []),
        ({"device": "dev1", "status": "2xx", "path": "/a"}, ["/a"]),
    ],
)
def test_filters(said: dict[str, str], paths: list[str]) -> None:
    feed, wanted = RequestFeed(), RequestFilter.parse(said)
    assert RequestFilter.parse(wanted.query()) == wanted
    with feed.reading(wanted, 10) as reader:
        feed.tell("http", seen_at("/a"))
        feed.tell("http", seen_at("/b", 502))
        feed.tell("http", seen_at("/a/c", 404))
        feed.tell("http", seen_at("/d", service="other"))
        assert [one.path for one in reader.take(10)[0]] == paths


@pytest.mark.parametrize(
    "said", [{"status": "6xx"}, {"status": "40"}, {"path": "a"}, {"path": "/" * 300}]
)
def test_a_filter_that_cannot_be_is_refused(said: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(said))):
        RequestFilter.parse(said)
