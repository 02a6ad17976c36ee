"""One caller, however many calls it makes at once, keeps no other waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from support.apis import live_api
from support.tenants import person
from tunnelmux.api.access import Principal, Role
from tunnelmux.api.gate import Gate, GateLimits
from tunnelmux.api.problems import Refused
from tunnelmux.api.terminals import Terminals
from tunnelmux.api.turns import KnownCallers
from tunnelmux.config.api import GatewayEndpoint
from tunnelmux.http.fields import TrustedProxies


class Application:
    """Answers nothing before it is told to, but the head of a stream of events."""

    def __init__(self) -> None:
        self.under_way: list[str] = []
        self.go_on = trio.Event()

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        principal = scope["state"]["principal"]
        self.under_way.append(principal.user_id if principal is not None else "stranger")
        kind = b"text/event-stream" if scope["path"] == "/api/events" else b"text/plain"
        start = {"type": "http.response.start", "status": 200}
        if kind == b"text/event-stream":
            await send({**start, "headers": [(b"content-type", kind)]})
        await self.go_on.wait()
        if kind != b"text/event-stream":
            await send({**start, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Callers:
    """Calls through a gate, by people who say who they are in a field."""

    def __init__(self) -> None:
        self.app = Application()
        self.looks: list[str] = []
        self.look_on: trio.Semaphore | None = None
        """Where it is given, each look at a credential waits for it."""
        self.ended: set[str] = set()
        self.answers: list[int] = []
        limits = GateLimits(max_calls=2, max_changes=3, max_looks=2, max_strangers=3)
        trusted = TrustedProxies.parse([])
        self.gate = Gate(self.app, self._identify, trusted_proxies=trusted, limits=limits)

    async def _identify(
        self, connection: HTTPConnection, proven: Callable[[], object]
    ) -> Principal | None:
        shown = connection.headers["authorization"]
        self.looks.append(shown)
        if self.look_on is not None:
            await self.look_on.acquire()
        name, _, tenant = shown.partition("@")
        if not tenant or shown in self.ended:
            return None
        proven()
        if tenant == "slow":  # its role takes time to be found
            await self.app.go_on.wait()
        return Principal(user_id=name, tenant_id=tenant, role=Role.OWNER, token_id="t")

    async def call(
        self,
        who: str,
        path: str = "/api/devices",
        method: str = "GET",
        address: str = "192.0.2.1",
        body: trio.Event | None = None,
        read: trio.Event | None = None,
    ) -> None:
        """One call; with `body` it has one, which comes at that event; with `read` it takes the
        body of the answer then."""
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [
                *([(b"authorization", who.encode())] if who else []),
                *([(b"content-length", b"1")] if body is not None else []),
            ],
            "client": (address, 1),
        }

        async def receive() -> Message:
            if body is not None:
                await body.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answers.append(message["status"])
            elif read is not None:
                await read.wait()

        await self.gate(scope, receive, send)


async def test_so_many_calls_of_one_person_go_on_at_once(autojump_clock: Any) -> None:
    callers = Callers()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(callers.call, "eve@acme")
        await trio.testing.wait_all_tasks_blocked()
        assert callers.app.under_way == ["eve"] * 2
        nursery.start_soon(callers.call, "ada@default")
        await trio.testing.wait_all_tasks_blocked()
        assert callers.app.under_way == ["eve", "eve", "ada"]
        callers.app.go_on.set()
    assert callers.app.under_way.count("eve") == 50
    assert callers.answers == [200] * 51
    assert len(callers.gate._turns) == 0


async def test_all_people_of_a_tenant_together_have_four_times_as_many() -> None:
    callers = Callers()
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(callers.call, f"eve{number % 20}@acme")
        await trio.testing.wait_all_tasks_blocked()
        assert len(callers.app.under_way) == 8
        nursery.start_soon(callers.call, "ada@default")
        await trio.testing.wait_all_tasks_blocked()
        assert callers.app.under_way[-1] == "ada"
        callers.app.go_on.set()


async def test_strangers_share_the_turns_of_their_address() -> None:
    callers = Callers()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(callers.call, "", "/api/auth/login")
        await trio.testing.wait_all_tasks_blocked()
        assert callers.app.under_way == ["stranger"] * 2
        nursery.start_soon(callers.call, "", "/api/auth/login", "GET", "192.0.2.2")
        await trio.testing.wait_all_tasks_blocked()
        assert len(callers.app.under_way) == 3
        callers.app.go_on.set()


@pytest.mark.parametrize(
    ("slow", "other"), [("", ""), ("", "ada@default"), ("eve@acme", "bob@acme")]
)
async def test_who_is_slow_with_a_body_keeps_no_other_waiting(slow: str, other: str) -> None:
    callers, body = Callers(), trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(50):
            who = slow.replace("@", f"{number}@")
            nursery.start_soon(callers.call, who, "/api/auth/login", "POST", "192.0.2.1", body)
        await trio.testing.wait_all_tasks_blocked()
        assert callers.app.under_way == []
        nursery.start_soon(callers.call, other, "/api/auth/login", "POST")
        await trio.testing.wait_all_tasks_blocked()
        assert len(callers.app.under_way) == 1
        callers.app.go_on.set()
        body.set()
    assert callers.answers == [200] * 51
    assert len(callers.gate._turns) == 0


@pytest.mark.parametrize(("slow", "other"), [("", ""), ("eve@acme", "bob@acme")])
async def test_who_reads_an_answer_slowly_keeps_no_other_waiting(slow: str, other: str) -> None:
    callers, read = Callers(), trio.Event()
    callers.app.go_on.set()
    async with trio.open_nursery() as nursery:
        for number in range(8 if slow else 2):  # all turns of the tenant, or of the address
            who = slow.replace("@", f"{number}@")
            nursery.start_soon(partial(callers.call, who, "/api/auth/login", read=read))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            await callers.call(other, "/api/auth/login")
        read.set()


async def test_strangers_at_many_addresses_have_few_turns_and_others_wait_for_none(
    autojump_clock: Any,
) -> None:
    """Each address had turns of its own: so 200 of them kept a person's change waiting for 20 s,
    since SQLite does one after the other."""
    callers, path = Callers(), "/api/pairing/exchange"
    async with trio.open_nursery() as nursery:
        for number in range(400):
            nursery.start_soon(
                partial(callers.call, "", path, "POST", address=f"198.18.{number % 200}.7")
            )
        await trio.testing.wait_all_tasks_blocked()
        assert callers.app.under_way == ["stranger"] * 3
        nursery.start_soon(callers.call, "ada@default")
        # What watches this program, and people who sign in, wait for no stranger either.
        for other in ("/api/health", "/api/auth/login"):
            nursery.start_soon(callers.call, "", other)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(callers.app.under_way[3:]) == ["ada", "stranger", "stranger"]
        callers.app.go_on.set()
    assert Counter(callers.answers) == {200: 403}
    assert len(callers.gate._strangers) == 0


async def test_who_follows_events_holds_no_turn() -> None:
    callers = Callers()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(callers.call, "ada@default", "/api/events")
        await trio.testing.wait_all_tasks_blocked()
        assert callers.app.under_way == ["ada"] * 5
        callers.app.go_on.set()


class Crowd:
    """Strangers at 250 addresses, in as many blocks, who show four wrong tokens each at once."""

    def __init__(self, callers: Callers) -> None:
        self.callers = callers
        callers.look_on = self.look_on = trio.Semaphore(0)

    def come(self, nursery: trio.Nursery, address: Callable[[int], str]) -> None:
        for number in range(1000):
            call = partial(self.callers.call, f"wrong{number}", address=address(number % 250))
            nursery.start_soon(call)

    async def looks_before(self, token: str) -> int:
        """Let one look after the other come to its end, until that one; how many there were."""
        for count in range(3000):
            await trio.testing.wait_all_tasks_blocked()
            if token in self.callers.looks:
                return count
            self.look_on.release()
        raise AssertionError(f"{token} is never looked at")

    def end(self) -> None:
        """Let all looks come to their end."""
        for _ in range(3000):
            self.look_on.release()


def a_block_each(number: int) -> str:
    return f"198.18.{number}.7"


def one_block(number: int) -> str:
    return f"198.18.0.{number}"


def networks_of_a_block(number: int) -> str:
    return f"2001:db8:1:{number:x}::7"


async def test_who_was_known_before_waits_for_no_stranger(autojump_clock: Any) -> None:
    callers = Callers()
    callers.app.go_on.set()
    await callers.call("ada@default")
    crowd = Crowd(callers)
    async with trio.open_nursery() as nursery:
        crowd.come(nursery, a_block_each)
        await trio.testing.wait_all_tasks_blocked()
        assert len(callers.looks) == 1 + 2
        nursery.start_soon(callers.call, "ada@default")
        await trio.testing.wait_all_tasks_blocked()
        assert callers.looks[3:] == ["ada@default"]
        crowd.end()
    assert Counter(callers.answers) == {401: 1000, 200: 2}
    assert len(callers.gate._looks) == 0


@pytest.mark.parametrize(
    ("crowd_at", "most"), [(a_block_each, 252), (one_block, 3), (networks_of_a_block, 3)]
)
async def test_who_is_new_waits_for_one_look_of_each_block_of_addresses(
    autojump_clock: Any, crowd_at: Callable[[int], str], most: int
) -> None:
    callers = Callers()
    callers.app.go_on.set()
    crowd = Crowd(callers)
    async with trio.open_nursery() as nursery:
        crowd.come(nursery, crowd_at)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(callers.call, "ada@default", address="192.0.2.1"))
        assert await crowd.looks_before("ada@default") <= most
        crowd.end()
    assert Counter(callers.answers) == {401: 1000, 200: 1}


async def test_a_neighbour_in_the_block_waits_for_one_look_of_each_address(
    autojump_clock: Any,
) -> None:
    callers = Callers()
    callers.app.go_on.set()
    crowd = Crowd(callers)
    async with trio.open_nursery() as nursery:
        crowd.come(nursery, one_block)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(callers.call, "ada@default", address="198.18.0.251"))
        assert await crowd.looks_before("ada@default") <= 252
        crowd.end()


async def test_a_credential_that_proves_nothing_any_more_is_a_strangers_again() -> None:
    callers = Callers()
    callers.app.go_on.set()
    await callers.call("ada@default")
    assert len(callers.gate._known) == 1
    callers.ended.add("ada@default")
    await callers.call("ada@default")
    assert callers.answers == [200, 401]
    assert len(callers.gate._known) == 0


async def test_who_is_proven_holds_no_look_while_the_role_is_found() -> None:
    callers = Callers()
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(callers.call, f"ada{number}@slow")
        await trio.testing.wait_all_tasks_blocked()
        assert len(callers.looks) == 10
        callers.app.go_on.set()


async def test_a_stranger_waits_so_long_for_a_look(autojump_clock: Any) -> None:
    callers = Callers()
    crowd = Crowd(callers)
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(callers.call, f"wrong{number}")
        await trio.sleep(31)
        assert callers.answers == [429, 429]
        assert len(callers.gate._looks) == 0
        crowd.end()
    assert callers.answers == [429, 429, 401, 401]


async def test_a_stranger_who_leaves_takes_no_look_along(autojump_clock: Any) -> None:
    callers = Callers()
    crowd = Crowd(callers)
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as leaving:
            for number in range(6):
                leaving.start_soon(callers.call, f"wrong{number}")
            await trio.testing.wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        for number in range(6, 10):
            nursery.start_soon(callers.call, f"wrong{number}")
        await trio.testing.wait_all_tasks_blocked()
        later = {f"wrong{number}" for number in range(6, 10)}
        assert len(later & {*callers.looks}) == 2
        assert len(callers.gate._looks) == 2
        crowd.end()
    assert callers.answers == [401] * 4


def test_so_many_credentials_are_known() -> None:
    known = KnownCallers()
    for number in range(10_001):
        known.note(str(number).encode(), "ada")
    assert len(known) == 10_000
    assert (known.whose(b"0"), known.whose(b"10000")) == (None, "ada")


async def test_a_call_waits_so_long_for_its_turn(autojump_clock: Any) -> None:
    callers = Callers()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(callers.call, "eve@acme")
        await trio.testing.wait_all_tasks_blocked()
        await callers.call("eve@acme")
        assert callers.answers == [429]
        callers.app.go_on.set()


async def test_so_many_changes_of_one_person_in_a_minute(autojump_clock: Any) -> None:
    callers = Callers()
    callers.app.go_on.set()
    for _ in range(4):
        await callers.call("eve@acme", method="POST")
    assert callers.answers == [200, 200, 200, 429]
    await callers.call("eve@acme")
    await callers.call("ada@acme", method="POST")
    assert callers.answers[4:] == [200, 200]
    await trio.sleep(60)
    await callers.call("eve@acme", method="POST")
    assert callers.answers[-1] == 200


async def test_filters_by_more_labels_than_a_device_has_are_refused(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        ada = await person(api, "ada")
        for count, status in ((32, 200), (33, 422), (900, 422)):
            query = "&".join(f"label=a{number}=b" for number in range(count))
            answer = await api.call("GET", f"/api/devices?{query}", ada.token)
            assert answer.status_code == status


@pytest.fixture
def terminals(tmp_path: Path) -> Terminals:
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA x\n")
    gateway = GatewayEndpoint(address="127.0.0.1:9", host_key_file=tmp_path / "key.pub")
    return Terminals(gateway, 4, 2)


async def test_one_person_has_so_many_terminals(terminals: Terminals) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminals.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            terminals.open("eve", "", "dev1", "x", (80, 24))
        with pytest.raises(Refused, match="max_terminals_per_person"):
            terminals.open("eve", "", "dev1", "x", (80, 24))
        terminals.open("ada", "", "dev2", "x", (80, 24))
        nursery.cancel_scope.cancel()


async def test_one_tenant_has_so_many_terminals(terminals: Terminals) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminals.run)
        await trio.testing.wait_all_tasks_blocked()
        for name in ("eve", "eve", "mallory"):
            terminals.open(name, "acme", "dev1", "x", (80, 24))
        with pytest.raises(Refused, match="Your tenant has 3 terminals open"):
            terminals.open("mallory", "acme", "dev1", "x", (80, 24))
        terminals.open("ada", "", "dev2", "x", (80, 24))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("when", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"])
async def test_times_that_cannot_be_computed_with_are_refused(tmp_path: Path, when: str) -> None:
    async with live_api(tmp_path) as api:
        ann = await person(api, "ann")
        lease = {"device": "d", "services": ["ssh"], "reason": "r", "starts": when, "seconds": 60}
        asked = await api.call("POST", "/api/leases", ann.token, json=lease)
        listed = await api.call("GET", "/api/audit", ann.token, params={"since": when})
        assert [asked.status_code, listed.status_code] == [422, 422]
        assert "year" in asked.text
