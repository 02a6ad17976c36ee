"""POST /internal/forward/http: what reaches the device, what comes back, and every way to fail."""

from __future__ import annotations

import base64
from functools import partial

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from support.http_rig import Peer
from support.internal import SECRET, Bench, Reply, running_bench
from tunnelmux.limits import IngressLimits, InternalLimits, Limits
from tunnelmux.sessions import LocalHandle

TOKEN = "token-of-dev1"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def forward(bench: Bench, token: str = TOKEN, **wanted: object) -> Reply:
    return await bench.ask("POST", "/internal/forward/http", {"session_token": token, **wanted})


def error_of(reply: Reply) -> tuple[int, str, str]:
    error = reply.json["error"]
    assert sorted(error) == ["code", "message"]
    return reply.status, error["code"], error["message"]


async def test_a_request_goes_there_and_its_answer_comes_back() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        replies: list[Reply] = []

        async def call() -> None:
            replies.append(
                await forward(
                    bench,
                    method="POST",
                    path="/api/devices?x=1",
                    headers={"X-Custom": "value", "Authorization": "for the device"},
                    body=b64(b'{"name": "a"}'),
                )
            )

        nursery.start_soon(call)
        stream = await agent.stream()
        head = await stream.read_head()
        assert await stream.read_exactly(13) == b'{"name": "a"}'
        await stream.send(
            b"HTTP/1.1 201 Created\r\ncontent-type: text/plain\r\nset-cookie: a=1\r\n"
            b"Set-Cookie: b=2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n"
        )
    assert head == (
        b"POST /api/devices?x=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Custom: value\r\n"
        b"Authorization: for the device\r\nContent-Length: 13\r\nConnection: close\r\n\r\n"
    )
    assert replies[0].status == 200
    assert replies[0].json == {
        "status": 201,
        "headers": {"Content-Type": ["text/plain"], "Set-Cookie": ["a=1", "b=2"]},
        "body": b64(b"yes"),
    }


async def test_what_is_left_out_has_the_defaults_of_the_contract() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(partial(forward, bench, method=None, headers=None, body="", extra=1))
        head = await agent.serve(OK)
    assert head == b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


async def test_the_token_may_stand_in_the_query_or_in_a_field() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        for target, field in (
            (f"/internal/forward/http?token={TOKEN}", ""),
            ("/internal/forward/http", f"Tunnelmux-Session-Token: {TOKEN}\r\n"),
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agent.serve, OK)
                reply = await bench.ask(
                    "POST", target, {}, headers=f"Authorization: Bearer {SECRET}\r\n{field}"
                )
                assert reply.json["status"] == 200


async def test_fields_that_frame_the_message_are_set_here_and_not_by_the_caller() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        fields = {
            "Content-Length": "999",
            "Transfer-Encoding": "chunked",
            "Connection": "keep-alive, X-Hop",
            "X-Hop": "1",
            "Expect": "100-continue",
            "Upgrade": "websocket",
            "host": "printer.example",
            "Tunnelmux-Service": "web",
        }
        nursery.start_soon(partial(forward, bench, headers=fields))
        head = await agent.serve(OK)
    assert head == (
        b"GET / HTTP/1.1\r\nHost: printer.example\r\nTunnelmux-Service: web\r\n"
        b"Connection: close\r\n\r\n"
    )


async def test_a_path_is_encoded_as_a_url_is() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(partial(forward, bench, path="/a b/ü?q=%20#part"))
        head = await agent.serve(OK)
    assert head.startswith(b"GET /a%20b/%C3%BC?q=%20 HTTP/1.1\r\n")


async def test_a_bodiless_answer_has_no_body_key() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, b"HTTP/1.1 204 No Content\r\n\r\n")
        assert (await forward(bench, method="DELETE")).json == {"status": 204}


async def test_interim_answers_are_passed_over() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK)
        assert (await forward(bench)).json["body"] == b64(b"hi")


# -- the caller's faults: 400 ------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"session_token": 1}', b'{"headers": {"a": 1}}']
)
async def test_what_is_not_the_wanted_json(body: bytes) -> None:
    async with running_bench() as bench:
        reply = await bench.ask("POST", "/internal/forward/http", body=body)
        assert error_of(reply)[:2] == (400, "INVALID_JSON")


async def test_no_token() -> None:
    async with running_bench() as bench:
        reply = await bench.ask("POST", "/internal/forward/http", {"path": "/"})
        assert reply.status == 400
        assert reply.json == {
            "error": {"code": "MISSING_SESSION_TOKEN", "message": "session_token required"}
        }


async def test_a_body_that_is_not_base64() -> None:
    async with running_bench() as bench, bench.agent():
        reply = await forward(bench, body="not base64!")
        assert reply.status == 400
        assert reply.json == {
            "status": 0,
            "error": {"code": "INVALID_BODY", "message": "body base64 decode failed"},
        }


async def test_line_breaks_in_base64_are_allowed() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, OK)
        assert (await forward(bench, method="PUT", body="aGVs\r\nbG8=\n")).status == 200


@pytest.mark.parametrize(
    "wanted",
    [
        {"method": "GE T"},
        {"method": "GÉT"},
        {"method": "CONNECT"},
        {"path": "relative"},
        {"path": "http://elsewhere/"},
        {"path": "/a\r\nX-Injected: 1"},
        {"headers": {"X-A": "b\r\nX-Injected: 1"}},
        {"headers": {"X A": "b"}},
        {"headers": {"X-Ä": "b"}},
        {"headers": {"Host": "a\r\nb"}},
        {"timeout_ms": -1},
        {"timeout_ms": 60_001},
    ],
)
async def test_what_cannot_become_a_request(wanted: dict[str, object]) -> None:
    async with running_bench() as bench, bench.agent() as agent:
        reply = await forward(bench, **wanted)
        assert error_of(reply)[:2] == (400, "INVALID_REQUEST")
        assert agent.session.stream_count == 0


# -- the tunnel's faults: 502 ------------------------------------------------------------------


async def test_an_unknown_token_is_disconnected_and_not_shown() -> None:
    with capture_logs() as logs:
        async with running_bench() as bench:
            reply = await forward(bench, token="abcdefghijklmnopqrstuvwxyz0123")
    assert error_of(reply) == (502, "TUNNEL_DISCONNECTED", "session not connected")
    assert reply.json["status"] == 0
    assert "ghijk" not in reply.body.decode() + repr(logs)
    assert [(line["event"], line["token"]) for line in logs] == [
        ("internal forward failed", "abcdef…")
    ]


async def test_a_device_that_answers_nothing() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, b"")
        status, code, message = error_of(await forward(bench))
        assert (status, code) == (502, "TUNNEL_READ_ERROR")
        assert message.startswith("read response from tunnel failed: ")


async def test_a_device_that_cuts_its_answer() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, OK.replace(b": 2", b": 20"))
        assert error_of(await forward(bench))[:2] == (502, "TUNNEL_READ_ERROR")


async def test_a_device_that_resets_a_large_request() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:

        async def refuse() -> None:
            stream = await agent.session.accept_stream()
            await stream.receive_some()
            stream.reset()

        nursery.start_soon(refuse)
        reply = await forward(bench, method="POST", body=b64(b"x" * 1_000_000))
        assert error_of(reply)[:2] == (502, "TUNNEL_WRITE_ERROR")


async def test_a_device_that_answers_a_large_request_before_reading_it() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
        reply = await forward(bench, method="POST", body=b64(b"x" * 1_000_000))
        assert (reply.status, reply.json["status"]) == (200, 413)


async def test_a_session_that_can_take_no_stream() -> None:
    limits = Limits(max_streams=1)
    async with running_bench() as bench, bench.agent(limits=limits) as agent:
        handle = await bench.store.lookup(TOKEN)
        held = await handle.open_stream()
        status, code, message = error_of(await forward(bench))
        assert (status, code) == (502, "TUNNEL_ERROR")
        assert message.startswith("open stream failed: ")
        await held.aclose()
        agent.session.go_away()


async def test_a_draining_session() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        agent.session.go_away()
        await trio.testing.wait_all_tasks_blocked()
        reply = await forward(bench)
        # With no stream left, the session may be over already: then it is disconnected.
        assert error_of(reply)[:2] in {(502, "TUNNEL_ERROR"), (502, "TUNNEL_DISCONNECTED")}


# -- limits ------------------------------------------------------------------------------------


async def test_a_request_body_over_the_limit_is_sent_to_forward_raw() -> None:
    async with (
        running_bench(limits=InternalLimits(max_forward_body=1000)) as bench,
        bench.agent() as agent,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.serve, OK)
            assert (await forward(bench, method="PUT", body=b64(b"x" * 1000))).status == 200
        status, code, message = error_of(await forward(bench, body=b64(b"x" * 1001)))
        assert (status, code) == (413, "BODY_TOO_LARGE")
        assert "/internal/forward/raw" in message and "limits.max_forward_body" in message


@pytest.mark.parametrize(
    "framing", ["Content-Length: 2000000\r\n", "Transfer-Encoding: chunked\r\n"]
)
async def test_a_call_far_over_the_limit_is_refused_before_it_was_read(framing: str) -> None:
    async with running_bench(limits=InternalLimits(max_forward_body=1000)) as bench:
        caller = await bench.caller()
        head = "POST /internal/forward/http HTTP/1.1\r\nHost: a\r\n" + framing
        await caller.send(f"{head}Authorization: Bearer {SECRET}\r\n\r\n".encode())
        if "chunked" in framing:
            await caller.send(b"200000\r\n" + b" " * 0x200000 + b"\r\n")
        reply = await caller.read_reply()
        assert error_of(reply)[:2] == (413, "BODY_TOO_LARGE")
        assert reply.headers["connection"] == "close"


async def test_a_response_over_the_limit_is_sent_to_forward_raw() -> None:
    async with (
        running_bench(limits=InternalLimits(max_forward_body=1000)) as bench,
        bench.agent() as agent,
    ):
        for size, status in ((1000, 200), (1001, 413)):
            async with trio.open_nursery() as nursery:
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
                nursery.start_soon(agent.serve, head + b"x" * size)
                reply = await forward(bench)
                assert reply.status == status
        assert reply.code == "RESPONSE_TOO_LARGE"
        assert "/internal/forward/raw" in reply.json["error"]["message"]


@pytest.mark.parametrize("wanted", [{}, {"timeout_ms": 250_000}])
async def test_a_service_has_its_own_time_to_answer(
    wanted: dict[str, object], autojump_clock: object
) -> None:
    """As long as its device gives it; other services of the same device do not."""
    limits = InternalLimits(forward_timeout=7)
    async with running_bench(limits=limits) as bench, bench.agent() as agent:
        handle = await bench.store.find_device("dev1")
        assert isinstance(handle, LocalHandle)
        handle.timeouts = {"slow": 300.0}

        async def answer_late() -> None:
            stream = await agent.stream()
            await stream.read_head()
            await trio.sleep(200)
            await stream.send(OK)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_late)
            reply = await forward(bench, headers={"tunnelmux-service": "slow"}, **wanted)
        assert reply.json["status"] == 200
        if wanted:
            reply = await forward(bench, headers={"Tunnelmux-Service": "web"}, **wanted)
            assert error_of(reply)[:2] == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(("wanted", "seconds"), [({"timeout_ms": 1500}, 1.5), ({}, 7.0)])
async def test_a_device_that_is_too_slow(
    wanted: dict[str, object], seconds: float, autojump_clock: object
) -> None:
    limits = InternalLimits(forward_timeout=7)
    async with running_bench(limits=limits) as bench, bench.agent() as agent:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            streams: list[Peer] = []

            async def accept() -> None:
                streams.append(await agent.stream())

            nursery.start_soon(accept)
            reply = await forward(bench, **wanted)
        assert trio.current_time() - started == pytest.approx(seconds)
        assert error_of(reply)[:2] == (504, "TIMEOUT")
        with pytest.raises(trio.BrokenResourceError):  # the stream was not left behind
            await streams[0].read_all()


async def test_a_caller_that_never_sends_its_body(autojump_clock: object) -> None:
    async with running_bench(limits=InternalLimits(forward_timeout=7)) as bench:
        caller = await bench.caller()
        await caller.send(
            b"POST /internal/forward/http HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
            b"Authorization: Bearer %s\r\n\r\n{" % SECRET.encode()
        )
        assert error_of(await caller.read_reply())[:2] == (408, "HEAD_TIMEOUT")


async def test_forwards_of_one_session_are_counted_and_others_are_not_touched() -> None:
    limits = InternalLimits(max_forwards_per_session=2)
    async with (
        running_bench(limits=limits) as bench,
        bench.agent("dev1") as first,
        bench.agent("dev2") as second,
        trio.open_nursery() as nursery,
    ):
        for _ in range(2):
            nursery.start_soon(forward, bench)
        held = [await first.stream(), await first.stream()]
        reply = await forward(bench)
        assert error_of(reply)[:2] == (503, "TOO_MANY_FORWARDS")
        assert reply.headers["retry-after"] == "1"
        nursery.start_soon(second.serve, OK)
        assert (await forward(bench, token="token-of-dev2")).status == 200
        for stream in held:
            await stream.send(OK)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(first.serve, OK)
        assert (await forward(bench)).status == 200


# -- while sessions are being replaced ---------------------------------------------------------


async def test_a_safe_request_goes_again_over_the_session_that_took_over() -> None:
    async with running_bench() as bench, bench.agent() as old, trio.open_nursery() as nursery:
        replies: list[Reply] = []

        async def call() -> None:
            replies.append(await forward(bench, path="/twice"))

        nursery.start_soon(call)
        first = await old.stream()
        assert (await first.read_head()).startswith(b"GET /twice ")
        async with bench.agent() as new:
            assert (await new.serve(OK)).startswith(b"GET /twice ")
            await trio.testing.wait_all_tasks_blocked()
            assert replies[0].json["status"] == 200


async def test_a_request_that_is_not_idempotent_is_never_sent_twice() -> None:
    async with running_bench() as bench, bench.agent() as old, trio.open_nursery() as nursery:
        replies: list[Reply] = []

        async def call() -> None:
            replies.append(await forward(bench, method="POST", path="/once"))

        nursery.start_soon(call)
        await (await old.stream()).read_head()
        async with bench.agent() as new:
            await trio.testing.wait_all_tasks_blocked()
            assert error_of(replies[0])[:2] == (502, "TUNNEL_READ_ERROR")
            assert new.session.stream_count == 0


async def test_a_safe_request_waits_for_a_lost_device_as_visitors_do(
    autojump_clock: object,
) -> None:
    async with running_bench() as bench, trio.open_nursery() as nursery:
        async with bench.agent() as old:
            replies: list[Reply] = []

            async def call() -> None:
                replies.append(await forward(bench))

            nursery.start_soon(call)
            await (await old.stream()).read_head()
        await trio.sleep(3)
        async with bench.agent() as new:
            await new.serve(OK)
            await trio.sleep(1)
        assert replies[0].json["status"] == 200


async def test_a_device_that_does_not_return_is_given_up(autojump_clock: object) -> None:
    async with running_bench(http_limits=IngressLimits(reconnect_wait=5)) as bench:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            replies: list[Reply] = []

            async def call() -> None:
                replies.append(await forward(bench))

            async with bench.agent() as old:
                nursery.start_soon(call)
                await (await old.stream()).read_head()
        assert error_of(replies[0])[:2] == (502, "TUNNEL_READ_ERROR")
        assert trio.current_time() - started == pytest.approx(5, abs=0.1)


async def test_a_session_under_another_token_is_not_the_one_that_was_named() -> None:
    async with running_bench() as bench, bench.agent() as old, trio.open_nursery() as nursery:
        replies: list[Reply] = []

        async def call() -> None:
            replies.append(await forward(bench))

        nursery.start_soon(call)
        await (await old.stream()).read_head()
        async with bench.agent(token="new-token-of-dev1") as new:
            await trio.testing.wait_all_tasks_blocked()
            assert replies[0].code == "TUNNEL_READ_ERROR"
            assert new.session.stream_count == 0
