"""Logins that belong to a connection (NTLM, Negotiate), in every way in."""

from __future__ import annotations

import pytest
import trio

from support.carried_http import OK, Target, get, rig
from support.http_rig import Peer

CHALLENGE = b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: %b\r\nContent-Length: 2\r\n\r\nno"


async def answer(target: Target, peer: Peer, path: bytes, answer: bytes) -> bytes:
    """Answer the next request on this connection of the target; what the visitor sees, and the
    request's head."""
    head = await peer.read_head()
    assert head.startswith(b"GET " + path + b" ")
    assert b"Connection: close" not in head, "the login would end with this request"
    await peer.send(answer)
    seen = await target.visitor.read_head()
    await target.visitor.read_exactly(2)
    assert b"Connection: close" not in seen
    return seen


async def log_in(target: Target, extra: str = "", scheme: str = "NTLM") -> Peer:
    """Three legs and a request behind them; the connection of the target that saw all of them."""
    await target.visitor.send(get("/1", extra + f"Authorization: {scheme} type1\r\n"))
    peer = await target.connection()
    challenge = CHALLENGE % f"{scheme} type2".encode()
    assert b" 401 " in await answer(target, peer, b"/1", challenge)
    await target.visitor.send(get("/2", extra + f"Authorization: {scheme} type3\r\n"))
    assert b" 200 " in await answer(target, peer, b"/2", OK + b"ok")
    await target.visitor.send(get("/3", extra))
    assert b" 200 " in await answer(target, peer, b"/3", OK + b"ok")
    return peer


@pytest.mark.parametrize("scheme", ["NTLM", "Negotiate", "ntlm"])
@pytest.mark.parametrize("way", ["kept", "direct", "h11"])
async def test_a_login_stays_on_one_connection(way: str, scheme: str) -> None:
    async with rig() as target:
        if way != "h11":
            target.way = way
            await target.first_exchange()
        await log_in(target, scheme=scheme)


@pytest.mark.parametrize("way", ["kept", "direct", "h11"])
async def test_a_login_that_begins_with_heads_stays_on_one_connection(way: str) -> None:
    """`curl --ntlm -I`: the answers announce bodies that do not follow."""
    async with rig() as target:
        if way != "h11":
            target.way = way
            await target.first_exchange()
        peer = None
        for number, login in enumerate(("NTLM type1", "NTLM type3", "")):
            extra = f"Authorization: {login}\r\n" if login else ""
            await target.visitor.send(get(f"/{number}", extra).replace(b"GET", b"HEAD", 1))
            peer = peer or await target.connection()
            assert (await peer.read_head()).startswith(b"HEAD /%d " % number)
            await peer.send((CHALLENGE % b"NTLM type2" if number == 0 else OK).removesuffix(b"no"))
            await target.visitor.read_head()


async def test_a_login_at_a_service_whose_host_is_replaced() -> None:
    """Both ends go by h11 all the time."""
    async with rig(host="intranet") as target:
        await log_in(target)


async def test_requests_that_only_h11_takes_stay_on_it_too() -> None:
    async with rig() as target:
        await log_in(target, "TE: trailers\r\nConnection: TE\r\n")


@pytest.mark.parametrize("way", ["kept", "direct"])
async def test_a_login_in_the_pump_goes_on_by_h11(way: str) -> None:
    async with rig() as target:
        target.way = way
        await target.first_exchange()
        peer = await log_in(target)
        for path in (b"/h11", b"/again"):
            await target.visitor.send(get(path.decode(), "TE: trailers\r\nConnection: TE\r\n"))
            assert b" 200 " in await answer(target, peer, path, OK + b"ok")
        await target.visitor.send(get("/plain", "Authorization: NTLM type1\r\n"))
        forged = OK.replace(b"OK\r\n", b"OK\r\nTunnelmux-Reason: x\r\n")
        assert b"Tunnelmux" not in await answer(target, peer, b"/plain", forged + b"ok")
        await target.visitor.stream.aclose()
        assert await _is_over(peer)


async def test_a_login_that_nobody_goes_on_with_is_over() -> None:
    async with rig() as target:
        target.way = "direct"
        await target.first_exchange()
        peer = await log_in(target)
        await target.visitor.stream.aclose()
        assert await _is_over(peer)


async def _is_over(peer: Peer) -> bool:
    try:
        return await peer.read_all() == b""
    except trio.BrokenResourceError:
        return True


async def test_a_target_that_ended_the_connection_is_asked_on_another() -> None:
    async with rig(host="intranet") as target:
        peer = await log_in(target)
        await peer.stream.aclose()
        await target.visitor.send(get("/4", "Authorization: NTLM type1\r\n"))
        again = await target.connection()
        assert b" 401 " in await answer(target, again, b"/4", CHALLENGE % b"NTLM type2")


async def test_another_visitor_never_gets_the_connection_of_a_login() -> None:
    async with rig() as target:
        target.way = "kept"
        await target.first_exchange()
        peer = await log_in(target)
        await target.visitor.stream.aclose()
        assert await _is_over(peer)
        target.visitor = await target.new_visitor()
        await target.visitor.send(get("/other"))
        other = await target.connection()
        assert (await other.read_head()).startswith(b"GET /other ")


@pytest.mark.parametrize("way", ["kept", "direct", "h11", "site"])
async def test_behind_a_trusted_proxy_a_login_ends_with_its_request(way: str) -> None:
    """It sends the requests of several people on one connection, as Caddy does."""
    async with rig(trusted_fields=[], host="intranet" if way == "site" else None) as target:
        if way in {"kept", "direct"}:
            target.way = way
            await target.first_exchange()
        for number, login in enumerate(("NTLM type1", "NTLM type3", "")):
            client = f"X-Forwarded-For: 198.51.100.{number}\r\n"
            extra = f"Authorization: {login}\r\n" if login else ""
            await target.visitor.send(get(f"/{number}", client + extra))
            peer = await target.connection()
            assert (await peer.read_head()).startswith(b"GET /%d " % number)
            reply = CHALLENGE % b"NTLM type2" if number == 0 else OK + b"ok"
            await peer.send(reply)
            await target.visitor.read_head()
            await target.visitor.read_exactly(2)
            if login:
                assert await _is_over(peer), "the next one would be logged in as this one"


@pytest.mark.parametrize("way", ["kept", "direct", "h11", "site"])
async def test_a_trusted_proxy_that_names_no_visitor_counts_as_one(way: str) -> None:
    async with rig(trusted_fields=[], host="intranet" if way == "site" else None) as target:
        if way in {"kept", "direct"}:
            target.way = way
            await target.first_exchange()
        await log_in(target)


@pytest.mark.parametrize(
    "said", ["X-Forwarded-For: 198.51.100.2", "Forwarded: for=198.51.100.2", "X-Real-IP: ::2"]
)
@pytest.mark.parametrize("way", ["kept", "direct", "h11", "site"])
async def test_the_login_ends_before_a_request_with_a_name(way: str, said: str) -> None:
    """The proxy says now that it asks for several people, and this may be another one."""
    async with rig(trusted_fields=[], host="intranet" if way == "site" else None) as target:
        if way in {"kept", "direct"}:
            target.way = way
            await target.first_exchange()
        peer = await log_in(target)
        await target.visitor.send(get("/other", f"{said}\r\n"))
        assert await _is_over(peer), "it would be logged in as the first one"
        other = await target.connection()
        assert (await other.read_head()).startswith(b"GET /other ")
        await other.send(OK + b"ok")
        assert b" 200 " in await target.visitor.read_head()


async def test_the_login_ends_before_a_request_with_a_name_that_only_h11_takes() -> None:
    """The pump leaves its connection to the target to h11, which does not use it."""
    async with rig(trusted_fields=[]) as target:
        target.way = "direct"
        await target.first_exchange()
        peer = await log_in(target)
        said = "X-Forwarded-For: 198.51.100.2\r\nTE: trailers\r\nConnection: TE\r\n"
        await target.visitor.send(get("/other", said))
        assert await _is_over(peer), "it would be logged in as the first one"
        other = await target.connection()
        assert (await other.read_head()).startswith(b"GET /other ")


@pytest.mark.parametrize("way", ["kept", "direct"])
async def test_a_trusted_proxy_may_keep_connections_with_logins_to_one_visitor(way: str) -> None:
    async with rig(trusted_fields=[], proxies_keep_logins=True) as target:
        target.way = way
        await target.first_exchange()
        await log_in(target, "X-Forwarded-For: 198.51.100.1\r\n")
