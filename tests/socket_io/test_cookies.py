"""Sticky sessions: the client keeps its server's cookies and shows them, and lives without, too."""

from __future__ import annotations

import pytest
import trio

from support.balancer import COOKIE, balancer
from support.socketio_peers import API_KEY, PROXY_ID
from support.socketio_proxy import agent_side
from tunnelmux.errors import ConnectError
from tunnelmux.socketio import connect_socketio, parse_socketio_url
from tunnelmux.socketio.cookies import CookieJar

AUTH = {"proxyId": PROXY_ID, "apiKey": API_KEY}


def url_of(port):
    return parse_socketio_url(f"http://127.0.0.1:{port}", namespace="/proxy")


async def exchange(socket):
    """Something goes there and something comes back."""
    await socket.emit("command_result", {"commandId": "c", "result": {}})
    with trio.fail_after(20):
        assert (await socket.receive()).args == [{"success": True, "commandId": "c"}]


@pytest.mark.parametrize("transports", ["auto", "polling", "websocket"])
async def test_a_balancer_that_keeps_clients_at_their_server_by_a_cookie(transports):
    async with agent_side() as side, balancer(side.port) as front:
        async with connect_socketio(url_of(front.port), auth=AUTH, transports=transports) as socket:
            await exchange(socket)
        assert front.strayed == []


async def test_behind_a_balancer_without_cookies_auto_goes_on_by_websocket():
    async with agent_side() as side, balancer(side.port, sets_cookie=False) as front:
        async with connect_socketio(url_of(front.port), auth=AUTH) as socket:
            await exchange(socket)
            assert side.server.connected == [PROXY_ID]
        assert front.strayed


async def test_polling_alone_behind_a_balancer_without_cookies_says_what_to_do():
    async with agent_side() as side, balancer(side.port, sets_cookie=False) as front:
        with pytest.raises(ConnectError, match="sticky sessions"):
            async with connect_socketio(url_of(front.port), auth=AUTH, transports="polling"):
                pass


# -- the jar --------------------------------------------------------------------------------


def jar(*, is_secure=True, most=16, host="main.example.com"):
    return CookieJar(host, "/socket.io/", is_secure=is_secure, most=most)


async def shown(*cookies, **more):
    """What a jar that got these shows."""
    one = jar(**more)
    one.take([(b"Set-Cookie", cookie.encode()) for cookie in cookies])
    return b"".join(value for _, value in one.fields()).decode()


FAR, PAST = "Fri, 31 Dec 2055 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"


@pytest.mark.parametrize(
    ("cookies", "expected"),
    [
        (["a=1"], "a=1"),
        (["a=1; Path=/", "b=2; HttpOnly; SameSite=None; Secure"], "b=2; a=1"),
        (["a=1", "a=2"], "a=2"),
        (["a=1; Path=/", "a=2; Path=/socket.io"], "a=2; a=1"),
        (["a=1=2; Path=/socket.io/"], "a=1=2"),
        (['a="x y"'], 'a="x y"'),
        (["a=; Path=/"], "a="),
        (["a=1; Path=/other"], ""),
        (["a=1; Path=/socket"], ""),
        (["a=1; Domain=example.com", "b=2; Domain=.main.example.com"], "a=1; b=2"),
        (["a=1; Domain=other.com", "b=2; Domain=in.example.com", "c=3; Domain=le.com"], ""),
        ([f"a=1; Expires={FAR}"], "a=1"),
        (["a=1", f"a=; Expires={PAST}"], ""),
        (["a=1", "a=; Max-Age=0"], ""),
        ([f"a=1; Max-Age=60; Expires={PAST}"], "a=1"),
        (["a=1; Max-Age=soon; Expires=never"], "a=1"),
        (["nothing", "=1", "", ";"], ""),
        ([f"a={'x' * 4096}"], ""),
    ],
)
async def test_the_jar_keeps_what_is_for_it(cookies, expected):
    assert await shown(*cookies) == expected


async def test_secure_cookies_go_under_tls_only():
    assert await shown("a=1; Secure", is_secure=False) == ""


async def test_an_address_has_no_parent_domain():
    assert await shown("a=1; Domain=0.0.1", host="127.0.0.1") == ""


async def test_a_cookie_ends_at_its_time(autojump_clock):
    one = jar()
    one.take([(b"set-cookie", b"a=1; Max-Age=60")])
    await trio.sleep(59)
    assert one.fields() == [(b"Cookie", b"a=1")]
    await trio.sleep(2)
    assert one.fields() == []


async def test_there_are_so_many_cookies_and_the_oldest_makes_room():
    assert await shown("a=1", "b=2", "c=3", most=2) == "b=2; c=3"
    assert await shown("a=1", "b=2", "a=3", "c=4", most=2) == "a=3; c=4"


async def test_no_cookie_is_in_a_repr():
    one = jar()
    one.take([(b"Set-Cookie", COOKIE)])
    assert repr(one) == "<CookieJar with 1 cookies>"
