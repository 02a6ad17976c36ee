"""Floods of handshakes at the tunnel port leave time to those who are connected."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
import trustme

from support.proxies import proxy_config, running
from tunnelmux.config import ProxyConfig
from tunnelmux.proxy import RunningProxy

FLOOD = 60
FEW = 8
# Handshakes of one pass of Trio's and of the next: two each, and those whose answers are sent.

UPGRADE = (
    b"GET /tunnel/connect HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\nAuthorization: Bearer of-no-device\r\n\r\n"
)


def hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="localhost"
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def secure(config: ProxyConfig, folder: Path) -> ProxyConfig:
    pair = folder / "pair.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pair)
    pair.chmod(0o600)
    tunnel = msgspec.structs.replace(config.tunnel, tls_certificate=pair, tls_key=pair)
    return msgspec.structs.replace(config, tunnel=tunnel)


def begun(proxy: RunningProxy) -> list[socket.socket]:
    """Connections that are about to send the rest of what they say."""
    assert proxy.tunnel_address is not None
    made = [socket.create_connection(tuple(proxy.tunnel_address)) for _ in range(FLOOD)]
    for one in made:
        one.setblocking(False)
    return made


async def most_in_a_pass(done: Callable[[], int]) -> int:
    """The most of the flood that was done while another task waited for Trio to come to it."""
    most, before = 0, 0
    while before < FLOOD:
        await trio.lowlevel.checkpoint()
        now = done()
        most, before = max(most, now - before), now
    return most


@pytest.mark.parametrize("tls", [False, True], ids=["upgrades", "hellos"])
async def test_few_handshakes_are_done_before_others_get_their_turn(
    tmp_path: Path, tls: bool
) -> None:
    config = secure(proxy_config(), tmp_path) if tls else proxy_config()
    said = hello() if tls else UPGRADE
    async with running(config) as proxy:
        newcomers = begun(proxy)
        for one in newcomers:
            one.send(said[:1])
        await trio.testing.wait_all_tasks_blocked(0.05)
        for one in newcomers:
            one.send(said[1:])

        answered: set[socket.socket] = set()

        def done() -> int:
            for one in newcomers:
                with contextlib.suppress(BlockingIOError):
                    if one not in answered and one.recv(1, socket.MSG_PEEK):
                        answered.add(one)
            return len(answered)

        try:
            assert await most_in_a_pass(done) <= FEW
        finally:
            for one in newcomers:
                one.close()
