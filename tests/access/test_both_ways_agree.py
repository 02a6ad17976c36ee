"""Nothing comes in by the pump that h11's way would refuse: both are asked the same, a lot."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import pytest

from tunnelmux.access.passwords import hash_password
from tunnelmux.access.signatures import Signer
from tunnelmux.config.access import AccessConfig, AccessRule, ServiceAccess
from tunnelmux.http.head import parse_request
from tunnelmux.http.refusal import Refused
from tunnelmux.proxy.access.gate import Gate
from tunnelmux.proxy.access.grants import Grants
from tunnelmux.proxy.access.proofs import Asked, Grant, Sender
from tunnelmux.proxy.access.sign_in import SignIn
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.pump.head import HeadScanner
from tunnelmux.sessions import MemoryStore

NOW = 1_800_000_000.0
HASH = hash_password("geheim")
RULES = [
    AccessRule(let_in=["public"]),
    AccessRule(let_in=["public"], deny_from=["127.0.0.1"]),
    AccessRule(let_in=["login"]),
    AccessRule(let_in=["login"], roles=["admin"]),
    AccessRule(let_in=["login"], preflights=True),
    AccessRule(let_in=["link"], allow_from=["127.0.0.0/8"]),
    AccessRule(let_in=["token"], tokens=["a:" + hashlib.sha256(b"token").hexdigest()]),
    AccessRule(let_in=["basic", "login"], users=[f"a:{HASH}"], roles=["viewer"]),
]
OTHER = [
    "",
    "Sec-Fetch-Site: same-origin",
    "Sec-Fetch-Site: same-site",
    "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe",
    "Origin: http://evil",
]


def gate_with(rule: AccessRule) -> tuple[Gate, Grants]:
    known = [KnownDevice(name=name, token_sha256=name.encode() * 8) for name in ("dev1", "dev2")]
    gate = Gate(DeviceRegister(known), MemoryStore(), now=lambda: NOW)
    said = {name: getattr(rule, name) for name in rule.__struct_fields__}
    gate.configure(AccessConfig(rules=[ServiceAccess(device="dev1", **said)]), is_local=True)
    grants = Grants(lambda _: None, now=lambda: NOW)
    gate.sign_in = SignIn(grants, now=lambda: NOW)
    for kind, name, roles in (
        ("session", "viewer", {"default": "viewer"}),
        ("session", "admin", {"default": "admin"}),
        ("session", "stranger", {"acme": "owner"}),
        ("link", "link", {}),
    ):
        grant = Grant(kind, name)  # type: ignore[arg-type]
        grant.user_id, grant.roles, grant.ends = name, roles, NOW + 3600
        grants._known[kind, name] = grant
    return gate, grants


def cookies(grants: Grants) -> Iterator[str]:
    sign = grants.signer.sign
    yield ""
    for kind, name in (
        ("session", "viewer"),
        ("session", "admin"),
        ("session", "stranger"),
        ("session", "nobody"),
        ("link", "link"),
        ("link", "viewer"),
    ):
        good = {"k": kind, "g": name, "d": "dev1", "s": "", "t": NOW}
        if name in {"stranger", "nobody"} or (kind, name) == ("link", "viewer"):
            yield f"tunnelmux-dev-access={sign('cookie', good)}"
            continue
        for name_of in ("tunnelmux-dev-access", "__Host-tunnelmux-access"):
            yield f"{name_of}={sign('cookie', good)}"
        yield f"tunnelmux-dev-access={sign('cookie', good | {'d': 'dev2'})}"
        yield f"tunnelmux-dev-access={sign('cookie', good | {'t': NOW - 901})}"
        yield f"tunnelmux-dev-access={sign('cookie', good | {'t': NOW - 400})}"
        yield f"tunnelmux-dev-access={Signer.new('proxy').sign('cookie', good)}"
        yield f"tunnelmux-dev-access={sign('asked', good)}"
        twice = f"tunnelmux-dev-access={sign('cookie', good)}"
        yield f"{twice}; a=b; {twice}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "+".join(rule.let_in))
async def test_what_the_pump_lets_in_h11_lets_in(rule: AccessRule) -> None:
    gate, grants = gate_with(rule)
    let_in = refused = 0
    for cookie, method, other, token, address, scheme in itertools.product(
        cookies(grants),
        ("GET", "POST", "OPTIONS"),
        OTHER,
        ("", "token"),
        ("127.0.0.1", "203.0.113.1"),
        ("http", "https"),
    ):
        lines = [f"{method} /x HTTP/1.1", "Host: dev1.localhost"]
        lines += [f"Cookie: {cookie}"] if cookie else []
        lines += [other] if other else []
        lines += [f"Tunnelmux-Access: {token}"] if token else []
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        shape = HeadScanner(of_request=True).feed(head)
        if isinstance(shape, str):
            continue  # h11's way anyhow
        sender = Sender(address, scheme)
        by = gate.find("dev1", None, sender, shape["cookie"], shape["login"], shape["access"])  # type: ignore[typeddict-item]
        crosses = shape["from_page"] and not shape["from_here"]  # type: ignore[typeddict-item]
        if by is None or not gate.may_pass(by, crosses=crosses):
            refused += 1
            continue
        let_in += 1
        asked = Asked.of(parse_request(head), sender)
        try:
            admitted = await gate.admit("dev1", None, asked)
        except Refused as exc:
            pytest.fail(f"{head!r} from {sender}: {exc}")
        assert admitted.by.identity == by.identity
        assert admitted.set_cookies == []
    assert let_in > 0
    assert refused > 0 or rule.let_in == ["public"]
