"""Peers that renew the keys of TLS 1.3 without end, before any of their data has come."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from support.carried import tls_contexts
from support.key_updates import KeyUpdates
from support.streams import socket_pair
from tunnelmux.transports.tls import start_client_tls, start_server_tls


@asynccontextmanager
async def accepted(
    folder: Path,
) -> AsyncIterator[tuple[trio.SSLStream[trio.SocketStream], trio.SocketStream, KeyUpdates]]:
    """The server's end of a connection, its peer's bare stream, and what that may send."""
    server, client = tls_contexts()
    client.keylog_filename = str(folder / "keys")
    far, near = await socket_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(start_client_tls, far, client, "127.0.0.1", where="test"))
        ours = await start_server_tls(near, server, timeout=30)
    try:
        yield ours, far, KeyUpdates(folder / "keys")
    finally:
        await trio.aclose_forcefully(near)
        await trio.aclose_forcefully(far)


@pytest.mark.parametrize("between", [b"", b"1"])
async def test_such_a_peer_is_read_no_more(tmp_path: Path, between: bytes) -> None:
    """Sixty that had as much ready as fits into the buffers kept all others waiting for 5 s."""
    async with accepted(tmp_path) as (ours, peer, updates), trio.open_nursery() as nursery:
        records = [
            updates.ask(1) + (updates.data(between) if between else b"") for _ in range(4_000)
        ]
        nursery.start_soon(peer.send_all, b"".join(records))
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            while True:
                await ours.receive_some(100)
        nursery.cancel_scope.cancel()


async def test_data_may_come_without_end(tmp_path: Path) -> None:
    async with accepted(tmp_path) as (ours, peer, updates), trio.open_nursery() as nursery:
        sent = b"".join(updates.data(b"1") + updates.data(bytes(10_000)) for _ in range(100))
        nursery.start_soon(peer.send_all, sent)
        count = 0
        with trio.fail_after(30):
            while count < 100 * 10_001:
                count += len(await ours.receive_some(70_000))


@pytest.mark.parametrize("padding", [0, 1_000])
async def test_records_that_are_empty_come_to_an_end(tmp_path: Path, padding: int) -> None:
    async with accepted(tmp_path) as (ours, peer, records), trio.open_nursery() as nursery:
        empty = b"".join(records.data(b"", padding) for _ in range(1_500))
        nursery.start_soon(peer.send_all, empty)
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await ours.receive_some(100)
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_padding_may_be_far_more_than_the_data(tmp_path: Path) -> None:
    async with accepted(tmp_path) as (ours, peer, records), trio.open_nursery() as nursery:
        sent = b"".join(records.data(b"a keystroke", 4_000) for _ in range(3_000))
        nursery.start_soon(peer.send_all, sent)
        count = 0
        with trio.fail_after(30):
            while count < 3_000 * 11:
                count += len(await ours.receive_some(100))


async def test_a_server_of_ours_is_watched_too(tmp_path: Path) -> None:
    """An agent's proxy or target may be hostile as well."""
    server, client = tls_contexts()
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.keylog_filename = str(tmp_path / "keys")
    far, near = await socket_pair()
    theirs = trio.SSLStream(far, server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.do_handshake)
        ours = await start_client_tls(near, client, "127.0.0.1", where="test")
    await theirs.send_all(b"the tickets come before this")
    assert await ours.receive_some(100)
    # The tickets were the first two of its records, and the data the third.
    updates = KeyUpdates(tmp_path / "keys", "SERVER", sent=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.send_all, updates.ask(1_500))
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await ours.receive_some(100)
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(near)
    await trio.aclose_forcefully(far)
