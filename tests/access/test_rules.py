"""Who may visit by the rules of proxy.toml: by h11 and in the pump, for browsers and programs."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from typing import Any

import pytest

from support.guarded import BROWSER, PROGRAM, Guarded, guarded
from tunnelmux.access.passwords import hash_password
from tunnelmux.config.access import AccessConfig, ServiceAccess

TOKEN = "program-token"
TOKENS = ["deploy:" + hashlib.sha256(TOKEN.encode()).hexdigest()]
ANNA = "anna:" + hash_password("geheim")


def basic(name: str, password: str) -> dict[str, str]:
    text = base64.b64encode(f"{name}:{password}".encode()).decode()
    return {"Authorization": f"Basic {text}"}


GOOD = {
    "basic": basic("anna", "geheim"),
    "token": {"Tunnelmux-Access": TOKEN},
}
BAD: dict[str, dict[str, str]] = {
    "nothing": {},
    "a wrong password": basic("anna", "geheim "),
    "a name that nobody has": basic("berta", "geheim"),
    "no base64": {"Authorization": "Basic §"},
    "a bearer token": {"Authorization": f"Bearer {TOKEN}"},
    "a wrong token": {"Tunnelmux-Access": TOKEN + "x"},
    "an empty token": {"Tunnelmux-Access": ""},
    "a token in another case": {"Tunnelmux-Access": TOKEN.upper()},
    "a cookie": {"Cookie": "__Host-tunnelmux-access=cookie.a.b.c"},
    "a cookie without a prefix": {"Cookie": "tunnelmux-dev-access=cookie.a.b.c"},
}
BOTH = AccessConfig(let_in=["basic", "token"], users=[ANNA], tokens=TOKENS)


async def both_ways(this: Guarded, path: str, headers: dict[str, str], **more: Any) -> list[int]:
    """The status by h11 alone, of a new visitor in the pump, and of one who is there already."""
    good = GOOD["token"]
    first = await this.ask(path, headers, **more)
    await this.warm_up(good)
    second = await this.ask(path, headers, **more)
    visitor = await this.visitor()
    async with visitor.stream:
        assert (await visitor.ask("/", good)).status == 200
        third = await visitor.ask(path, headers, **more)
    return [first.status, second.status, third.status]


@pytest.mark.parametrize("client", [BROWSER, PROGRAM], ids=["browser", "program"])
async def test_what_is_not_good_comes_in_nowhere(client: dict[str, str]) -> None:
    async with guarded(BOTH) as this:
        for name, shown in BAD.items():
            if not all(value.isascii() for value in shown.values()):
                continue
            before = this.requests
            statuses = await both_ways(this, "/x", client | shown)
            assert statuses == [401, 401, 401], name
            assert this.requests - before == 3, name  # those of warming up, and the good one


async def test_what_is_good_comes_in_everywhere() -> None:
    async with guarded(BOTH) as this:
        for name, shown in GOOD.items():
            assert await both_ways(this, "/x", PROGRAM | shown) == [200, 200, 200], name


async def test_a_program_is_told_by_a_problem_document() -> None:
    async with guarded(BOTH) as this:
        answer = await this.ask("/x", PROGRAM)
        assert answer.status == 401
        assert answer.first("content-type") == "application/problem+json"
        problem = json.loads(answer.body)
        assert problem["reason"] == "access-unproven"
        assert problem["status"] == 401
        assert "Tunnelmux-Access" in problem["detail"]
        challenges = answer.all("www-authenticate")
        assert challenges == [
            'Basic realm="tunnelmux", charset="UTF-8"',
            'Tunnelmux-Access realm="tunnelmux"',
        ]


async def test_a_browser_is_asked_for_a_password_and_shown_a_page() -> None:
    async with guarded(AccessConfig(let_in=["basic"], users=[ANNA])) as this:
        answer = await this.ask("/x", BROWSER)
        assert answer.status == 401
        assert answer.first("content-type").startswith("text/html")
        assert answer.first("www-authenticate").startswith("Basic ")


async def test_the_proof_stops_at_the_proxy_and_the_identity_goes_on() -> None:
    """On both paths the same, whatever the visitor says of itself."""
    lies = {
        "Tunnelmux-User": "root",
        "Tunnelmux-Email": "root@example.com",
        "Remote-User": "root",
        "X-Forwarded-User": "root",
        "Cookie": "a=1; __Host-tunnelmux-access=x; b=2; tunnelmux-dev-sign-in=y",
    }
    rule = AccessConfig(
        let_in=["basic", "token"], users=[ANNA], tokens=TOKENS, user_field="Remote-User"
    )
    async with guarded(rule) as this:
        seen = []
        for way in ("by h11", "in the pump"):
            if way == "in the pump":
                await this.warm_up(GOOD["basic"])
            answer = await this.ask("/x", PROGRAM | lies | GOOD["basic"])
            assert answer.status == 200, way
            assert answer.seen["tunnelmux-user"] == ["anna"], way
            assert answer.seen["remote-user"] == ["anna"], way
            assert answer.seen["cookie"] == ["a=1; b=2"], way
            gone = {"authorization", "tunnelmux-email", "tunnelmux-access", "x-forwarded-user"}
            assert not gone & answer.seen.keys(), way
            answer.seen.pop("connection", None)
            seen.append(answer.seen)
        assert seen[0] == seen[1]
        answer = await this.ask("/x", PROGRAM | GOOD["token"] | {"Authorization": "Bearer own"})
        assert answer.seen["authorization"] == ["Bearer own"]
        assert answer.seen["tunnelmux-user"] == ["deploy"]


async def test_a_device_cannot_set_a_cookie_of_the_proxys_own() -> None:
    names = [
        b"__Host-tunnelmux-access=x",
        b" __HOST-Tunnelmux-access=x; Path=/",
        b"=tunnelmux-dev-access=x",
    ]
    async with guarded() as this:
        this.set_cookies = [*names, b"own=1", b"a=__Host-tunnelmux-access"]
        for _ in range(3):
            answer = await this.ask("/x")
            assert answer.all("set-cookie") == ["own=1", "a=__Host-tunnelmux-access"]


async def test_address_lists_come_before_all_else() -> None:
    here, elsewhere = "127.0.0.1", "203.0.113.9"
    for lists, is_let_in in (
        ({"allow_from": ["127.0.0.0/8"]}, True),
        ({"allow_from": ["203.0.113.0/24"]}, False),
        ({"deny_from": ["127.0.0.1"]}, False),
        ({"allow_from": ["127.0.0.0/8"], "deny_from": [here]}, False),
        ({"deny_from": [elsewhere]}, True),
    ):
        rule = AccessConfig(let_in=["token"], tokens=TOKENS, **lists)
        async with guarded(rule) as this:
            for _ in range(2):
                answer = await this.ask("/x", PROGRAM | GOOD["token"])
                assert answer.status == (200 if is_let_in else 403), lists
                if not is_let_in:
                    assert json.loads(answer.body)["reason"] == "access-denied"
            assert this.requests == (2 if is_let_in else 0)


async def test_the_address_is_that_of_the_visitor_behind_a_trusted_proxy() -> None:
    rule = AccessConfig(let_in=["public"], allow_from=["198.51.100.0/24"])
    async with guarded(rule, trusted=("127.0.0.1",)) as this:
        for path, address, status in itertools.product("ab", ("198.51.100.7", "203.0.113.9"), (0,)):
            del status
            wanted = 200 if address.startswith("198") else 403
            answer = await this.ask(f"/{path}", {"X-Forwarded-For": address})
            assert answer.status == wanted, (path, address)
            # A visitor may write what it likes before what the trusted proxy adds.
            answer = await this.ask(f"/{path}", {"X-Forwarded-For": f"198.51.100.7, {address}"})
            assert answer.status == wanted, (path, address)


async def test_a_services_rule_holds_by_whatever_name_it_is_reached() -> None:
    """Its name may be left out, as it is the device's default service."""
    rule = AccessConfig(
        let_in=["public"],
        rules=[ServiceAccess(device="dev1", service="web", let_in=["token"], tokens=TOKENS)],
    )
    async with guarded(rule, services=("web", "open")) as this:
        for host in (
            "web--dev1.localhost",
            "dev1.localhost",
            "WEB--dev1.localhost.",
            "dev1.localhost:80",
        ):
            for _ in range(2):
                assert (await this.ask("/x", PROGRAM, host=host)).status == 401, host
                assert (await this.ask("/x", GOOD["token"], host=host)).status == 200, host
        for _ in range(3):
            assert (await this.ask("/x", host="open--dev1.localhost")).status == 200
        fields = {"Tunnelmux-Device": "dev1", "Tunnelmux-Service": "web"}
        assert (await this.ask("/x", PROGRAM | fields, host="127.0.0.1")).status == 401
        fields = {"Tunnelmux-Device": "dev1"}
        assert (await this.ask("/x", PROGRAM | fields, host="127.0.0.1")).status == 401


async def test_preflights_pass_where_the_rule_says_so() -> None:
    preflight = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "PUT"}
    for passes in (True, False):
        rule = AccessConfig(let_in=["token"], tokens=TOKENS, preflights=passes)
        async with guarded(rule) as this:
            for _ in range(2):
                answer = await this.ask("/x", preflight, method="OPTIONS")
                assert answer.status == (200 if passes else 401)
                assert (await this.ask("/x", PROGRAM, method="OPTIONS")).status == 401
                assert (await this.ask("/x", preflight)).status == 401
                await this.warm_up(GOOD["token"])


async def test_a_reload_judges_everybody_again() -> None:
    import msgspec

    async with guarded() as this:
        visitor = await this.visitor()
        async with visitor.stream:
            assert (await visitor.ask("/x", PROGRAM)).status == 200
            assert (await visitor.ask("/x", PROGRAM)).status == 200
            config = msgspec.structs.replace(this.proxy.config, access=BOTH)
            await this.proxy.reload(config)
            assert (await visitor.ask("/x", PROGRAM)).status == 401
            assert (await visitor.ask("/x", GOOD["token"])).status == 200


async def test_who_guesses_passwords_is_held_up() -> None:
    async with guarded(AccessConfig(let_in=["basic"], users=[ANNA])) as this:
        statuses = [(await this.ask("/x", basic("anna", f"{n}"))).status for n in range(24)]
        assert set(statuses[:20]) == {401}
        assert set(statuses[20:]) == {429}
        answer = await this.ask("/x", basic("anna", "geheim"))
        assert answer.status == 429 and int(answer.first("retry-after")) > 0
