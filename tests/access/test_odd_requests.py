"""Requests that would get by the rule, or be taken for another visitor's: one behind the other on a
connection, and with odd names, paths and fields."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from support.visiting import World, visiting

CLOSE = "Connection: close\r\n"


def request(
    cookie: str, *, target: str = "/x", host: str = "dev1.localhost", more: str = ""
) -> str:
    shown = f"Cookie: {cookie}\r\n" if cookie else ""
    return f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{shown}{more}\r\n"


async def answers(world: World, *requests: str) -> list[str]:
    """The answers to requests that are sent at once on one connection, of which the last closes."""
    stream = await trio.open_tcp_stream("127.0.0.1", world.this.port)
    got = b""
    async with stream:
        with trio.fail_after(60):
            await stream.send_all("".join(requests).encode("latin-1"))
            while more := await stream.receive_some():
                got += more
    return got.decode("latin-1").split("HTTP/1.1 ")[1:]


@pytest.mark.slow
async def test_each_request_is_judged_by_what_it_shows_itself(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        cookie = (await world.come_in(await world.person()))["Cookie"]
        await world.this.warm_up({"Cookie": cookie})

        async def statuses(*requests: str) -> list[str]:
            got = await answers(world, *requests)
            # The target's answer shows the request, whose line has the version too.
            return [one[:3] for one in got if one[:3].isdigit()]

        good, bad = request(cookie), request("")
        assert await statuses(good, bad, good, request("", more=CLOSE)) == [
            "200",
            "401",
            "200",
            "401",
        ]
        assert await statuses(bad, request(cookie, more=CLOSE)) == ["401", "200"]
        other = request(cookie, host="web--dev1.localhost")
        assert await statuses(good, other, request(cookie, more=CLOSE)) == ["200", "401", "200"]
        for host in ("DEV1.localhost", "dev1.localhost.", "dev1.localhost:80"):
            assert await statuses(request("", host=host, more=CLOSE)) == ["401"]
        for target in (
            "//.well-known/tunnelmux/ticket?ticket=x",
            "/%2ewell-known/tunnelmux/link",
            "/.WELL-KNOWN/tunnelmux/link",
            "/x/../.well-known/tunnelmux/link",
            "HTTP://DEV1.LOCALHOST/x",
        ):
            assert await statuses(request("", target=target, more=CLOSE)) == ["401"], target
        for target in (
            "/.well-known/tunnelmux/link?link=x",
            "http://dev1.localhost/.well-known/tunnelmux/ticket",
        ):
            assert await statuses(request(cookie, target=target, more=CLOSE)) == ["403"], target


@pytest.mark.slow
async def test_no_field_of_a_visitor_says_who_it_is(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        anna = await world.person()
        cookie = (await world.come_in(anna))["Cookie"]
        for more in (
            "Tunnelmux-User: evil\r\nTUNNELMUX-ROLES: evil\r\n",
            "Tunnelmux_User: evil\r\ntunnelmux_roles: evil\r\n",
            "Tunnelmux-Assertion: evil\r\n",
            "Connection: Tunnelmux-User, tunnelmux-roles\r\n",
        ):
            answer = "".join(await answers(world, request(cookie, more=more + CLOSE)))
            assert answer.startswith("200")
            assert answer.count("unnelmux-User: ") == 1
            assert answer.count(f"Tunnelmux-User: {anna.user.id}") == 1
            assert answer.count("Tunnelmux-Roles: viewer") == 1
            assert "evil" not in answer
