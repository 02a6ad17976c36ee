"""Visitors over HTTPS in the pump: from the handshake to the goodbye, and back to h11."""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing
import trustme
from structlog.testing import capture_logs

from support.carried_http import OK, WAYS, Target, get, rig
from support.key_updates import KeyUpdates
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import abort
from tunnelmux.transports import certificates

MIB = 1 << 20


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    folder = tmp_path_factory.mktemp("ingress")
    authority = trustme.CA()
    certificate = authority.issue_cert("dev1.localhost")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "key.pem").chmod(0o600)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return folder, trust


@pytest.fixture(params=WAYS)
async def target(
    request: pytest.FixtureRequest,
    tls: tuple[Path, ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Target]:
    """A rig whose visitor is in the pump, after its first request."""
    monkeypatch.setattr(Target, "way", request.param)
    async with rig(tls=tls) as target:
        await target.first_exchange()
        yield target


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_visitors_are_served_without_a_task(tls: tuple[Path, ssl.SSLContext]) -> None:
    async with rig(tls=tls) as target:
        await target.first_exchange()
        before = tasks()
        visitors = [await target.new_visitor() for _ in range(10)]
        for number, visitor in enumerate(visitors):
            await visitor.send(get(f"/{number}"))
        peers = [await target.connection() for _ in visitors]
        heads = [await peer.read_head() for peer in peers]
        # The test's own target has one for each connection, and the agent one for all.
        assert tasks() - before <= len(peers) + 1
        for head in heads:
            assert b"X-Forwarded-Proto: https\r\n" in head
            assert b"proto=https" in head
        for peer in peers:
            await peer.send(OK + b"ok")
        for visitor in visitors:
            assert await visitor.read_exactly(len(OK) + 2) == OK + b"ok"


async def test_many_requests_on_one_connection(target: Target) -> None:
    peer, _ = await target.ask(get("/0"))
    for number in range(1, 20):
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        await target.visitor.send(get(f"/{number}"))
        assert f"GET /{number} ".encode() in await peer.read_head()


async def test_megabytes_go_both_ways(target: Target) -> None:
    body = random.Random(5).randbytes(3 * MIB)
    head = f"POST /up HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.visitor.send, head.encode() + body)
        peer = await target.connection()
        await peer.read_head()
        assert hashlib.sha256(await peer.read_exactly(len(body))).digest() == (
            hashlib.sha256(body).digest()
        )
        answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        nursery.start_soon(peer.send, answer + body)
        assert await target.visitor.read_exactly(len(answer)) == answer
        assert await target.visitor.read_exactly(len(body)) == body


async def test_a_request_the_scanner_declines_goes_on_with_h11_on_the_same_connection(
    target: Target,
) -> None:
    peer, _ = await target.ask(get("/plain"))
    await peer.send(OK + b"ok")
    assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
    upgrade = "Connection: Upgrade\r\nUpgrade: echo\r\n"
    await target.visitor.send(get("/upgrade", upgrade))
    other = await target.connection()
    assert b"GET /upgrade " in await other.read_head()
    await other.send(b"HTTP/1.1 101 Switching Protocols\r\n" + upgrade.encode() + b"\r\n")
    assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 101 ")
    await target.visitor.send(b"there")
    assert await other.read_exactly(5) == b"there"
    await other.send(b"and back")
    assert await target.visitor.read_exactly(8) == b"and back"


async def test_bytes_behind_an_upgrade_are_moved_by_the_pump(
    tls: tuple[Path, ssl.SSLContext],
) -> None:
    upgrade = "Connection: Upgrade\r\nUpgrade: echo\r\n"
    async with rig(tls=tls) as target:
        await target.first_exchange()
        before = tasks()
        visitors = [await target.new_visitor() for _ in range(5)]
        peers = []
        for visitor in visitors:
            await visitor.send(get("/upgrade", upgrade))
            peers.append(await target.connection())
            await peers[-1].read_head()
            await peers[-1].send(
                b"HTTP/1.1 101 Switching Protocols\r\n" + upgrade.encode() + b"\r\n"
            )
            assert (await visitor.read_head()).startswith(b"HTTP/1.1 101 ")
        # One for each in the test's own target, and one that waits for the end of the connection.
        assert tasks() - before <= 2 * len(peers) + 1
        for visitor, peer in zip(visitors, peers, strict=True):
            await visitor.send(b"there")
            assert await peer.read_exactly(5) == b"there"
            await peer.send(b"and back")
            assert await visitor.read_exactly(8) == b"and back"
        for visitor, peer in zip(visitors, peers, strict=True):
            await peer.stream.aclose()
            assert await visitor.read_all() == b""  # with a close_notify


async def test_the_end_of_an_answer_without_a_length_is_a_close_notify(target: Target) -> None:
    """The visitor's stream takes an end without one for a cut (RFC 9112 section 9.8)."""
    peer, _ = await target.ask(get("/old"))
    await peer.send(b"HTTP/1.0 200 OK\r\n\r\n" + b"all of it" * 10_000)
    await peer.stream.aclose()
    assert (await target.visitor.read_head()).startswith(b"HTTP/1.")
    assert await target.visitor.read_all() == b"all of it" * 10_000


async def test_a_target_that_breaks_within_its_answer_is_a_cut(target: Target) -> None:
    peer, _ = await target.ask(get("/torn"))
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    assert await target.visitor.read_head()
    assert await target.visitor.read_exactly(4) == b"half"
    await abort(peer.stream)
    with pytest.raises(trio.BrokenResourceError):
        await target.visitor.read_all()


async def test_a_slow_visitor_stops_the_target(target: Target) -> None:
    peer, _ = await target.ask(get("/big"))
    size = 64 * MIB
    sent = 0

    async def send() -> None:
        nonlocal sent
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            await peer.send(bytes(65_536))
            sent += 65_536

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await target.visitor.read_head()
        seen = -1
        while seen != sent:  # until it stands still
            seen = sent
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent < size // 2
        got = 0
        while got < 8 * MIB:
            got += len(await target.visitor.read_exactly(MIB))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_is_resumed_with_a_ticket(
    tls: tuple[Path, ssl.SSLContext], version: ssl.TLSVersion
) -> None:
    async with rig(tls=tls) as target:
        await target.first_exchange()
        address = target.proxy.http_address
        assert address is not None
        context = ssl.create_default_context(cafile=None)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])

        def visit(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
            import socket

            with (
                socket.create_connection(tuple(address), 5) as raw,
                context.wrap_socket(
                    raw, server_hostname="dev1.localhost", session=session
                ) as client,
            ):
                client.sendall(get("/"))
                assert client.selected_alpn_protocol() == "http/1.1"
                assert client.recv(len(OK) + 2).startswith(b"HTTP/1.1 200 ")
                return client.session, client.session_reused or False

        async def answer() -> None:
            while True:
                peer = await target._incoming.receive()  # type: ignore[attr-defined]
                await peer.read_head()
                await peer.send(OK + b"ok")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            session, reused = await trio.to_thread.run_sync(visit, None)
            assert not reused
            _, reused = await trio.to_thread.run_sync(visit, session)
            assert reused
            nursery.cancel_scope.cancel()


async def test_a_visitor_who_says_nothing_is_reset_and_one_line(
    tls: tuple[Path, ssl.SSLContext],
) -> None:
    limits = IngressLimits(handshake_timeout=0.2)
    with capture_logs() as lines:
        async with rig(limits, tls=tls) as target:
            address = target.proxy.http_address
            assert address is not None
            stream = await trio.open_tcp_stream(*address)
            with pytest.raises(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
            us = "{}:{}".format(*stream.socket.getsockname())
            await stream.aclose()
    (line,) = [one for one in lines if (one["event"], one.get("visitor")) == ("visitor lost", us)]
    assert "TLS handshake" in line["problem"]


OLD_HELLO = bytes.fromhex(
    # A ClientHello of TLS 1.0 (RFC 2246 section 7.4.1.2), with one cipher and no extension.
    "160301002d 01000029 0301" + "00" * 32 + "00 0002 002f 0100"
)


@pytest.mark.parametrize(
    ("says", "answer", "told"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n", "plain HTTP"),
        (OLD_HELLO, b"\x15\x03", "an older TLS than tls_min_version"),  # an alert
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"", "does not speak TLS"),
        (b"\x00" * 64, b"", "does not speak TLS"),
    ],
    ids=["plain HTTP", "TLS 1.0", "HTTP/2", "rubbish"],
)
async def test_who_speaks_something_else_is_answered_and_is_one_line(
    tls: tuple[Path, ssl.SSLContext], says: bytes, answer: bytes, told: str
) -> None:
    with capture_logs() as lines:
        async with rig(tls=tls) as target:
            address = target.proxy.http_address
            assert address is not None
            stream = await trio.open_tcp_stream(*address)
            us = "{}:{}".format(*stream.socket.getsockname())
            await stream.send_all(says)
            got = b"".join([bytes(part) async for part in stream])
            await stream.aclose()
            assert got.startswith(answer)
            if answer.startswith(b"HTTP"):
                assert b"This port speaks TLS: write https://" in got
                assert b"\r\nConnection: close\r\n" in got
            assert target.proxy.visits.figures.tls_failures == 1
    (line,) = [one for one in lines if (one["event"], one.get("visitor")) == ("visitor lost", us)]
    assert told in line["problem"]


@pytest.mark.parametrize(
    ("says", "status", "told"),
    [
        (OLD_HELLO, b" 400 ", "this looks like TLS: this port speaks plain HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b" 505 ", "Only HTTP/1.1 and HTTP/1.0"),
    ],
    ids=["TLS", "HTTP/2"],
)
async def test_a_plain_port_says_so_to_who_speaks_something_else(
    says: bytes, status: bytes, told: str
) -> None:
    with capture_logs() as lines:
        async with rig() as target:
            await target.visitor.send(says)
            assert status in (await target.visitor.read_all())[:16]
    (line,) = [one for one in lines if one["event"] == "request"]
    assert told in line["problem"]


async def test_a_drain_says_goodbye_to_idle_visitors(target: Target) -> None:
    peer, _ = await target.ask(get("/one"))
    await peer.send(OK + b"ok")
    assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
    waiting = await target.new_visitor()
    assert isinstance(waiting.stream, trio.SSLStream)
    await waiting.stream.do_handshake()
    await trio.testing.wait_all_tasks_blocked(0.05)  # the proxy has seen its end of it
    target.proxy._http.drain()
    for visitor in (target.visitor, waiting):
        assert await visitor.read_all() == b""


async def test_a_visitor_who_leaves_in_the_middle_ends_the_stream(target: Target) -> None:
    peer, _ = await target.ask(get("/endless"))
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await target.visitor.read_head()
    await abort(target.visitor.stream)
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await peer.send(b"x")
            await trio.lowlevel.checkpoint()


async def test_two_heads_in_one_record_are_two_requests(target: Target) -> None:
    peer, _ = await target.ask(get("/one") + get("/two"))
    await peer.send(OK + b"ok")
    assert b"GET /two " in await peer.read_head()
    await peer.send(OK + b"ok")
    both = await target.visitor.read_exactly(2 * (len(OK) + 2))
    assert both == (OK + b"ok") * 2


async def test_a_renewed_certificate_is_shown_without_a_signal(
    tls: tuple[Path, ssl.SSLContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "RELOAD_INTERVAL", 0.01)
    for file in ("cert.pem", "key.pem"):
        (tmp_path / file).write_bytes((tls[0] / file).read_bytes())
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with rig(tls=(tmp_path, tls[1])) as target:
        await target.first_exchange()
        renewed = authority.issue_cert("dev1.localhost")
        renewed.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        renewed.private_key_pem.write_to_path(tmp_path / "key.pem")
        target.trust = trust
        with trio.fail_after(20):
            while True:
                visitor = await target.new_visitor()
                assert isinstance(visitor.stream, trio.SSLStream)
                with contextlib.suppress(trio.BrokenResourceError):  # it is still the old one
                    await visitor.stream.do_handshake()
                    break
        peer, _ = await target.ask(get("/on-the-old-connection"))
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"


async def bare_visitor(target: Target, folder: Path) -> tuple[trio.SocketStream, KeyUpdates]:
    """A visitor after its handshake, who makes its records itself."""
    assert target.trust is not None and target.proxy.http_address is not None
    target.trust.keylog_filename = str(folder / "keys")
    stream = await trio.open_tcp_stream(*target.proxy.http_address)
    target.visitors.append(stream)
    await trio.SSLStream(stream, target.trust, server_hostname="dev1.localhost").do_handshake()
    return stream, KeyUpdates(folder / "keys")


UPLOAD = b"POST /up HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: 10485760\r\n\r\n"

BOTH_WAYS = pytest.mark.parametrize("by_h11", [True, False])
"""The first request of such a session is read by h11, on Trio's streams."""


@BOTH_WAYS
@pytest.mark.slow
async def test_a_visitor_may_pad_its_records(
    tls: tuple[Path, ssl.SSLContext], tmp_path: Path, by_h11: bool
) -> None:
    """10 MB at half of what goes through the network (RFC 8446 section 5.4)."""
    async with rig(tls=tls) as target, trio.open_nursery() as nursery:
        if not by_h11:
            await target.first_exchange()
        visitor, records = await bare_visitor(target, tmp_path)
        body = random.Random(6).randbytes(10 * MIB)
        padded = [records.data(UPLOAD, 1_000)]
        padded += [records.data(body[at : at + 8_192], 8_192) for at in range(0, len(body), 8_192)]
        nursery.start_soon(visitor.send_all, b"".join(padded))
        peer = await target.connection()
        await peer.read_head()
        assert hashlib.sha256(await peer.read_exactly(len(body))).digest() == (
            hashlib.sha256(body).digest()
        )


@BOTH_WAYS
@pytest.mark.parametrize("kind", ["renewed keys", "empty records"])
async def test_a_visitor_without_data_is_dropped(
    tls: tuple[Path, ssl.SSLContext], tmp_path: Path, by_h11: bool, kind: str
) -> None:
    async with rig(tls=tls) as target:
        if not by_h11:
            await target.first_exchange()
        visitor, records = await bare_visitor(target, tmp_path)
        await visitor.send_all(records.data(UPLOAD))
        peer = await target.connection()
        await peer.read_head()
        if kind == "renewed keys":
            flood = records.ask(1_500)
        else:
            flood = b"".join(records.data(b"") for _ in range(1_500))
        with contextlib.suppress(trio.BrokenResourceError):
            await visitor.send_all(flood)
            while await visitor.receive_some():
                pass  # the tickets, and answers to what it asked
        with contextlib.suppress(trio.BrokenResourceError):
            assert await peer.read_all() == b""


NEWCOMERS = 60


async def connected(target: Target, count: int) -> list[socket.socket]:
    """So many visitors from one address, of whom the proxy knows."""
    address = target.proxy.http_address
    assert address is not None
    before = target.proxy._gauges()["tunnelmux_http_visitors"][1]
    made = [socket.create_connection(tuple(address)) for _ in range(count)]
    while target.proxy._gauges()["tunnelmux_http_visitors"][1] < before + count:  # noqa: ASYNC110
        await trio.sleep(0.005)
    return made


class Hello:
    """A client that is at its hello."""

    def __init__(self, target: Target) -> None:
        assert target.trust is not None
        self._incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._outgoing = outgoing
        self._client = target.trust.wrap_bio(
            self._incoming, outgoing, server_hostname="dev1.localhost"
        )
        self.said = self._go_on()

    def _go_on(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._client.do_handshake()
        return self._outgoing.read()

    def after(self, answer: bytes) -> bytes:
        """What it says to this answer."""
        self._incoming.write(answer)
        return self._go_on()


def readable(sockets: list[socket.socket]) -> int:
    ready, _, _ = select.select(sockets, [], [], 0)
    return len(ready)


async def each_is_answered(newcomers: list[socket.socket]) -> None:
    while readable(newcomers) < len(newcomers):  # noqa: ASYNC110  no event tells it
        await trio.sleep(0.005)
    for newcomer in newcomers:
        assert newcomer.recv(1) == b"\x16"  # a handshake record
        newcomer.close()


@pytest.mark.parametrize("begun", [0, 1, 100], ids=lambda begun: f"{begun}-before")
async def test_the_handshakes_of_others_keep_no_one_waiting(
    tls: tuple[Path, ssl.SSLContext], begun: int
) -> None:
    """They were done in the order of arrival: who had asked waited for those of a whole flood.
    So many bytes of their hellos had `begun` to come before."""
    async with rig(tls=tls) as target:
        await target.first_exchange()
        peer = await target.carried_exchange()
        newcomers = await connected(target, NEWCOMERS)
        said = Hello(target).said
        for newcomer in newcomers:
            newcomer.send(said[:begun])
        await trio.testing.wait_all_tasks_blocked(0.05)
        for newcomer in newcomers:
            newcomer.send(said[begun:])
        await target.visitor.send(get("/asked-after-them"))
        assert b"/asked-after-them" in await peer.read_head()
        assert readable(newcomers) < NEWCOMERS
        await each_is_answered(newcomers)


async def test_second_hellos_keep_no_one_waiting(tls: tuple[Path, ssl.SSLContext]) -> None:
    """The first is cheap to refuse (RFC 8446 section 4.1.4), the second costs as much as any: it
    was answered in the order of arrival."""
    async with rig(tls=tls) as target:
        await target.first_exchange()
        peer = await target.carried_exchange()
        context = target.proxy._http._settings.tls
        assert context is not None
        context.set_ecdh_curve("secp521r1")  # for which clients have no key ready
        newcomers = await connected(target, NEWCOMERS)
        hellos = [Hello(target) for _ in newcomers]
        for newcomer, hello in zip(newcomers, hellos, strict=True):
            newcomer.send(hello.said)
        while readable(newcomers) < NEWCOMERS:  # noqa: ASYNC110  no event tells it
            await trio.sleep(0.005)
        again = [
            hello.after(newcomer.recv(4096))
            for newcomer, hello in zip(newcomers, hellos, strict=True)
        ]
        for newcomer, said in zip(newcomers, again, strict=True):
            newcomer.send(said)
        await target.visitor.send(get("/asked-after-them"))
        assert b"/asked-after-them" in await peer.read_head()
        assert readable(newcomers) < NEWCOMERS
        await each_is_answered(newcomers)


async def test_handshakes_of_one_address_keep_no_other_waiting(
    tls: tuple[Path, ssl.SSLContext],
) -> None:
    """They were done in the order of arrival: a newcomer waited for those of a whole flood."""
    async with rig(tls=tls) as target:
        await target.first_exchange()
        newcomers = await connected(target, NEWCOMERS)
        # Two addresses share their turns by chance, once in so many.
        another = next(
            address
            for address in (f"127.0.0.{number}" for number in range(2, 255))
            if (hash(address) - hash("127.0.0.1")) % 256
        )
        address = target.proxy.http_address
        assert address is not None
        visitor = socket.create_connection(tuple(address), source_address=(another, 0))
        await trio.testing.wait_all_tasks_blocked(0.05)
        said = Hello(target).said
        for newcomer in [*newcomers, visitor]:
            newcomer.send(said)
        while not readable([visitor]):
            await trio.lowlevel.checkpoint()
        assert readable(newcomers) < NEWCOMERS // 2
        await each_is_answered([*newcomers, visitor])


@pytest.mark.slow
async def test_an_upload_waits_for_a_target_that_does_not_read(target: Target) -> None:
    """The stream's credit is used up then, and nothing goes round while it is."""
    body = random.Random(7).randbytes(24 * MIB)
    head = f"POST /up HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    sent = trio.Event()

    async def upload() -> None:
        await target.visitor.send(head.encode() + body)
        sent.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload)
        peer = await target.connection()
        await peer.read_head()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not sent.is_set()
        assert await peer.read_exactly(len(body)) == body
