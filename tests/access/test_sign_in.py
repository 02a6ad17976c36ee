"""People who sign in, and those who try to get in by what others have signed."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from support.guarded import BROWSER, PROGRAM
from support.visiting import access_cookie, ring, visiting
from tunnelmux.api.problems import Refused
from tunnelmux.config.access import AccessConfig, ServiceAccess


async def test_a_person_signs_in_and_is_told_to_the_service(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        anna = await world.person("anna", "operator")
        asked, cookie = await world.begin("/x?y=1")
        answer = await world.this.ask(await world.ticket(anna, asked), BROWSER | {"Cookie": cookie})
        assert answer.status == 303
        assert answer.first("location") == "http://dev1.localhost/x?y=1"
        [line] = [value for value in answer.all("set-cookie") if "-access=" in value]
        assert line.startswith("tunnelmux-dev-access=cookie.")
        assert "HttpOnly" in line and "SameSite=Lax" in line and "Domain" not in line
        shown = {"Cookie": f"a=1; {access_cookie(answer)}; b=2"}
        for way in range(3):
            answer = await world.this.ask("/x", BROWSER | shown)
            assert answer.status == 200, way
            assert answer.seen["tunnelmux-user"] == [anna.user.id]
            assert answer.seen["tunnelmux-email"] == ["anna@example.com"]
            assert answer.seen["tunnelmux-roles"] == ["operator"]
            assert answer.seen["cookie"] == ["a=1; b=2"]
        assert world.this.requests == 3


async def test_programs_get_a_problem_document_and_no_redirect(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        for headers, method in (
            (PROGRAM, "GET"),
            (BROWSER, "POST"),
            (BROWSER | {"Sec-Fetch-Mode": "cors"}, "GET"),
            ({}, "GET"),
        ):
            answer = await world.this.ask("/x", headers, method=method)
            assert answer.status == 401, headers
        assert json.loads(answer.body)["reason"] == "access-unproven"


async def test_a_ticket_is_good_once_in_one_browser_for_one_service(tmp_path: Path) -> None:
    async with visiting(tmp_path, services=("web", "other")) as world:
        anna = await world.person()
        asked, cookie = await world.begin()
        path = await world.ticket(anna, asked)
        mine = BROWSER | {"Cookie": cookie}
        other = (await world.begin())[1]
        for headers in (BROWSER, BROWSER | {"Cookie": other}, BROWSER | {"Cookie": cookie + "x"}):
            assert (await world.this.ask(path, headers)).status == 403, headers
        for host in ("other--dev1.localhost", "dev1.localhost:81", "DEV1.localhost.x"):
            assert (await world.this.ask(path, mine, host=host)).status in {403, 404}, host
        for changed in (path[:-1], path + "A", path.replace("ticket.", "cookie."), "/x?ticket="):
            assert (await world.this.ask(changed, mine)).status in {302, 403}, changed
        # What others have tried has not used it up.
        assert (await world.this.ask(path, mine)).status == 303
        visitor = await world.this.visitor()
        async with visitor.stream:
            for _ in range(50):
                answer = await visitor.ask(path, mine)
                assert answer.status == 403
        assert world.this.requests == 0


async def test_no_ticket_goes_to_an_address_that_a_stranger_has_named(tmp_path: Path) -> None:
    """A stranger begins a sign-in under the address of a machine of theirs, and has a person open
    where it leads: the ticket would arrive there, and be good in the stranger's hands."""
    device = {"Tunnelmux-Device": "dev1", "X-Forwarded-Proto": "https"}
    async with visiting(tmp_path, trusted=("127.0.0.1",)) as world:
        theirs = ("203.0.113.66", "203.0.113.66.:443", "[2001:db8::66]", "3405803842", "a", "a.")
        for host in (*theirs, "127.0.0.1", "localhost"):
            stranger = BROWSER | device | {"X-Forwarded-For": "203.0.113.66"}
            answer = await world.this.ask("/", stranger, host=host)
            assert (answer.status, answer.all("location")) == (403, []), host
            assert b"dev1.DOMAIN" in answer.body, "it says where to sign in"
        # At this machine itself an address is good, as is a host of the ingress from anywhere.
        for host in ("127.0.0.1", "localhost:8080", "[::1]"):
            here = BROWSER | {"Tunnelmux-Device": "dev1"}
            assert (await world.this.ask("/", here, host=host)).status == 302, host
        person = BROWSER | {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
        assert (await world.this.ask("/", person)).status == 302


@pytest.mark.slow
async def test_a_thousand_tickets_that_are_no_good(tmp_path: Path) -> None:
    """Used before, stale, of another host or device, signed by an old key, by a proxy, or by
    nobody."""
    async with visiting(tmp_path) as world:
        anna = await world.person()
        asked, cookie = await world.begin()
        mine = BROWSER | {"Cookie": cookie}
        good, old = ring().signers[0], ring(2).signers[0]
        signer = world.this.proxy._access.grants.signer
        now = asked["t"]
        payload = {"g": anna.session_id, "t": now, **{key: asked[key] for key in "dsobp"}}
        elsewhere = asked["o"].replace("dev1", "dev2")
        assert elsewhere != asked["o"]

        def no_good(number: int) -> str:
            own = payload | {"j": f"{number}"}
            match number % 7:
                case 0:
                    return good.sign("ticket", payload | {"j": "used"})
                case 1:
                    return good.sign("ticket", own | {"t": now - 61 - number})
                case 2:
                    return old.sign("ticket", own)
                case 3:
                    return good.sign("ticket", own | {"d": "dev2"})
                case 4:
                    return good.sign("ticket", own | {"o": elsewhere})
                case 5:
                    return signer.sign("cookie", own).replace("cookie.", "ticket.", 1)
                case _:
                    ticket = good.sign("ticket", own)
                    return ticket[:-2] + ("AA" if ticket[-2:] != "AA" else "BB")

        def path(ticket: str) -> str:
            return f"/.well-known/tunnelmux/ticket?ticket={ticket}"

        # What is wrong below is this alone: the first use of the one that comes again is good.
        assert (await world.this.ask(path(no_good(0)), mine)).status == 303
        visitor = await world.this.visitor()
        statuses: list[set[int]] = [set() for _ in range(7)]
        async with visitor.stream:
            for number in range(1000):
                answer = await visitor.ask(path(no_good(number)), mine)
                statuses[number % 7].add(answer.status)
        # One person's tickets are looked up so often in a minute, and no more.
        assert statuses == [{403, 429}, *[{403}] * 6]
        assert world.this.requests == 0


async def test_a_cookie_is_good_for_its_own_service_only(tmp_path: Path) -> None:
    async with visiting(tmp_path, services=("web", "other")) as world:
        anna = await world.person()
        shown = await world.come_in(anna)
        assert (await world.this.ask("/x", PROGRAM | shown)).status == 200
        for host in ("other--dev1.localhost", "web--dev1.localhost"):
            assert (await world.this.ask("/x", PROGRAM | shown, host=host)).status == 401
        text = shown["Cookie"]
        for wrong in (
            text[:-1],
            text.replace("tunnelmux-dev-", "__Host-tunnelmux-"),
            text.replace("=cookie.", "=ticket."),
            f"{text}; {text}",
        ):
            assert (await world.this.ask("/x", PROGRAM | {"Cookie": wrong})).status == 401, wrong


@pytest.mark.slow
async def test_roles_and_people_narrow_who_may(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        anna = await world.person("anna", "viewer")
        berta = await world.person("berta", "admin")
        carl = await world.person("carl", None)
        shown = {person.user.name: await world.come_in(person) for person in (anna, berta)}
        with pytest.raises(Refused, match="no member"):
            asked, _ = await world.begin()
            await world.ticket(carl, asked)
        for rule, who in (
            ({"roles": ["admin"]}, {"berta"}),
            ({"people": [anna.user.id]}, {"anna"}),
            ({"people": [anna.user.id], "roles": ["admin"]}, {"anna", "berta"}),
            ({"roles": ["owner"]}, set()),
            ({}, {"anna", "berta"}),
        ):
            await world.set_rule(let_in=["login"], **rule)
            for name, cookie in shown.items():
                for _ in range(2):
                    answer = await world.this.ask("/x", PROGRAM | cookie)
                    assert answer.status == (200 if name in who else 403), (rule, name)


async def test_the_file_comes_before_the_registry(tmp_path: Path) -> None:
    rules = [ServiceAccess(device="dev1", service="web", let_in=["public"])]
    async with visiting(tmp_path, AccessConfig(rules=rules), services=("web", "other")) as world:
        assert (await world.this.ask("/x", host="web--dev1.localhost")).status == 200
        assert (await world.this.ask("/x")).status == 200
        assert (await world.this.ask("/x", host="other--dev1.localhost")).status == 401


async def test_another_devices_page_cannot_act_for_a_visitor(tmp_path: Path) -> None:
    """It is the same site to a browser, which sends the cookie along."""
    async with visiting(tmp_path) as world:
        shown = BROWSER | await world.come_in(await world.person())
        foreign = {"Sec-Fetch-Site": "same-site", "Origin": "http://dev2.localhost"}
        own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://dev1.localhost"}
        for _ in range(2):
            assert (await world.this.ask("/x", shown | own, method="POST")).status == 200
            assert (await world.this.ask("/x", shown | foreign, method="POST")).status == 403
            only_origin = {"Origin": "http://dev2.localhost"}
            assert (await world.this.ask("/x", shown | only_origin, method="DELETE")).status == 403
            assert (await world.this.ask("/x", shown | foreign)).status == 200


async def test_a_link_lets_in_whoever_has_it(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        link_id, path = await world.link()
        for _ in range(2):
            answer = await world.this.ask(path, BROWSER)
            assert answer.status == 303
            shown = {"Cookie": access_cookie(answer)}
            answer = await world.this.ask("/x", PROGRAM | shown)
            assert answer.status == 200 and answer.seen["tunnelmux-user"] == [f"link:{link_id}"]
        assert (await world.this.ask(path, BROWSER, method="HEAD")).status == 405
        assert (await world.this.ask(path[:-1], BROWSER)).status == 403
        _, number = await world.tenant.service_links.revoke(world.device_id, link_id)
        assert not (await world.registry.changes.effects(number, within=10)).missing
        assert (await world.this.ask("/x", PROGRAM | shown)).status == 401
        assert (await world.this.ask(path, BROWSER)).status == 403


async def test_a_link_for_one_browser(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        _, path = await world.link(once=True)
        # Programs that look at links, browsers among them, do not use it up.
        for fields in (BROWSER, PROGRAM, {"User-Agent": "Slackbot-LinkExpanding 1.0"}):
            answer = await world.this.ask(path, fields)
            assert answer.status == 200
            assert answer.first("tunnelmux-reason") == "link-unopened"
            assert answer.all("set-cookie") == []
        assert (await world.this.ask(path, BROWSER, method="HEAD")).status == 405
        page = await world.this.ask(path, BROWSER)
        assert b'<form method="post"><button>' in page.body
        assert "form-action 'self'" in page.first("content-security-policy")
        answer = await world.this.ask(path, BROWSER, method="POST")
        assert answer.status == 303
        shown = {"Cookie": access_cookie(answer)}
        assert (await world.this.ask(path, BROWSER, method="POST")).status == 403
        assert (await world.this.ask("/x", PROGRAM | shown)).status == 200
        await world.set_rule(let_in=["token"], tokens=["a:" + "0" * 64])
        assert (await world.this.ask("/x", PROGRAM | shown)).status == 401


async def test_an_assertion_is_signed_by_a_key_that_the_api_shows(tmp_path: Path) -> None:
    def part(text: str) -> bytes:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))

    async with visiting(tmp_path) as world:
        anna = await world.person()
        shown = await world.come_in(anna)
        await world.set_rule(let_in=["login"], assertion=True, user_field="X-Forwarded-User")
        [key] = await world.proofs.proxies_keys()
        for _ in range(3):
            answer = await world.this.ask("/x", PROGRAM | shown)
            signed, _, signature = answer.seen["tunnelmux-assertion"][0].rpartition(".")
            public = Ed25519PublicKey.from_public_bytes(key.public)
            public.verify(part(signature), signed.encode())
            header, claims = (json.loads(part(text)) for text in signed.split("."))
            assert header == {"alg": "EdDSA", "typ": "JWT", "kid": key.id}
            assert claims["sub"] == anna.user.id
            assert claims["aud"] == "dev1.localhost"
            assert claims["exp"] - claims["iat"] == 60
            assert answer.seen["x-forwarded-user"] == [anna.user.id]


def test_rules_are_plain_data() -> None:
    rule = ServiceAccess(device="dev1", let_in=["login"], roles=["admin"])
    assert msgspec.convert(msgspec.to_builtins(rule), ServiceAccess) == rule
