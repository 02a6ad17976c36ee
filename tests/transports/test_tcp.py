from __future__ import annotations

import socket

import pytest
import structlog
import trio

from support.own_thread import replace_here
from support.streams import socket_pair
from tunnelmux.errors import ConfigError, ConnectError
from tunnelmux.transports import bound_addresses, open_listeners, open_tcp, serve_connections
from tunnelmux.transports.tcp import UNSENT_LIMIT, configure_socket


async def test_a_refused_connection_names_address_cause_and_fix() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: nobody can connect to it
        port = reserved.getsockname()[1]
        with pytest.raises(
            ConnectError, match=rf"127\.0\.0\.1:{port}: connection refused; check the address"
        ) as caught:
            await open_tcp("127.0.0.1", port)
    assert caught.value.retryable


async def test_a_name_that_does_not_resolve_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    replace_here(monkeypatch, trio.socket, "getaddrinfo", resolve)
    fix = "the name does not resolve; check its spelling, and that this machine has DNS$"
    with pytest.raises(ConnectError, match=fix):
        await open_tcp("proxy.invalid", 3800)


async def test_an_address_that_does_not_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def hang(*args: object, **kwargs: object) -> None:
        await trio.sleep_forever()

    replace_here(monkeypatch, trio.socket, "getaddrinfo", hang)
    with pytest.raises(ConnectError, match="within 3 s; check the address"):
        await open_tcp("192.0.2.1", 3800, timeout=3)
    assert trio.current_time() == pytest.approx(3.0)


async def test_a_port_in_use_names_the_fix() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: .*already in use; stop the"):
            await open_listeners("127.0.0.1", port)


async def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0: .*choose an address of this machine"):
        await open_listeners("192.0.2.1", 0)


async def test_sockets_are_set_up_for_a_tunnel() -> None:
    client, server = await socket_pair()
    async with client, server:
        configure_socket(server, user_timeout=20.0)
        option = server.socket.getsockopt
        assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            assert option(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_LIMIT


async def test_a_failing_handler_is_logged_and_ends_its_connection_only(
    nursery: trio.Nursery,
) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        if await stream.receive_some() == b"bad":
            raise KeyError("a bug")
        await stream.send_all(b"fine")

    listeners = await open_listeners("127.0.0.1", 0)
    ports = [port for _, port in bound_addresses(listeners)]
    with structlog.testing.capture_logs() as logs:
        addresses = await nursery.start(serve_connections, handle, listeners)
        assert [port for _, port in addresses] == ports
        for request, answer in [(b"bad", b""), (b"good", b"fine")]:
            async with await open_tcp("127.0.0.1", ports[0]) as stream:
                await stream.send_all(request)
                assert await stream.receive_some() == answer
    assert [line["event"] for line in logs] == ["handler failed"]
