"""A visitor is served by the worker that has his device, whichever accepted him."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trustme

from support.daemons import DaemonSet
from support.http_rig import Peer
from support.workers import PATIENCE, Workers
from tunnelmux.config import Address

pytestmark = pytest.mark.slow

ROUNDS = 12
"""Visits of each device. Whichever worker accepts one, of the two devices one is at the other."""


async def served_where_the_device_is(
    workers: Workers, line: str, visit: Callable[[str], Awaitable[None]]
) -> None:
    """See that all visits are served by the worker that has the device, once the ways are known,
    and that some of them had come to the other."""
    with trio.fail_after(PATIENCE):
        while await workers.counted("tunnelmux_visitors_passed_total") < 4:
            for device in ("dev1", "dev2"):
                await visit(device)
    since = len(workers.proxy.events)
    for _ in range(ROUNDS):
        for device in ("dev1", "dev2"):
            await visit(device)
    with trio.fail_after(PATIENCE):
        while True:
            found = [one for one in workers.proxy.events[since:] if one.get("event") == line]
            if len(found) >= 2 * ROUNDS:
                break
            await trio.sleep(0.02)
    for one in found:
        assert one["worker"] == workers.worker_of(str(one["device"])), one


async def test_visitors_of_http(workers: Workers) -> None:
    await served_where_the_device_is(workers, "request", workers.still_works)
    # A head that comes in pieces is waited for, and one without an end is not waited for long.
    since = len(workers.proxy.events)
    for device in ("dev1", "dev2"):
        for _ in range(4):
            slow = Peer(await workers.visit())
            for part in (b"GET / HTTP/1.1\r\nHo", b"st: x\r\nTunnelmux-Device: ", device.encode()):
                await slow.send(part)
                await trio.testing.wait_all_tasks_blocked()
            await slow.send(b"\r\nConnection: close\r\n\r\n")
            with trio.fail_after(PATIENCE):
                assert (await slow.read_head()).startswith(b"HTTP/1.1 200")
            await trio.aclose_forcefully(slow.stream)
            await workers.proxy.logged("request", since=since, device=device)
            since = len(workers.proxy.events)
    # What a connection asks for first decides. Later requests may go to another worker's device.
    visitor = await workers.kept()
    for device in ("dev1", "dev2", "dev1", "dev2"):
        assert await visitor.get(device) == b"hello\n"
    await visitor.aclose()


async def test_a_host_of_any_bytes_is_refused_as_by_one_process(workers: Workers) -> None:
    since = len(workers.proxy.events)
    for host in (b"d\xff.localhost", b"\xff\xfe", b"[::\xff]"):
        for _ in range(4):  # at either worker
            visitor = Peer(await workers.visit())
            await visitor.send(
                b"GET / HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
            )
            with trio.fail_after(PATIENCE):
                assert (await visitor.read_head()).startswith(b"HTTP/1.1 400")
            await trio.aclose_forcefully(visitor.stream)
    await workers.still_works("dev1")
    for event in workers.proxy.events[since:]:
        assert "unhandled" not in str(event["event"]), event


async def test_visitors_of_tcp_ports(daemons: DaemonSet, web: Address) -> None:
    workers = Workers(daemons)
    ports = [("127.0.0.1:0", device, "raw") for device in ("dev1", "dev2")]
    await workers.start(web, tcp=ports)
    where = {"dev1": await workers.at_tcp(0), "dev2": await workers.at_tcp(1)}

    async def visit(device: str) -> None:
        visitor = Peer(await workers.visit(where[device]))
        await visitor.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with trio.fail_after(PATIENCE):
            assert (await visitor.read_head()).startswith(b"HTTP/1.1 200")
            await visitor.stream.aclose()

    await served_where_the_device_is(workers, "relay", visit)


async def test_visitors_under_tls(daemons: DaemonSet, web: Address, tmp_path: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("*.example.org")
    made.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    made.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    (tmp_path / "key.pem").chmod(0o600)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    workers = Workers(daemons)
    names = (
        f'domain = "example.org"\ntls_certificate = "{tmp_path}/cert.pem"\n'
        f'tls_key = "{tmp_path}/key.pem"'
    )
    await workers.start(web, in_http=names)

    async def visit(device: str, named: str = "", path: str = "/") -> None:
        host, name = f"{device}.example.org", f"{named or device}.example.org"
        below = await workers.visit()
        stream = trio.SSLStream(below, context, server_hostname=name, https_compatible=True)
        visitor = Peer(stream)
        with trio.fail_after(PATIENCE):
            await visitor.send(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            assert b"HTTP/1.1 " in await visitor.read_head()
        await trio.aclose_forcefully(stream)

    await served_where_the_device_is(workers, "request", visit)
    # The name that TLS was given chooses a certificate and a worker, and the Host the device.
    for device, named in (("dev1", "dev2"), ("dev2", "dev1")):
        await visit(device, named, f"/of-{device}")
        await workers.proxy.logged("request", path=f"/of-{device}", device=device)
