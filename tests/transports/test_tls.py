from __future__ import annotations

import gc
import ssl
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trustme

from support.streams import socket_pair, tls_pair
from tunnelmux.errors import ConfigError, ConnectError
from tunnelmux.transports import (
    accept_websocket,
    certificate_pin,
    client_context,
    connect_websocket,
    open_tcp,
    read_upgrade,
    serve_connections,
    server_context,
    start_server_tls,
)
from tunnelmux.transports.tls import start_client_tls


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder


@pytest.fixture
def pin(files: Path) -> str:
    return certificate_pin(ssl.PEM_cert_to_DER_cert((files / "cert.pem").read_text()))


@pytest.fixture
async def echo_port(files: Path, nursery: trio.Nursery) -> int:
    """The port of a wss:// server that sends back what it gets."""
    context = server_context(files / "cert.pem", files / "key.pem")

    async def handle(connection: trio.SocketStream) -> None:
        try:
            tls = await start_server_tls(connection, context, timeout=2)
            request = await read_upgrade(tls, path="/tunnel/connect")
        except ConnectError:
            return
        async with accept_websocket(request) as stream:
            async for data in stream:
                await stream.send_all(data)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    addresses = await nursery.start(serve_connections, handle, listeners)
    return int(addresses[0][1])


async def echo(port: int, context: ssl.SSLContext) -> bytes:
    url = f"wss://127.0.0.1:{port}/tunnel/connect"
    async with connect_websocket(url, ssl_context=context) as stream:
        await stream.send_all(b"over TLS")
        return await stream.receive_some()


async def test_wss_with_the_authority_that_signed_the_certificate(
    echo_port: int, files: Path
) -> None:
    assert await echo(echo_port, client_context(files / "ca.pem")) == b"over TLS"


async def test_wss_with_a_pin_needs_no_authority(echo_port: int, pin: str) -> None:
    assert await echo(echo_port, client_context(pin=pin)) == b"over TLS"


async def test_a_pin_may_be_written_as_openssl_prints_it(
    echo_port: int, files: Path, pin: str, debian_program: Callable[[str, str], str]
) -> None:
    openssl = debian_program("openssl", "openssl")
    command = [openssl, "x509", "-in", files / "cert.pem", "-noout", "-fingerprint", "-sha256"]
    printed = (await trio.run_process(command, capture_stdout=True)).stdout.decode()
    assert "ingerprint=" in printed and pin.removeprefix("sha256:") not in printed
    assert await echo(echo_port, client_context(pin=printed)) == b"over TLS"


async def test_a_wrong_pin_names_both_and_may_be_tried_again(echo_port: int, pin: str) -> None:
    wrong = "sha256:" + "00" * 32
    with pytest.raises(ConnectError) as caught:
        await echo(echo_port, client_context(pin=wrong))
    assert f"expected {wrong}, seen {pin}" in str(caught.value)
    assert "a login page of the network?" in str(caught.value)
    assert caught.value.retryable


async def test_a_wrong_pin_is_refused_although_the_authority_is_trusted(
    echo_port: int, files: Path
) -> None:
    context = client_context(files / "ca.pem", pin="sha256:" + "ab" * 32)
    with pytest.raises(ConnectError, match="not the pinned one"):
        await echo(echo_port, context)


async def test_an_unknown_authority_says_what_to_set_and_may_be_tried_again(
    echo_port: int,
) -> None:
    with pytest.raises(ConnectError, match=r"set ca_file.*or pin") as caught:
        await echo(echo_port, client_context())
    assert caught.value.retryable


async def test_a_server_without_tls_is_a_clear_error(nursery: trio.Nursery) -> None:
    async def answer_plainly(connection: trio.SocketStream) -> None:
        await connection.receive_some()
        await connection.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    (_, port), *_ = await nursery.start(serve_connections, answer_plainly, listeners)
    with pytest.raises(ConnectError, match="check that the port speaks TLS"):
        await open_tcp("127.0.0.1", port, ssl_context=client_context(), timeout=2)


async def test_a_plain_client_on_the_tls_port_harms_nobody(echo_port: int, pin: str) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", echo_port) as rude:
        await rude.send_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        while await rude.receive_some():
            pass
    assert await echo(echo_port, client_context(pin=pin)) == b"over TLS"


async def test_a_connection_leaves_nothing_to_the_collector(files: Path, pin: str) -> None:
    """Its streams were in cycles, with what TLS keeps for each."""
    context = server_context(files / "cert.pem", files / "key.pem")
    client, server = await socket_pair()
    watched = [weakref.ref(client), weakref.ref(server)]

    async def greet(below: trio.SocketStream) -> None:
        stream = await start_server_tls(below, context, timeout=20)
        watched.append(weakref.ref(stream))
        await stream.send_all(b"hello")
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet, server)
        stream = await start_client_tls(client, client_context(pin=pin), "127.0.0.1", where="here")
        watched.append(weakref.ref(stream))
        assert await stream.receive_some(5) == b"hello"
        await trio.aclose_forcefully(stream)
    gc.disable()
    try:
        del client, stream, greet, nursery, server
        assert [found() for found in watched] == [None] * 4
    finally:
        gc.enable()


async def test_only_tls_1_3_is_spoken(files: Path) -> None:
    old = client_context(files / "ca.pem")
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ExceptionGroup):
        await tls_pair(server_context(files / "cert.pem", files / "key.pem"), old)


@pytest.mark.parametrize("pin", ["", "sha256:", "sha256:" + "0" * 63, "md5:" + "0" * 64])
def test_a_pin_that_is_none_says_what_one_looks_like(pin: str) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        client_context(pin=pin)


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: server_context(folder / "absent.pem", folder / "key.pem"),
        lambda folder: server_context(folder / "ca.pem", folder / "key.pem"),
        lambda folder: client_context(folder / "absent.pem"),
        lambda folder: client_context(folder / "key.pem"),
    ],
    ids=["no certificate", "a key of another", "no authority", "no certificate in it"],
)
def test_files_that_cannot_be_used_are_named(
    files: Path, load: Callable[[Path], Awaitable[None]]
) -> None:
    with pytest.raises(ConfigError, match=r"cannot load .*\.pem.*must"):
        load(files)
