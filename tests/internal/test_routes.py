"""Every route, by the table itself: who is let in, which methods it takes, how errors look."""

from __future__ import annotations

import re

import pytest
import trio
import trio.testing

from support.internal import SECRET, running_bench
from tunnelmux.config import Secret
from tunnelmux.limits import IngressLimits, InternalLimits
from tunnelmux.proxy.internal import InternalSettings
from tunnelmux.proxy.internal.access import Access
from tunnelmux.proxy.internal.answers import CODES
from tunnelmux.proxy.internal.openapi import describe
from tunnelmux.proxy.internal.routes import Route, RouteTable


def path_of(route: Route) -> str:
    return re.sub(r"\{\w+\}", "some-token", route.path)


WRONG = {
    "nothing": "",
    "wrong secret": "Authorization: Bearer not-the-secret\r\n",
    "part of it": f"Authorization: Bearer {SECRET[:-1]}\r\n",
    "more than it": f"Authorization: Bearer {SECRET}x\r\n",
    "another scheme": f"Authorization: Basic {SECRET}\r\n",
    "no scheme": f"Authorization: {SECRET}\r\n",
    "empty": "Authorization: Bearer \r\n",
    "in the query": "",
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_every_route_is_shut_without_the_secret(wrong: str) -> None:
    async with running_bench() as bench, bench.agent(token="some-token"):
        assert len(bench.server.table.routes) >= 11
        for route in bench.server.table.routes:
            for method in route.methods:
                query = f"?secret={SECRET}&token=some-token" if wrong == "in the query" else ""
                reply = await bench.ask(method, path_of(route) + query, headers=WRONG[wrong])
                assert reply.status == 401, route
                assert reply.headers["www-authenticate"] == "Bearer"
                if method != "HEAD":
                    assert reply.code == "UNAUTHORIZED"
                    assert "secret" in reply.json["error"]["message"]
                assert SECRET[:-1].encode() not in reply.body
        assert await bench.store.exists("some-token")


async def test_a_stranger_does_not_learn_which_paths_there_are() -> None:
    async with running_bench() as bench:
        assert (await bench.ask("GET", "/no/such/path", headers="")).status == 401
        assert (await bench.ask("DELETE", "/internal/sessions", headers="")).status == 401


async def test_the_scheme_is_not_case_sensitive() -> None:
    async with running_bench() as bench:
        reply = await bench.ask("GET", "/healthz", headers=f"authorization: bearer {SECRET}\r\n")
        assert reply.status == 200


async def test_every_route_takes_its_methods_only_and_says_which() -> None:
    async with running_bench() as bench:
        of_path: dict[str, list[Route]] = {}
        for route in bench.server.table.routes:
            of_path.setdefault(route.path, []).append(route)
        for routes in of_path.values():
            allowed = [method for route in routes for method in route.methods]
            for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - {*allowed}:
                reply = await bench.ask(method, path_of(routes[0]))
                assert (reply.status, reply.code) == (405, "METHOD_NOT_ALLOWED"), (method, routes)
                wanted = " or ".join(route.method for route in routes)
                assert reply.json["error"]["message"] == f"{wanted} required"
                assert reply.headers["allow"] == ", ".join(allowed)


@pytest.mark.parametrize(
    ("target", "status", "code", "message"),
    [
        ("/internal/session/", 400, "MISSING_TOKEN", "token required in path"),
        ("/internal/session/abc/kick", 404, "NOT_FOUND", "unknown action: kick"),
        ("/internal/session/abc", 404, "NOT_FOUND", "session not found"),
        ("/internal", 404, "NOT_FOUND", "nothing is here: /openapi.json lists the paths"),
        ("/internal/sessions/", 404, "NOT_FOUND", "nothing is here: /openapi.json lists the paths"),
    ],
)
async def test_what_is_not_there_says_so(target: str, status: int, code: str, message: str) -> None:
    async with running_bench() as bench:
        reply = await bench.ask("GET", target)
        assert reply.status == status
        assert reply.json == {"error": {"code": code, "message": message}}


async def test_a_connection_serves_one_call_after_another() -> None:
    async with running_bench() as bench:
        caller = await bench.caller()
        for _ in range(3):
            assert (await caller.ask("GET", "/healthz")).json == {"status": "ok"}
            assert (await caller.ask("GET", "/nowhere")).status == 404
            assert (await caller.ask("HEAD", "/readyz")).body == b""


async def test_rubbish_is_answered_in_json_too() -> None:
    async with running_bench() as bench:
        caller = await bench.caller()
        await caller.send(b"GET / HTTP/1.1\r\nHost: a\r\nbad line\r\n\r\n")
        reply = await caller.read_reply()
        assert (reply.status, reply.code) == (400, "INVALID_REQUEST")


async def test_a_head_that_never_ends_is_given_up(autojump_clock: object) -> None:
    async with running_bench(http_limits=IngressLimits(head_timeout=3)) as bench:
        caller = await bench.caller()
        await caller.send(b"GET /healthz HT")
        started = trio.current_time()
        reply = await caller.read_reply()
        assert (reply.status, reply.code) == (408, "HEAD_TIMEOUT")
        assert trio.current_time() - started == pytest.approx(3)


async def test_a_head_over_the_limit_is_refused() -> None:
    async with running_bench(http_limits=IngressLimits(max_head_bytes=500)) as bench:
        reply = await bench.ask("GET", "/healthz", headers=f"X-Long: {'x' * 600}\r\n")
        assert (reply.status, reply.code) == (431, "HEAD_TOO_LARGE")


async def test_one_connection_too_many_is_told_so() -> None:
    async with running_bench(limits=InternalLimits(max_callers=2)) as bench:
        first, second = await bench.caller(), await bench.caller()
        assert (await first.ask("GET", "/healthz")).status == 200
        assert (await second.ask("GET", "/healthz")).status == 200
        reply = await (await bench.caller()).read_reply()
        assert (reply.status, reply.code) == (503, "TOO_MANY_CALLERS")
        assert "limits.max_callers" in reply.json["error"]["message"]
        assert reply.headers["retry-after"] == "1"
        await first.end()
        await first.read_all()
        await trio.testing.wait_all_tasks_blocked()
        assert (await bench.ask("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\n",
        b"GET /internal/sessions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer guessed\r\n\r\n",
    ],
    ids=["nothing", "half a head", "another secret"],
)
async def test_who_has_not_proved_that_it_may_call_gives_way(says: bytes) -> None:
    """Strangers with as many connections as there may be once kept the back end out."""
    async with running_bench(limits=InternalLimits(max_callers=4)) as bench:
        back_end = await bench.caller()
        assert (await back_end.ask("GET", "/healthz")).status == 200
        strangers = [await bench.caller() for _ in range(3)]
        for stranger in strangers:
            await stranger.send(says)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            assert (await (await bench.caller()).ask("GET", "/healthz")).status == 200
        assert (await back_end.ask("GET", "/healthz")).status == 200
        await trio.testing.wait_all_tasks_blocked()
        # Who has called stays, so that the next but one is refused.
        assert (await (await bench.caller()).ask("GET", "/healthz")).status == 200
        assert (await (await bench.caller()).read_reply()).code == "TOO_MANY_CALLERS"


async def test_a_caller_that_takes_no_answer_is_cut(autojump_clock: object) -> None:
    async with running_bench() as bench:
        caller = await bench.caller(capacity=1000)
        await caller.send(
            b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n"
            b"Authorization: Bearer %s\r\n\r\n" % SECRET.encode()
        )
        await trio.sleep(59)
        assert len(bench.server._callers) == 1
        await trio.sleep(2)
        assert bench.server._callers == set()


async def test_nobody_goes_on_with_a_secret_that_was_replaced() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        kept = await bench.caller()
        assert (await kept.ask("GET", "/healthz")).status == 200
        raw = await bench.client.open_stream("token-of-dev1")
        bench.server.configure(InternalSettings(access=Access(secret=Secret("another-secret"))))
        assert await kept.read_all() == b""
        assert (await bench.ask("GET", "/healthz")).status == 401
        field = "Authorization: Bearer another-secret\r\n"
        assert (await bench.ask("GET", "/healthz", headers=field)).status == 200
        await raw.send_all(b"goes on")
        assert await (await agent.stream()).read_exactly(7) == b"goes on"


# -- without a secret: loopback only -----------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:3801", "localhost:3801", "[::1]:3801", "LOCALHOST"])
async def test_without_a_secret_programs_of_this_machine_may_call(host: str) -> None:
    async with running_bench(secret=None) as bench:
        assert (await bench.ask("GET", "/healthz", headers="", host=host)).status == 200


async def test_without_a_secret_no_web_page_may_call() -> None:
    async with running_bench(secret=None) as bench, bench.agent():
        target = "/internal/session/token-of-dev1/close"
        reply = await bench.ask("POST", target, headers="Origin: https://evil.example\r\n")
        assert (reply.status, reply.code) == (403, "FORBIDDEN")
        reply = await bench.ask("GET", "/internal/events", headers="Sec-Fetch-Site: cross-site\r\n")
        assert (reply.status, reply.code) == (403, "FORBIDDEN"), "what looks for a picture"
        # A name of an attacker's that leads here makes the browser think it is the same site.
        reply = await bench.ask("GET", "/internal/sessions", headers="", host="evil.example:3801")
        assert (reply.status, reply.code) == (403, "FORBIDDEN")
        assert await bench.store.exists("token-of-dev1")


# -- what describes it -------------------------------------------------------------------------


async def test_the_description_has_every_route_and_no_other() -> None:
    async with running_bench() as bench:
        described = (await bench.ask("GET", "/openapi.json")).json
        found = {(m.upper(), p) for p, item in described["paths"].items() for m in item}
        assert found == {(r.method, r.path) for r in bench.server.table.routes}


async def test_a_route_that_is_not_described_cannot_be_added() -> None:
    with pytest.raises(KeyError):
        describe([Route("GET", "/internal/new")])


async def test_every_code_is_described_for_some_route_and_documented() -> None:
    from support.tree import ROOT

    page = (ROOT / "docs" / "internal-api.md").read_text()
    async with running_bench() as bench:
        described = (await bench.ask("GET", "/openapi.json")).body.decode()
        for code, (status, _) in CODES.items():
            assert code in described
            assert re.search(rf"\| `{code}` \| {status} \|", page), code
        for route in bench.server.table.routes:
            path = re.sub(r"\{(\w+)\}", r":\1", route.path)
            assert f"`{route.method} {path}`" in page, route


def test_a_path_parameter_is_decoded_after_the_path_was_split() -> None:
    table = RouteTable([Route("GET", "/internal/session/{token}")])
    [route] = table.routes
    assert route.match("/internal/session/a%2Fb%3D") == {"token": "a/b="}
    assert route.match("/internal/session/a/b") is None
    assert route.match("/internal/session/") is None
