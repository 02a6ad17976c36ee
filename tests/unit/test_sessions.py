"""The register of agents: who is connected, who was, and who is waited for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
import trio
import trio.testing

from support.sessions import session_pair
from tunnelmux.errors import SessionClosed, SessionNotFound
from tunnelmux.mux import Session
from tunnelmux.sessions import LocalHandle, MemoryStore, SessionSummary, shorten_token

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


class WallClock:
    """A wall clock that moves with Trio's, from noon."""

    def __init__(self) -> None:
        self._start = trio.current_time()

    def __call__(self) -> datetime:
        return NOON + timedelta(seconds=trio.current_time() - self._start)


@pytest.fixture
async def session() -> AsyncIterator[Session]:
    async with session_pair() as (_agent, session):
        yield session


def handle_of(session: Session, token: str = "secret-of-dev1", device: str = "dev1") -> LocalHandle:
    return LocalHandle(
        session,
        token=token,
        device=device,
        remote_address="192.0.2.7:50000",
        clock=WallClock(),
    )


async def test_a_registered_session_is_found_by_token_and_by_device(session: Session) -> None:
    store = MemoryStore()
    handle = handle_of(session)
    await store.register(handle.token, handle)

    assert await store.lookup("secret-of-dev1") is handle
    assert await store.find_device("dev1") is handle
    assert [summary.device_id for summary in await store.list()] == ["dev1"]


async def test_an_unknown_token_is_not_found_and_the_error_does_not_show_it() -> None:
    with pytest.raises(SessionNotFound) as caught:
        await MemoryStore().lookup("guessed-token-value")
    assert "guessed" not in str(caught.value)


async def test_unregistering_an_unknown_token_is_no_error() -> None:
    await MemoryStore().unregister("never-there")


@pytest.mark.parametrize("token", ["secret-of-dev1", "newer-secret-of-dev1"])
async def test_the_same_device_replaces_its_old_session_at_once(token: str) -> None:
    store = MemoryStore()
    async with session_pair() as (agent, old), session_pair() as (_, new):
        first, second = handle_of(old), handle_of(new, token)
        await store.register(first.token, first)
        await store.register(token, second)

        assert await store.find_device("dev1") is second
        assert await store.lookup(token) is second
        assert first.is_closed
        assert old.is_closed
        with pytest.raises(SessionClosed):
            await first.open_stream()
        assert first.close_reason == "replaced by a new connection of the same device"
        with trio.fail_after(20):
            await agent.wait_closed()
        # What the old session's task does when it ends takes nothing away from its successor.
        await store.unregister(first.token, first)
        assert await store.find_device("dev1") is second


async def test_a_token_that_now_belongs_to_another_device_leaves_its_old_one() -> None:
    store = MemoryStore()
    async with session_pair() as (_, old), session_pair() as (_, new):
        first, second = handle_of(old), handle_of(new, device="dev2")
        await store.register(first.token, first)
        await store.register(second.token, second)

        assert await store.find_device("dev1") is None
        assert await store.find_device("dev2") is second
        assert first.is_closed


async def test_a_session_that_ended_is_gone_before_anybody_unregisters_it(session: Session) -> None:
    store = MemoryStore()
    handle = handle_of(session)
    await store.register(handle.token, handle)
    session.abort()

    assert await store.find_device("dev1") is None
    assert await store.list() == []
    with pytest.raises(SessionNotFound):
        await store.lookup(handle.token)
    assert store.lost_at("dev1") is not None


async def test_last_seen_is_the_last_byte_of_a_lost_device(autojump_clock: object) -> None:
    store = MemoryStore()
    assert store.last_seen("dev1") is None
    async with session_pair() as (agent, session):
        handle = handle_of(session)
        await store.register(handle.token, handle)
        await trio.sleep(5)
        await agent.ping()
        await trio.sleep(3)
        await store.unregister(handle.token, handle)

        assert store.last_seen("dev1") == NOON + timedelta(seconds=5)
        assert store.lost_at("dev1") == trio.current_time()
        store.forget_device("dev1")
        assert store.last_seen("dev1") is None


async def test_waiting_ends_when_the_device_arrives(autojump_clock: object) -> None:
    store = MemoryStore()
    async with session_pair() as (_, session), trio.open_nursery() as nursery:
        handle = handle_of(session)
        found: list[object] = []

        async def wait() -> None:
            found.append(await store.wait_for_device("dev1", trio.current_time() + 5))
            found.append(trio.current_time() - started)

        started = trio.current_time()
        nursery.start_soon(wait)
        await trio.sleep(2)
        await store.register(handle.token, handle)
        await trio.testing.wait_all_tasks_blocked()
        assert found == [handle, 2.0]


async def test_waiting_in_vain_ends_on_time_and_leaves_nothing(autojump_clock: object) -> None:
    store = MemoryStore()
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for seconds in (3, 5):
            nursery.start_soon(store.wait_for_device, "dev1", started + seconds)
    assert trio.current_time() - started == 5
    assert store._arrivals == {}


async def test_waiting_until_a_moment_that_has_passed_still_finds_who_is_there(
    session: Session,
) -> None:
    store = MemoryStore()
    handle = handle_of(session)
    await store.register(handle.token, handle)
    assert await store.wait_for_device("dev1", trio.current_time() - 1) is handle
    assert await store.wait_for_device("dev2", trio.current_time() - 1) is None


async def test_a_heartbeat_moves_the_summary_and_not_its_earlier_copy(session: Session) -> None:
    handle = handle_of(session)
    before = handle.summary()
    handle.record_heartbeat(NOON + timedelta(hours=1))
    handle.record_heartbeat(NOON - timedelta(hours=1))

    assert handle.summary().last_heartbeat == NOON + timedelta(hours=1)
    assert before.last_heartbeat < NOON + timedelta(minutes=1)


def test_a_summary_has_the_json_names_that_back_ends_read() -> None:
    summary = SessionSummary(
        token="secret-of-dev1",
        user_id="",
        device_id="dev1",
        connected_at=NOON,
        last_heartbeat=NOON,
        proxy_internal_url="http://127.0.0.1:3801",
    )
    assert msgspec.json.decode(msgspec.json.encode(summary)) == {
        "token": "secret-of-dev1",
        "userId": "",
        "deviceId": "dev1",
        "connectedAt": "2026-05-04T12:00:00Z",
        "lastHeartbeat": "2026-05-04T12:00:00Z",
        "proxyInternalUrl": "http://127.0.0.1:3801",
    }


async def test_no_repr_shows_a_token(session: Session) -> None:
    handle = handle_of(session, token="abcdefghijklmnopqrstuvwxyz0123456789")
    for text in (repr(handle), repr(handle.summary())):
        assert "abcdef…" in text
        assert "abcdefg" not in text


def test_a_short_token_is_shortened_more() -> None:
    assert shorten_token("12345678") == "12…"
    assert shorten_token("abc") == "…"
