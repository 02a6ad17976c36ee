"""What visitors leave of a device's streams: for back ends, commands and the agent's own API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from support.proxies import agent_of, proxy_config, running
from tunnelmux.backend import ProxyClient
from tunnelmux.commands import CommandRequest
from tunnelmux.config import InternalListener, LimitsConfig, Secret
from tunnelmux.limits import IngressLimits, Limits
from tunnelmux.mux import Session, Stream
from tunnelmux.proxy.tunnels.rotation import deliver
from tunnelmux.sessions import LocalHandle

SECRET = "the-secret-of-tests"
NO = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


async def next_head(session: Session) -> tuple[Stream, bytes]:
    """The next stream of the proxy's, and the first line on it."""
    with trio.fail_after(30):
        stream = await session.accept_stream()
        head = bytearray()
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
    return stream, bytes(head.partition(b"\r\n")[0])


async def answered(session: Session, ask: Callable[[], Awaitable[object]]) -> bytes:
    """The first line of what this asks of the device; it gets a 404, whatever it makes of that."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        stream, line = await next_head(session)
        await stream.send_all(NO)
        await stream.send_eof()
    return line


async def test_unfinished_uploads_leave_streams_for_all_but_visitors() -> None:
    config = msgspec.structs.replace(
        proxy_config(),
        limits=LimitsConfig(
            session=Limits(max_streams=16), ingress=IngressLimits(reserved_streams=2)
        ),
        internal=InternalListener(listen="127.0.0.1:0", secret=Secret(SECRET)),
    )
    async with running(config) as proxy, agent_of(proxy, "dev1") as session:
        visitors = []
        assert proxy.http_address is not None
        for number in range(15):
            visitor = await trio.open_tcp_stream(*proxy.http_address)
            visitors.append(visitor)
            await visitor.send_all(
                b"POST / HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: 9\r\n\r\nabc"
            )
            if number < 14:
                await next_head(session)
        with trio.fail_after(30):
            refused = await visitors[-1].receive_some()
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"Tunnelmux-Reason: device-busy\r\n" in refused

        handle = await proxy.store.find_device("dev1")
        assert isinstance(handle, LocalHandle)
        client = ProxyClient(f"http://{proxy.internal_address}", secret=SECRET)
        forward = partial(client.forward_http, handle.token, "GET", "/of-the-back-end")
        assert b"GET /of-the-back-end " in await answered(session, forward)
        login = {"host": "h", "username": "u", "password": Secret("p")}
        command = CommandRequest(command_id="c", command="ls", **login)  # type: ignore[arg-type]
        run = partial(client.exec_results, "dev1", command)
        assert b"http://agent.tunnelmux/v1/exec " in await answered(session, run)
        rotate = partial(deliver, handle, Secret("another"), IngressLimits())
        assert b"http://agent.tunnelmux/v1/credential " in await answered(session, rotate)
        for visitor in visitors:
            await trio.aclose_forcefully(visitor)


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        pytest.param({"max_streams_per_visitor": 2}, 2, id="of one address"),
        pytest.param({"max_visitors": 2}, 2, id="of one port"),
        pytest.param({"max_streams_per_port": 2}, 2, id="of one port on one device"),
        pytest.param({"reserved_streams": 2}, 14, id="but for the reserve"),
    ],
)
async def test_visitors_of_a_tcp_port_get_so_many_streams_in_the_pump_too(
    limits: dict[str, Any], most: int
) -> None:
    config = msgspec.structs.replace(
        proxy_config(tcp=("127.0.0.1:0",)),
        limits=LimitsConfig(session=Limits(max_streams=16), ingress=IngressLimits(**limits)),
    )
    async with running(config) as proxy, agent_of(proxy, "dev1") as session:
        (address,) = proxy.tcp_addresses
        async with AsyncExitStack() as stack:
            for _ in range(most):
                await stack.enter_async_context(await trio.open_tcp_stream(*address))
                await next_head(session)
            one_more = await stack.enter_async_context(await trio.open_tcp_stream(*address))
            with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
                await one_more.receive_some()
