"""What is answered about a person is what the gate does with them, and a refusal says the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.guarded import BROWSER
from support.visiting import Person, World, visiting
from tunnelmux.proxy.access.proofs import Grant, Sender
from tunnelmux.sessions.decisions import Decision

pytestmark = pytest.mark.slow

HOST = "web--dev1.localhost"


def decided(world: World, person: Person, role: str | None, address: str = "127.0.0.1") -> Decision:
    grant = Grant("session", "")
    grant.user_id, grant.name = person.user.id, person.user.name
    grant.roles = {"default": role} if role is not None else {}
    gate = world.this.proxy._gate
    return gate.decide("dev1", "web", grant, Sender(address) if address else None)


async def tried(world: World, person: Person) -> tuple[bool, str]:
    """Whether the gate lets a person in who signs in, and what it says where it does not."""
    asked, cookie = await world.begin(host=HOST)
    path = await world.ticket(person, asked)
    answer = await world.this.ask(path, BROWSER | {"Cookie": cookie}, host=HOST)
    assert answer.status in {303, 403}, answer
    return answer.status == 303, answer.body.decode()


RULES: list[dict[str, Any]] = [
    {"let_in": ["login"]},
    {"let_in": ["login"], "roles": ["admin", "owner"]},
    {"let_in": ["lease"]},
    {"let_in": ["login", "lease"], "roles": ["owner"]},
]


async def test_each_answer_is_what_happens_then(tmp_path: Path) -> None:
    """For each rule: a viewer, an owner, and a viewer with a lease; by what is told of it, too."""
    async with visiting(tmp_path, assists=tmp_path) as world:
        anna = await world.person("anna")
        olga = await world.person("olga", "owner")
        vera = await world.person("vera")
        lease = await world.lease(vera)
        seen: dict[tuple[int, str], tuple[bool, str]] = {}
        for number, rule in enumerate(RULES):
            await world.set_rule("web", **rule)
            for person, role in ((anna, "viewer"), (olga, "owner"), (vera, "viewer")):
                answer = decided(world, person, role)
                came_in, said = await tried(world, person)
                assert answer.allowed == came_in, (rule, answer)
                assert (answer.rule.source, answer.rule.scope) == ("registry", "service")
                assert answer.rule.let_in == rule["let_in"]
                if not came_in:
                    # A refusal carries the same answer; their e-mail stands for their name there.
                    assert answer.reason.partition(";")[0] in said.replace("&#x27;", "'")
                seen[number, person.user.name] = answer.allowed, answer.by
        assert seen == {
            (0, "anna"): (True, "login"),
            (0, "olga"): (True, "login"),
            (0, "vera"): (True, "login"),
            (1, "anna"): (False, ""),
            (1, "olga"): (True, "login"),
            (1, "vera"): (False, ""),
            (2, "anna"): (False, ""),
            (2, "olga"): (False, ""),
            (2, "vera"): (True, "lease"),
            (3, "anna"): (False, ""),
            (3, "olga"): (True, "login"),
            (3, "vera"): (True, "lease"),
        }
        by_lease = decided(world, vera, "viewer")
        assert (by_lease.until, by_lease.lease) == (lease.ends, lease.id)


async def test_what_holds_without_a_rule_and_by_address(tmp_path: Path) -> None:
    async with visiting(tmp_path, assists=tmp_path) as world:
        anna = await world.person("anna")
        by_default = decided(world, anna, "viewer")
        assert (by_default.allowed, by_default.by, by_default.until) == (True, "login", None)
        assert (by_default.rule.source, by_default.rule.scope) == ("default", "all")
        stranger = decided(world, anna, None)
        assert not stranger.allowed
        assert "anna is no member of the tenant default" in stranger.reason
        await world.set_rule(let_in=["public"], allow_from=["192.0.2.0/24"])
        assert decided(world, anna, None, "192.0.2.7").by == "public"
        assert decided(world, anna, None, "").by == "public"
        elsewhere = decided(world, anna, "owner", "198.51.100.1")
        assert not elsewhere.allowed
        assert "it does not allow the address 198.51.100.1" in elsewhere.reason
        assert elsewhere.rule.scope == "device"
        await world.set_rule(let_in=["lease"])
        ends = datetime.now(UTC) + timedelta(minutes=5)
        await world.lease(anna, addresses=("192.0.2.0/24",), ends=ends)
        assert not decided(world, anna, "viewer", "198.51.100.1").allowed
        assert decided(world, anna, "viewer", "192.0.2.9").allowed
        assert decided(world, anna, "viewer", "").allowed


async def test_a_stranger_is_not_told_the_rule(tmp_path: Path) -> None:
    """Who is signed in and no member learns that they may not, and nothing of who may."""
    async with visiting(tmp_path, assists=tmp_path) as world:
        await world.set_rule("web", let_in=["login"], roles=["owner"])
        anna = await world.person("anna")
        rule = world.this.proxy._gate.rules.find("dev1", "web")
        sign_in = world.this.proxy._gate.sign_in
        assert sign_in is not None
        grant = Grant("session", "")
        grant.user_id, grant.email = anna.user.id, anna.user.email
        told = sign_in.denied(rule, grant, "dev1", "web", Sender("127.0.0.1"))
        assert "anna@example.com, who may not use this service" in told.message
        assert "owner" not in told.message
        grant.roles = {"default": "viewer"}
        told = sign_in.denied(rule, grant, "dev1", "web", Sender("127.0.0.1"))
        assert "with the role owner; anna@example.com is viewer" in told.message
