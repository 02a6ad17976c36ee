"""Following what happens: live, after a cut, in one tenant only, and no longer than one may."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from support.apis import LiveApi, live_api
from support.tenants import TEST, person
from tunnelmux.api.context import Places
from tunnelmux.api.events import EventHub
from tunnelmux.config import Secret
from tunnelmux.config.api import ApiLimits
from tunnelmux.errors import RegistryAway
from tunnelmux.sessions import SessionEvent


class Follower:
    """Reads a stream of events by lines. Those of the chunks look like nothing that it needs."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._unread = b""
        self.last_id = ""

    async def line(self) -> str:
        """The next line; raises EOFError at the end."""
        while b"\n" not in self._unread:
            data = await self._stream.receive_some()
            if not data:
                raise EOFError
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        if line == b"0\r":  # the last chunk
            raise EOFError
        return line.decode().rstrip("\r")

    async def event(self) -> tuple[str, dict[str, str]]:
        """The next event's kind and content."""
        kind = ""
        with trio.fail_after(20):
            while True:
                name, _, value = (await self.line()).partition(": ")
                if name == "id":
                    self.last_id = value
                elif name == "event":
                    kind = value
                elif name == "data":
                    return kind, json.loads(value)

    async def device_event(self) -> tuple[str, dict[str, str]]:
        """The next event about a device; those about people are passed over."""
        while not (event := await self.event())[0].startswith("device."):
            pass
        return event

    async def following(self) -> None:
        """Return once the stream has begun."""
        with trio.fail_after(20):
            assert "200" in await self.line()
            while await self.line() != ": following":
                pass


@asynccontextmanager
async def following(api: LiveApi, token: str, last_id: str = "") -> AsyncIterator[Follower]:
    head = f"GET /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    if last_id:
        head += f"Last-Event-ID: {last_id}\r\n"
    async with await trio.open_tcp_stream("127.0.0.1", api.running.port) as stream:
        await stream.send_all(head.encode() + b"\r\n")
        follower = Follower(stream)
        await follower.following()
        yield follower


async def add_device(api: LiveApi, token: str, name: str) -> str:
    answer = await api.call("POST", "/api/devices", token, json={"name": name})
    return str(answer.json()["device"]["id"])


async def test_changes_come_as_they_happen_and_only_ones_own(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        ada = await person(api, "ada")
        eve = await person(api, "eve", tenant="acme")
        async with following(api, ada.token) as follower:
            await add_device(api, eve.token, "evil")
            device_id = await add_device(api, ada.token, "dev1")
            kind, content = await follower.device_event()
            assert (kind, content["object_id"]) == ("device.changed", device_id)


async def test_a_follower_that_comes_back_misses_nothing(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        ada = await person(api, "ada")
        async with following(api, ada.token) as follower:
            await add_device(api, ada.token, "dev1")
            await follower.device_event()
        missed = await add_device(api, ada.token, "dev2")
        async with following(api, ada.token, follower.last_id) as again:
            assert (await again.device_event())[1]["object_id"] == missed


async def test_an_id_of_another_process_is_a_gap(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        ada = await person(api, "ada")
        for last_id in ("00000000-7", "rubbish", "x-x"):
            async with following(api, ada.token, last_id) as follower:
                assert (await follower.event())[0] == "gap"


@pytest.mark.slow
async def test_it_ends_with_the_token(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        ada = await person(api, "ada")
        tenant = api.running.api.registry.tenant(ada.tenant_id, TEST)
        (token,) = (await tenant.access_tokens.page()).items
        async with following(api, ada.token) as follower:
            await tenant.access_tokens.revoke(token.id)
            ended = trio.Event()

            async def read_on() -> None:
                try:
                    while True:
                        await follower.event()
                except EOFError:
                    ended.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_on)
                with trio.fail_after(20):
                    await ended.wait()


@pytest.mark.slow  # the registry is asked again after a second
@pytest.mark.slow
async def test_it_goes_on_after_the_registry_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live_api(tmp_path) as api:
        ada = await person(api, "ada")
        changes = api.running.api.registry.changes
        after, calls, again = changes.after, 0, trio.Event()

        async def away_once(number: int, *, limit: int = 500) -> object:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise RegistryAway("stopped")
            again.set()
            return await after(number, limit=limit)

        monkeypatch.setattr(changes, "after", away_once)
        await add_device(api, ada.token, "dev1")  # has the changes asked for, which fails
        async with following(api, ada.token) as follower:
            with trio.fail_after(20):
                await again.wait()
            await add_device(api, ada.token, "dev2")
            assert (await follower.device_event())[0] == "device.changed"


async def test_followers_are_bounded(tmp_path: Path) -> None:
    async with live_api(tmp_path, limits=ApiLimits(max_events=1)) as api:
        ada = await person(api, "ada")
        async with following(api, ada.token):
            refused = await api.call("GET", "/api/events", ada.token)
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_followers")


async def test_one_person_does_not_take_all_places(tmp_path: Path) -> None:
    limits = ApiLimits(max_events=4, max_events_per_person=2)
    async with live_api(tmp_path, limits=limits) as api, contextlib.AsyncExitStack() as stack:
        ada, bob = await person(api, "ada"), await person(api, "bob")
        for _ in range(2):
            await stack.enter_async_context(following(api, ada.token))
        refused = await api.call("GET", "/api/events", ada.token)
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_followers")
        assert "max_events_per_person" in refused.json()["detail"]
        async with following(api, bob.token) as follower:
            await add_device(api, ada.token, "dev1")
            assert (await follower.device_event())[0] == "device.changed"


def test_the_default_tenant_which_often_is_the_only_one_may_take_all() -> None:
    places = Places(4, 2)
    assert [places.take(name, "") for name in ("ada", "ada", "bob", "bob")] == [""] * 4
    assert (places.take("ada", ""), places.take("eve", "acme")) == ("person", "all")
    for name in ("ada", "ada", "bob"):
        places.give_back(name, "")
    assert [places.take(name, "acme") for name in ("eve", "eve", "mallory")] == [""] * 3
    places.give_back("bob", "")
    assert places.take("mallory", "acme") == "tenant"
    places.give_back("eve", "acme")
    assert places.take("mallory", "acme") == ""
    assert places.taken == 3


async def test_one_tenant_does_not_take_all_places(tmp_path: Path) -> None:
    limits = ApiLimits(max_events=4, max_events_per_person=2)
    async with live_api(tmp_path, limits=limits) as api, contextlib.AsyncExitStack() as stack:
        ada = await person(api, "ada")
        eve, mallory = [await person(api, name, tenant="acme") for name in ("eve", "mallory")]
        for one in (eve, eve, mallory):
            await stack.enter_async_context(following(api, one.token))
        refused = await api.call("GET", "/api/events", mallory.token)
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_followers")
        assert "Your tenant follows events 3 times" in refused.json()["detail"]
        async with following(api, ada.token) as follower:
            await add_device(api, ada.token, "dev1")
            assert (await follower.device_event())[0] == "device.changed"


async def test_a_flood_of_one_tenants_events_costs_another_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live_api(tmp_path) as api:
        ada = await person(api, "ada")
        hub, registry = api.running.api.hub, api.running.api.registry
        prove, looks = registry.prove_token, 0

        async def counted(token: Secret, *, address: str) -> object:
            nonlocal looks
            looks += 1
            return await prove(token, address=address)

        async with following(api, ada.token) as follower:
            seen = hub.last_number
            hub._record(ada.tenant_id, "device.lost", "mine", datetime.now(UTC))
            assert (await follower.device_event())[0] == "device.lost"
            monkeypatch.setattr(registry, "prove_token", counted)
            began = trio.current_time()
            for _ in range(5000):
                hub._record("evil", "device.lost", "theirs", datetime.now(UTC))
                await trio.lowlevel.checkpoint()
            hub._record(ada.tenant_id, "device.connected", "mine", datetime.now(UTC))
            kinds = []
            while kinds[-1:] != ["device.connected"]:
                kinds.append((await follower.event())[0])
            passed = trio.current_time() - began
            assert "gap" not in kinds
            assert looks <= passed + 1  # one each second, and not one for each event
        found, has_gap = hub.after(seen, ada.tenant_id)
        assert [event.object_id for event in found].count("mine") == 2
        assert not has_gap
        assert hub.after(seen, "evil")[1]


async def test_a_burst_goes_to_a_follower_in_few_pieces(tmp_path: Path) -> None:
    """Each piece costs a turn and a write for each follower: 256 followers of a thousand events
    would keep other callers waiting for seconds."""
    async with live_api(tmp_path) as api:
        ada = await person(api, "ada")
        hub = api.running.api.hub
        head = f"GET /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ada.token}\r\n\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", api.running.port) as stream:
            await stream.send_all(head.encode())
            follower = Follower(stream)
            await follower.following()
            for number in range(500):  # at once: no follower has its turn within
                hub._record(ada.tenant_id, "lamp.changed", f"lamp-{number}", datetime.now(UTC))
            lines = []
            with trio.fail_after(20):
                while not any('"lamp-499"' in line for line in lines):
                    lines.append(await follower.line())
        told = [line for line in lines if "lamp-" in line]
        assert [json.loads(line[6:])["object_id"] for line in told] == [
            f"lamp-{number}" for number in range(500)
        ]
        pieces = [line for line in lines if re.fullmatch("[0-9a-f]+", line)]
        assert 1 <= len(pieces) <= 10


async def test_what_all_nodes_of_a_cluster_tell_is_told_once() -> None:
    said = SessionEvent(
        seq=7,
        type="connected",
        time=datetime.now(UTC),
        token_prefix="abc",
        device_id="dev1",
        user_id="",
        remote_addr="",
    )

    class OneNode:
        @asynccontextmanager
        async def events(self) -> AsyncIterator[AsyncIterator[tuple[str, SessionEvent | None]]]:
            async def tell() -> AsyncIterator[tuple[str, SessionEvent | None]]:
                for event_id in ("e-7", "e-8"):
                    yield event_id, said

            yield tell()

    taken: list[SessionEvent] = []
    hub = EventHub(None, None)  # type: ignore[arg-type]  # neither is asked
    hub._take_session = taken.append  # type: ignore[method-assign]
    for _ in range(2):
        await hub._follow_proxy(OneNode())  # type: ignore[arg-type]
    assert taken == [said, said]
