"""What every store of sessions keeps to, whichever it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import trio

from support.ingress import Agent
from support.internal import Bench, running_bench
from tunnelmux.errors import SessionClosed, SessionExpired, SessionNotFound
from tunnelmux.sessions import (
    LocalHandle,
    MemoryStore,
    OwnHandle,
    RemoteStore,
    SessionReader,
    SessionStore,
)

STORES = ["memory", "remote"]


class Contract:
    """A store under test, and agents that come and go in the process that owns the sessions."""

    def __init__(self, bench: Bench, kind: str) -> None:
        self.bench = bench
        self.store: SessionReader = bench.store if kind == "memory" else RemoteStore(bench.client)

    @asynccontextmanager
    async def agent(self, device: str = "dev1", token: str | None = None) -> AsyncIterator[Agent]:
        async with self.bench.agent(device, token) as agent:
            yield agent


@pytest.fixture(params=STORES)
async def contract(request: pytest.FixtureRequest) -> AsyncIterator[Contract]:
    async with running_bench() as bench:
        yield Contract(bench, request.param)


async def test_lookup_gives_a_handle_of_the_session(contract: Contract) -> None:
    async with contract.agent() as agent:
        handle = await contract.store.lookup("token-of-dev1")
        assert (handle.token, handle.device) == ("token-of-dev1", "dev1")
        assert not handle.is_closed
        stream = await handle.open_stream()
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert await (await agent.stream()).read_all() == b"hello"


async def test_an_unknown_token_is_not_found_and_is_not_shown(contract: Contract) -> None:
    with pytest.raises(SessionNotFound) as caught:
        await contract.store.lookup("a-guessed-token-value")
    assert "guessed" not in str(caught.value)


async def test_exists_answers_and_never_raises_for_absence(contract: Contract) -> None:
    assert not await contract.store.exists("token-of-dev1")
    async with contract.agent():
        assert await contract.store.exists("token-of-dev1")
    assert not await contract.store.exists("token-of-dev1")


async def test_list_has_a_summary_of_each_live_session_by_device(contract: Contract) -> None:
    assert await contract.store.list() == []
    async with contract.agent("dev2"), contract.agent("dev1") as first:
        listed = await contract.store.list()
        assert [(s.device_id, s.token) for s in listed] == [
            ("dev1", "token-of-dev1"),
            ("dev2", "token-of-dev2"),
        ]
        first.session.abort()
        handle = await contract.bench.store.find_device("dev1")
        if handle is not None:
            assert isinstance(handle, LocalHandle)
            await handle.session.wait_closed()
        assert [s.device_id for s in await contract.store.list()] == ["dev2"]


async def test_a_summary_is_a_snapshot(contract: Contract) -> None:
    async with contract.agent():
        handle = await contract.store.lookup("token-of-dev1")
        before = handle.summary()
        held = before.last_heartbeat
        later = held + timedelta(hours=1)
        local = await contract.bench.store.lookup("token-of-dev1")
        local.record_heartbeat(later)
        assert before.last_heartbeat == held
        again = (await contract.store.lookup("token-of-dev1")).summary()
        assert again.last_heartbeat == later
        assert again.connected_at == before.connected_at
        assert again.remote_addr == "192.0.2.7:50000"


async def test_closing_a_handle_ends_the_session_and_twice_is_no_error(contract: Contract) -> None:
    async with contract.agent() as agent:
        handle = await contract.store.lookup("token-of-dev1")
        twin = await contract.store.lookup("token-of-dev1")
        for again in (handle, handle, twin):
            await again.close()
        assert handle.is_closed
        with trio.fail_after(20):
            await agent.session.wait_closed()
        with pytest.raises(SessionClosed):
            await handle.open_stream()
        assert not await contract.store.exists("token-of-dev1")


async def test_a_handle_whose_session_ended_opens_no_stream(contract: Contract) -> None:
    async with contract.agent() as agent:
        handle = await contract.store.lookup("token-of-dev1")
        agent.session.abort()
        local = await contract.bench.store.find_device("dev1")
        if local is not None:
            assert isinstance(local, LocalHandle)
            await local.session.wait_closed()
        with pytest.raises(SessionClosed):
            await handle.open_stream()
        assert handle.is_closed


async def test_a_replaced_session_is_closed_and_the_new_one_found(contract: Contract) -> None:
    async with contract.agent() as old, contract.agent() as new:
        with trio.fail_after(20):
            await old.session.wait_closed()
        handle = await contract.store.lookup("token-of-dev1")
        stream = await handle.open_stream()
        await stream.send_all(b"to the new one")
        assert await (await new.stream()).read_exactly(14) == b"to the new one"
        assert len(await contract.store.list()) == 1
        await stream.aclose()


async def test_nothing_that_is_printed_shows_a_token(contract: Contract) -> None:
    token = "abcdefghijklmnopqrstuvwxyz"
    async with contract.agent(token=token):
        handle = await contract.store.lookup(token)
        texts = [repr(handle), repr(handle.summary()), repr(await contract.store.list())]
        for text in texts:
            assert "abcdef…" in text
            assert "ghijk" not in text
    assert "abc" not in repr(contract.bench.client)


# -- writing: by the process that owns the sessions -----------------------------


def test_a_store_in_another_process_has_no_methods_for_registering() -> None:
    assert issubclass(RemoteStore, SessionReader)
    assert issubclass(MemoryStore, SessionStore)
    for name in ("register", "unregister", "heartbeat", "cleanup_expired"):
        assert name in dir(MemoryStore)
        assert name not in dir(RemoteStore)


async def test_unregistering_is_no_error_for_the_unknown_and_closes_nothing() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        await bench.store.unregister("never-there")
        await bench.store.unregister("token-of-dev1")
        await bench.store.unregister("token-of-dev1")
        assert not await bench.store.exists("token-of-dev1")
        assert not agent.session.is_closed


async def test_a_heartbeat_is_noted_and_needs_a_session() -> None:
    async with running_bench() as bench, bench.agent():
        handle = await bench.store.lookup("token-of-dev1")
        before = handle.summary().last_heartbeat
        await bench.store.heartbeat("token-of-dev1")
        assert handle.summary().last_heartbeat > before
        with pytest.raises(SessionNotFound):
            await bench.store.heartbeat("nobodys-token")


class FakeHandle(OwnHandle):
    """A session whose connection is nothing but a flag, and that never hears from its agent."""

    def __init__(self, local: LocalHandle, silent_for: float) -> None:
        self._summary = local.summary()
        silence = timedelta(seconds=silent_for)
        self.heard = self._summary.last_heartbeat - silence
        self.closed_because = ""

    @property
    def token(self) -> str:
        return self._summary.token

    @property
    def device(self) -> str:
        return self._summary.device_id

    async def open_stream(self) -> trio.abc.HalfCloseableStream:
        raise SessionClosed("it never was open")

    async def close(self, reason: str = "") -> None:
        self.closed_because = reason

    @property
    def is_closed(self) -> bool:
        return bool(self.closed_because)

    def summary(self):  # type: ignore[no-untyped-def]
        import msgspec

        return msgspec.structs.replace(self._summary, last_heartbeat=self.heard)

    def record_heartbeat(self, at):  # type: ignore[no-untyped-def]
        self.heard = max(self.heard, at)


async def silent_handle(bench: Bench, device: str, silent_for: float) -> FakeHandle:
    async with bench.agent(device):
        local = await bench.store.lookup(f"token-of-{device}")
        assert isinstance(local, LocalHandle)
        return FakeHandle(local, silent_for)


async def test_cleaning_up_closes_what_it_removes_and_counts_it() -> None:
    store = MemoryStore()
    async with running_bench() as bench:
        silent = [await silent_handle(bench, f"dev{n}", 100) for n in (1, 2)]
        fresh = await silent_handle(bench, "dev3", 10)
    for handle in (*silent, fresh):
        await store.register(handle.token, handle)
    assert await store.cleanup_expired(60) == 2
    assert all(handle.closed_because for handle in silent)
    assert not fresh.is_closed
    assert [summary.device_id for summary in await store.list()] == ["dev3"]
    assert await store.cleanup_expired(60) == 0


async def test_a_session_that_expired_before_the_clean_up_says_so() -> None:
    store = MemoryStore(expire_after=60)
    async with running_bench() as bench:
        handle = await silent_handle(bench, "dev1", 61)
    await store.register(handle.token, handle)
    with pytest.raises(SessionExpired):
        await store.lookup(handle.token)
    assert not await store.exists(handle.token)
    await store.heartbeat(handle.token)
    assert await store.lookup(handle.token) is handle
