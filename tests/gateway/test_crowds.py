"""A crowd of strangers who begin a log-in and do not end it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import asyncssh
import trio
from structlog.testing import capture_logs

from support.crowds import dial_from
from support.hostile_ssh import HostileClient
from tunnelmux.config import Address
from tunnelmux.config.gateway import GatewayLimits
from tunnelmux.gateway.app import Listener
from tunnelmux.gateway.failures import Failures
from tunnelmux.gateway.guest import Bridge, run_as_guest
from tunnelmux.observability import BoundedLines

PLACES = 4


@asynccontextmanager
async def listening(loop: asyncio.AbstractEventLoop) -> AsyncIterator[tuple[Bridge, int]]:
    """The listener of a gateway with few places, for people that it will never let in."""
    async with trio.open_nursery() as nursery:
        bridge = Bridge(loop, nursery)
        gateway: Any = SimpleNamespace(
            config=SimpleNamespace(
                limits=GatewayLimits(max_connections=PLACES),
                tunnels=SimpleNamespace(url=None),
                gateway=SimpleNamespace(console_url=None, allow=(), trusted_proxies=()),
            ),
            failures=Failures(1000, 60.0),
            lines=BoundedLines("gateway"),
            bridge=bridge,
            authority=None,
            confirmations=None,
            left=lambda _connection, **_: None,
        )
        key = asyncssh.generate_private_key("ssh-ed25519")
        options = await bridge.in_asyncio(
            asyncssh.SSHServerConnectionOptions.construct(
                server_factory=asyncssh.SSHServer, server_host_keys=[key], config=None
            )
        )
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.1", 0))
            sock.listen(100)
            nursery.start_soon(Listener(gateway, options).accept, sock)
            yield bridge, sock.getsockname()[1]
            nursery.cancel_scope.cancel()


async def begin_from(source: str, port: int) -> trio.SocketStream:
    """A stranger from this address, who was greeted and says no more."""
    stranger = await dial_from(source, Address("127.0.0.1", port))
    await stranger.send_all(b"SSH-2.0-stranger\r\n")
    assert (await stranger.receive_some(8)).startswith(b"SSH-2.0-")
    return stranger


async def is_over(stranger: trio.SocketStream) -> bool:
    try:
        while await stranger.receive_some(65_536):
            pass
    except trio.BrokenResourceError:
        pass
    return True


def test_those_who_give_way_leave_nothing_to_those_who_come() -> None:
    async def main(loop: asyncio.AbstractEventLoop) -> None:
        with trio.fail_after(60):
            async with listening(loop) as (bridge, port):
                strangers = [
                    await begin_from(f"127.0.1.{number}", port)
                    for number in range(1, 1 + 5 * PLACES)
                ]
                # Descriptors of those who gave way are in use again by now.
                client = await bridge.in_asyncio(_exchange_keys(port))
                for stranger in strangers[: -PLACES + 1]:
                    assert await is_over(stranger)
                client.abort()
                for stranger in strangers:
                    await stranger.aclose()
                await bridge.settle()

    run_as_guest(main)


async def _exchange_keys(port: int) -> HostileClient:
    client = HostileClient()
    await client.connect(port)
    return client


def test_those_who_never_log_in_are_no_trouble_at_a_stop() -> None:
    async def main(loop: asyncio.AbstractEventLoop) -> None:
        async with trio.open_nursery() as nursery:
            bridge = Bridge(loop, nursery)
            bridge.start(asyncio.Event().wait())
            with trio.move_on_after(0):
                await bridge.settle()

    with capture_logs() as logs:
        run_as_guest(main)
    assert logs == []
