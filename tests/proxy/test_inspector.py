"""The inspector: what it keeps of requests, what it hides, what it costs others, how it ends."""

from __future__ import annotations

import sys
from types import FrameType

import trio
import trio.lowlevel
from trio.testing import MockClock

from support.carried_http import OK, Target, get, rig
from tunnelmux.http.tap import MessageCounter
from tunnelmux.proxy.visitors.inspector import Inspector, RunningInspection
from tunnelmux.sessions.inspections import curl_command, masked_fields, masked_target


def inspect(target: Target, *, bodies: bool = False, service: str = "web") -> RunningInspection:
    return target.proxy.visits.inspector.begin(
        "inspection-1", "dev1", service, 600, bodies=bodies, asked_by="ada"
    )


async def over(inspection: RunningInspection, count: int) -> None:
    """Return when so many requests have ended."""
    with trio.fail_after(30):
        while (
            sum(one.show(bodies=False).seconds is not None for one in inspection.requests) < count
        ):
            await trio.lowlevel.checkpoint()


async def test_a_request_is_kept_without_its_secrets_and_others_stay_in_the_pump() -> None:
    async with rig(announces=True) as target:
        figures = target.proxy.visits.figures
        peer, _ = await target.ask(get("/before"))
        await peer.send(OK + b"ok")
        await target.visitor.read_until(b"ok")
        assert figures.by_pump.by_class["2xx"] == 1
        inspection = inspect(target)
        head = "Authorization: Bearer secret-1\r\nCookie: a=secret-2; b=secret-3\r\nAccept: x\r\n"
        peer, _ = await target.ask(get("/page?x=1&access_token=secret-4", head))
        answer = (
            b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=secret-5; Path=/\r\nContent-Length: 2\r\n\r\nok"
        )
        await peer.send(answer)
        await target.visitor.read_until(b"\r\n\r\nok")
        await over(inspection, 1)
        shown = inspection.requests[0].show(bodies=True)
        assert figures.by_pump.by_class["2xx"] == 1
        assert (shown.method, shown.target) == ("GET", "/page?x=1&access_token=***")
        assert ("Authorization", "Bearer ***") in shown.headers
        assert ("Cookie", "a=***; b=***") in shown.headers
        assert ("Set-Cookie", "sid=***; Path=/") in shown.answer_headers
        assert (shown.status, shown.bytes_out, shown.body, shown.answer_body) == (
            200,
            2,
            None,
            None,
        )
        assert shown.answered_after is not None
        assert shown.seconds is not None
        assert "secret" not in repr(shown)
        target.proxy.visits.inspector.end(inspection)
        peer, _ = await target.ask(get("/after"))  # the connection is the pump's again
        await peer.send(OK + b"ok")
        await target.visitor.read_until(b"ok")
        assert figures.by_pump.by_class["2xx"] == 2


async def test_bodies_are_kept_up_to_64_kib_where_they_are_asked_for() -> None:
    async with rig(announces=True) as target:
        inspection = inspect(target, bodies=True)
        post = b"POST /p HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: 3\r\n\r\nabc"
        peer, _ = await target.ask(post)
        await peer.read_exactly(3)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"z" * 70000)
        await target.visitor.read_until(b"\r\n\r\n")
        await target.visitor.read_exactly(70000 - 1)
        await over(inspection, 1)
        shown = inspection.requests[0].show(bodies=True)
    assert (shown.body, shown.bytes_in) == (b"abc", 3)
    assert (shown.answer_body, shown.bytes_out) == (b"z" * 65536, 70000)
    command = curl_command(shown)
    assert command == "curl --request POST --data-binary abc http://dev1.localhost/p"


async def test_messages_of_a_websocket_are_counted() -> None:
    async with rig(announces=True) as target:
        inspection = inspect(target)
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        peer, _ = await target.ask(get("/ws", upgrade))
        await peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        await target.visitor.read_head()
        await target.visitor.send(b"\x81\x81\0\0\0\0a" * 3 + b"\x89\x80\0\0\0\0")
        await peer.read_exactly(7 * 3 + 6)
        await peer.send(b"\x01\x01a\x80\x01b")
        await target.visitor.read_exactly(6)
        shown = inspection.requests[0].show(bodies=False)
        assert shown.is_websocket
        assert (shown.status, shown.messages_in, shown.messages_out) == (101, 3, 1)


async def test_it_ends_by_itself_and_keeps_nothing(autojump_clock: MockClock) -> None:
    inspector = Inspector()
    inspection = inspector.begin("i-1", "dev1", "web", 60, bodies=True, asked_by="ada")
    assert inspector.find("dev1", None, "web") is inspection
    assert inspector.find("dev1", "other", "web") is None
    assert inspector.find("dev2", "web", "web") is None
    await trio.sleep(61)
    assert inspector.find("dev1", "web", "") is None
    assert not inspector.is_on
    assert (list(inspection.requests), inspector.kept_bytes) == ([], 0)


def test_a_message_is_counted_whatever_the_parts_it_comes_in() -> None:
    frames = b"\x82\x7e\x01\x00" + b"x" * 256 + b"\x81\x7f" + (70000).to_bytes(8, "big")
    frames += b"y" * 70000 + b"\x88\x00" + b"\x02\x00\x80\x00"
    for step in (1, 3, 1000, len(frames)):
        counter = MessageCounter()
        for at in range(0, len(frames), step):
            counter.feed(frames[at : at + step])
        assert counter.count == 3


def test_what_may_be_a_secret_is_hidden() -> None:
    fields = [(b"X-Api-Key", b"k"), (b"X-CSRF-Token", b"t"), (b"Location", b"/a?code=1&b=2")]
    fields += [(b"Referer", b"https://u:p@h/x?jwt=z"), (b"Cookie", b"alone"), (b"Age", b"3")]
    assert [value for _, value in masked_fields(fields)] == [
        "***", "***", "/a?code=***&b=2", "https://***@h/x?jwt=***", "***", "3",
    ]  # fmt: skip
    assert (
        masked_target("/x?a=1&password=p&sig=s#token=t") == "/x?a=1&password=***&sig=***#token=***"
    )


async def test_while_nothing_is_inspected_none_of_its_code_runs() -> None:
    ours = ("visitors/inspector.py", "http/tap.py")
    called: set[str] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.endswith(ours):
            called.add(frame.f_code.co_name)

    async with rig() as target:
        figures = target.proxy.visits.figures
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            await target.first_exchange()  # by h11
            peer, _ = await target.ask(get("/1"))
            await peer.send(OK + b"ok")
            await target.visitor.read_until(b"ok")
        finally:
            sys.setprofile(before)
        assert (figures.by_pump.by_class["2xx"], figures.by_h11.by_class["2xx"]) == (1, 1)
        assert called == {"is_on"}  # whether a dictionary is empty
        inspection = inspect(target)
        sys.setprofile(note)
        try:
            peer, _ = await target.ask(get("/2"))
            await peer.send(OK + b"ok")
            await over(inspection, 1)
        finally:
            sys.setprofile(before)
    assert {"find", "tap", "began", "answered", "end"} <= called
