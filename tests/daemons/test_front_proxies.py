"""nginx and Caddy in front, as docs/operations.md has them: what the target sees of a visitor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from support.apis import live_api
from support.front_proxies import API, DOMAIN, FrontProxy, running_caddy, running_nginx
from support.http_rig import Peer
from support.origin import Origin, reply
from support.tenants import TEST, person
from support.tunnels import Tunnel
from tunnelmux.config import Address
from tunnelmux.http.forwarded import Hop, parse_forwarded
from tunnelmux.pump.field_names import FORWARDING_NAMES, field_kind

HOST = f"dev1.{DOMAIN}"

FRONTS = {"nginx": running_nginx, "caddy": running_caddy}

FAMILIES = [
    *(b"forwarded-for", b"x-forward-for", b"x-forwarded", b"x-forwarded-prefix"),
    *(b"x-forwarded-port", b"x-forwarded-server", b"x-forwarded-ssl", b"x-forwarded-scheme"),
    *(b"x-forwarded-user", b"x-real-ip", b"x-original-url", b"x-original-uri", b"x-original-host"),
    *(b"x-rewrite-url", b"x-remote-ip", b"x-remote-addr", b"x-remote-user", b"remote-user"),
    *(b"cf-connecting-ip", b"proxy-client-ip", b"wl-proxy-client-ip", b"client-cert"),
    *(b"x-client-cert", b"x-ssl-client-cert", b"x-webauth-user", b"x-auth-request-user"),
]
"""Those of the prefixes that programs are known to believe."""

CLAIMS = sorted({*FORWARDING_NAMES, *FAMILIES})


async def show_head(peer: Peer, head: bytes) -> None:
    await peer.send(reply(head))


async def shout(peer: Peer, _: bytes) -> None:
    await peer.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    await peer.send((await peer.read_exactly(5)).upper())


async def see_head(front: FrontProxy, lines: bytes) -> bytes:
    """The head that the target got of a request with these lines."""
    async with await front.visit(HOST) as stream:
        visitor = Peer(stream)
        host = f"{HOST}:{front.port}".encode()
        await visitor.send(b"GET /head HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (host, lines))
        assert (await visitor.read_head()).startswith(b"HTTP/1.1 200 ")
        return await visitor.read_until(b"\r\n\r\n")


async def see_websocket(front: FrontProxy) -> None:
    async with await front.visit(HOST) as stream:
        visitor = Peer(stream)
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        await visitor.send(b"GET /ws HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (HOST.encode(), upgrade))
        assert (await visitor.read_head()).startswith(b"HTTP/1.1 101 ")
        await visitor.send(b"hello")
        assert await visitor.read_exactly(5) == b"HELLO"


async def redirect_inside(peer: Peer, _: bytes) -> None:
    answer = reply(b"mine")
    await peer.send(answer.replace(b"\r\n\r\n", b"\r\nX-Accel-Redirect: /head\r\n\r\n", 1))


async def see_body(front: FrontProxy, path: bytes) -> bytes:
    async with await front.visit(HOST) as stream:
        visitor = Peer(stream)
        await visitor.send(
            b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (path, HOST.encode())
        )
        assert (await visitor.read_head()).startswith(b"HTTP/1.1 200 ")
        return await visitor.read_all()


async def see_absolute(front: FrontProxy) -> int:
    """The status of a request whose target names another device than its Host does."""
    async with await front.visit(HOST) as stream:
        visitor = Peer(stream)
        target = f"http://dev2.{DOMAIN}/head"
        lines = f"Host: {HOST}\r\nConnection: close\r\n"
        await visitor.send(f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode())
        return int((await visitor.read_head()).split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", FRONTS)
async def test_what_a_target_sees_behind_a_proxy_of_the_documentation(
    name: str,
    tunnel: Tunnel,
    origin: Origin,
    web: Address,
    tmp_path: Path,
    debian_program: Callable[[str, str], str],
) -> None:
    origin.pages |= {b"/head": show_head, b"/ws": shout, b"/accel": redirect_inside}
    settings = f'[ingress.http]\ndomain = "{DOMAIN}"\ntrusted_proxies = ["127.0.0.1"]\n'
    configuration = tunnel.proxy_file().replace("[ingress.http]\n", settings)
    tunnel.proxy = await tunnel.daemons.start("proxy", configuration)
    tunnel.at_tunnel = await tunnel.proxy.listening("tunnel.listen")
    tunnel.at_http = await tunnel.proxy.listening("ingress.http.listen")
    await tunnel.start_agent({"web": f"http://{web}", "admin": f"http://{web}"})
    spoofed = [b"%s: 6.6.6.6\r\n" % claim for claim in CLAIMS]
    spoofed += [b"%s: 6.6.6.6\r\n" % claim.replace(b"-", b"_") for claim in CLAIMS if b"-" in claim]
    spoofed += [
        b"Forwarded: for=6.6.6.6;proto=https\r\nX-Forwarded-For: 6.6.6.6\r\n",
        b"X-Forwarded-Proto: gopher\r\nX-Forwarded-Host: bank.example\r\n",
        b"Tunnelmux-Device: dev2\r\nTunnelmux-Service: admin\r\n",
        b"Connection: close, X-Forwarded-For, X-Forwarded-Proto\r\n",
    ]
    async with FRONTS[name](tmp_path, debian_program, tunnel.at_http) as front:
        with trio.fail_after(45):
            seen = await see_head(front, b"".join(spoofed))
            # One that says the same as the proxy in front, and more, would be believed.
            same = b'for=127.0.0.1;host="%s:%d";proto=https' % (HOST.encode(), front.port)
            assert b"6.6.6.6" not in await see_head(front, b"Forwarded: %s;by=6.6.6.6\r\n" % same)
            await see_websocket(front)
            assert await see_body(front, b"/accel") == b"mine"
            # What the proxy in front decided by, a block for dev2 for one, is where it goes.
            assert await see_absolute(front) == 503
    fields = [tuple(line.split(b": ", 1)) for line in seen.split(b"\r\n")[1:-2]]
    values = {key.lower(): value for key, value in fields}
    assert len(values) == len(fields)
    assert b"6.6.6.6" not in seen and b"gopher" not in seen and b"bank.example" not in seen
    host = f"{HOST}:{front.port}".encode()
    assert values[b"host"] == values[b"x-forwarded-host"] == host
    assert values[b"x-forwarded-proto"] == b"https"
    assert values[b"x-forwarded-for"] == b"127.0.0.1, 127.0.0.1"
    assert parse_forwarded(values[b"forwarded"]) == (
        Hop(b"127.0.0.1", host, b"https"),
        Hop(b"127.0.0.1", host, b"http"),
    )
    told = {key for key in values if field_kind(key) not in {"ordinary", "head-only"}}
    ours = {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"}
    assert told - {b"host", b"connection"} == ours


@asynccontextmanager
async def asking_api(
    front: FrontProxy, head: str, body: str = "", *, address: str = "127.0.0.1"
) -> AsyncIterator[Peer]:
    """A caller of the API, who comes from this address and has asked for this."""
    async with await front.visit(API.name, address) as stream:
        caller = Peer(stream)
        lines = f"Host: {API.name}\r\nContent-Length: {len(body)}\r\n"
        await caller.send(f"{head}\r\n{lines}\r\n{body}".encode())
        yield caller


ADD_DEVICE = (
    "POST /api/devices HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n"
    "Content-Type: application/json\r\n"
)
OPEN_TERMINAL = (
    "GET /api/devices/none/terminal HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
)
"""The API has a WebSocket there and nothing else: without the upgrade it is 404."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FRONTS)
async def test_what_the_api_sees_behind_a_proxy_of_the_documentation(
    name: str, tmp_path: Path, debian_program: Callable[[str, str], str]
) -> None:
    url = f"https://{API.name}"
    async with live_api(tmp_path, public_url=url, trusted_proxies=["127.0.0.1"]) as api:
        owner = await person(api, "owner")
        login = f"Authorization: Bearer {owner.token}"
        target = Address("127.0.0.1", api.running.port)
        async with FRONTS[name](tmp_path, debian_program, target, API) as front:
            with trio.fail_after(45):
                add = asking_api(front, ADD_DEVICE + login, '{"name": "cam1"}', address="127.0.0.2")
                async with add as caller:
                    assert (await caller.read_head()).startswith(b"HTTP/1.1 201 ")
                async with asking_api(front, OPEN_TERMINAL) as caller:
                    assert (await caller.read_head()).startswith(b"HTTP/1.1 401 ")
                async with asking_api(front, f"GET /api/events HTTP/1.1\r\n{login}") as caller:
                    assert (await caller.read_head()).startswith(b"HTTP/1.1 200 ")
                    await caller.read_exactly(1)  # it follows from here on
                    devices = api.running.api.registry.tenant(owner.tenant_id, TEST).devices
                    added, _ = await devices.add("cam2")
                    await caller.read_until(added.id.encode())
        page = (await api.call("GET", "/api/audit", owner.token)).json()
        addresses = {item["object_id"]: item["actor"]["address"] for item in page["items"]}
        assert "127.0.0.2" in addresses.values() and "6.6.6.6" not in str(page)
