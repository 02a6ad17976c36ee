"""What a target gets to see of a visitor's fields."""

from __future__ import annotations

import json

import pytest

from tunnelmux.http.fields import (
    TrustedProxies,
    Visitor,
    end_to_end,
    forwarding_fields,
    replace_host,
    safe_trailers,
    without_own_fields,
)
from tunnelmux.http.refusal import REASONS, Refusal
from tunnelmux.http.refusal_page import HEADLINES
from tunnelmux.pump.field_names import field_kind

SPOOFED = [
    (b"X-Forwarded-For", b"1.1.1.1"),
    (b"x-forwarded-proto", b"https"),
    (b"X-Forwarded-Host", b"bank.example"),
    (b"X-Forwarded-Port", b"443"),
    (b"X-Real-IP", b"1.1.1.1"),
    (b"Forwarded", b'for=1.1.1.1;host="a,b"'),
]

ONLY_A_PROXY_SAYS = [
    *(b"Forwarded", b"Forwarded-For", b"X-Forwarded", b"X-Forward-For", b"X-Forwarded-Prefix"),
    *(b"X-Forwarded-Ssl", b"X-Forwarded-User", b"X-Real-IP", b"Client-IP", b"True-Client-IP"),
    *(b"X-Client-IP", b"X-Cluster-Client-IP", b"CF-Connecting-IP", b"Fastly-Client-IP"),
    *(b"X-Original-URL", b"X-Original-Host", b"X-Rewrite-URL", b"X-Host", b"X-Scheme"),
    *(b"Proxy", b"Proxy-Client-IP", b"WL-Proxy-Client-IP", b"Front-End-Https", b"Script-Name"),
    *(b"Remote-User", b"X-Remote-User", b"X-WebAuth-User", b"Client-Cert", b"X-Accel-Mapping"),
]


def test_hop_by_hop_fields_stop_here_also_those_that_connection_names() -> None:
    fields = [
        (b"Host", b"a"),
        (b"Connection", b"keep-alive, X-Secret, HOST, content-length"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"Proxy-Authorization", b"Basic x"),
        (b"TE", b"trailers"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"x"),
        (b"x-secret", b"1"),
        (b"Content-Length", b"3"),
        (b"Trailer", b"X-Sum"),
        (b"Cookie", b"a=b"),
    ]
    assert end_to_end(fields) == [
        (b"Host", b"a"),
        (b"Content-Length", b"3"),
        (b"Trailer", b"X-Sum"),
        (b"Cookie", b"a=b"),
    ]


def test_own_fields_of_a_visitor_are_dropped_in_every_spelling() -> None:
    fields = [(b"TUNNELMUX-Service", b"ssh"), (b"Tunnelmux_Device", b"x"), (b"Accept", b"*/*")]
    assert without_own_fields(fields) == [(b"Accept", b"*/*")]


def test_an_untrusted_visitor_cannot_say_who_it_is() -> None:
    visitor = Visitor("203.0.113.7")
    underscored = [(b"X_Forwarded_For", b"9.9.9.9")]
    fields = forwarding_fields([*SPOOFED, *underscored, (b"Accept", b"*/*")], visitor, b"dev1.x:81")
    assert fields == [
        (b"Accept", b"*/*"),
        (b"X-Forwarded-For", b"203.0.113.7"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"dev1.x:81"),
        (b"Forwarded", b'for=203.0.113.7;host="dev1.x:81";proto=http'),
    ]


@pytest.mark.parametrize("name", ONLY_A_PROXY_SAYS)
def test_no_visitor_says_what_only_a_proxy_may_say(name: bytes) -> None:
    ours = forwarding_fields([], Visitor("203.0.113.7"), b"dev1.x")
    spellings = {name, name.upper(), name.replace(b"-", b"_"), name.replace(b"-", b".")}
    usual = name.startswith(b"X-Forwarded-") or name in (b"Forwarded", b"X-Real-IP")
    for trusted in (False, True):
        visitor = Visitor("203.0.113.7", trusted=trusted)
        for spelling in spellings - ({name, name.upper()} if trusted and usual else set()):
            fields = forwarding_fields([(spelling, b"1")], visitor, b"dev1.x")
            assert fields == ours, f"{spelling!r} came through"
    assert safe_trailers([(spelling, b"1") for spelling in spellings]) == []


def test_a_trusted_proxy_says_what_it_was_asked_to_say() -> None:
    believed = TrustedProxies.parse([], ["Remote-User"]).fields
    fields = [(b"REMOTE-USER", b"ann"), (b"Remote-Groups", b"admin"), (b"Remote_User", b"eve")]
    seen = forwarding_fields(fields, Visitor("10.0.0.1", trusted=True, believed=believed), b"d")
    assert fields[0] in seen and not {fields[1], fields[2]} & set(seen)
    assert fields[0] not in forwarding_fields(fields, Visitor("10.0.0.1", believed=believed), b"d")


@pytest.mark.parametrize(
    "name",
    [
        b"Content_Length",
        b"Transfer_Encoding",
        b"Transfer.Encoding",
        b"Keep_Alive",
        b"Proxy~Connection",
    ],
)
def test_a_framing_field_in_disguise_goes_no_further(name: bytes) -> None:
    assert end_to_end([(name, b"4"), (b"Accept_Charset", b"x")]) == [(b"Accept_Charset", b"x")]


@pytest.mark.parametrize(
    "name",
    [b"X-Requested-With", b"X-Auth-Token", b"X-Api-Key", b"Via", b"Range", b"X_Custom", b"Origin"],
)
def test_ordinary_fields_pass(name: bytes) -> None:
    assert (name, b"1") in forwarding_fields([(name, b"1")], Visitor("203.0.113.7"), b"dev1.x")
    assert field_kind(name) == "ordinary"


def test_a_trusted_proxy_is_believed_and_appended_to() -> None:
    visitor = Visitor("2001:db8::1", scheme="http", trusted=True)
    underscored = [(b"X_Forwarded_For", b"9.9.9.9")]
    assert forwarding_fields([*SPOOFED, *underscored], visitor, b"dev1.x") == [
        (b"X-Forwarded-Port", b"443"),
        (b"X-Real-IP", b"1.1.1.1"),
        (b"X-Forwarded-For", b"1.1.1.1, 2001:db8::1"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"bank.example"),
        (
            b"Forwarded",
            b'for=1.1.1.1;host="bank.example";proto=https, %s'
            % b'for="[2001:db8::1]";host="dev1.x";proto=http',
        ),
    ]


@pytest.mark.parametrize(
    ("networks", "address", "trusted"),
    [
        ([], "127.0.0.1", False),
        (["127.0.0.1"], "127.0.0.1", True),
        (["10.0.0.0/8"], "10.9.8.7", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], "::ffff:10.1.1.1", True),
        (["fd00::/8"], "fd00::1", True),
        (["fd00::/8"], "10.0.0.1", False),
        (["10.0.0.0/8"], "not an address", False),
    ],
)
def test_trusted_networks(networks: list[str], address: str, trusted: bool) -> None:
    assert (address in TrustedProxies.parse(networks)) is trusted


def test_replaced_host_comes_first_and_alone() -> None:
    fields = [(b"Accept", b"*/*"), (b"HOST", b"dev1.localhost")]
    assert replace_host(fields, b"localhost:8000") == [
        (b"Host", b"localhost:8000"),
        (b"Accept", b"*/*"),
    ]


def test_trailers_cannot_carry_what_belongs_into_a_head() -> None:
    bad = [b"Host", b"content-length", b"Set-Cookie", b"Tunnelmux-Reason", b"X-Forwarded-For"]
    assert safe_trailers([(name, b"x") for name in bad] + [(b"X-Sum", b"1")]) == [(b"X-Sum", b"1")]


def test_refusal_as_a_page_and_as_a_problem_document() -> None:
    refusal = Refusal(503, "device-offline", "Device <dev1> is offline.", retry_after=10)
    fields, body = refusal.render(b"text/html,*/*")
    assert (b"Content-Type", b"text/html; charset=utf-8") in fields
    assert b"Device &lt;dev1&gt; is offline." in body
    assert b"<h1>This device is offline</h1>" in body
    assert b'<a href="">Try again</a> in 10 seconds' in body
    assert b"503 Service Unavailable" in body
    assert b"script" not in body and b"http:" not in body and b"src=" not in body
    assert dict(fields)[b"Content-Security-Policy"].startswith(b"default-src 'none'")
    fields, body = refusal.render(b"application/json")
    assert (b"Content-Type", b"application/problem+json") in fields
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "Device <dev1> is offline.",
        "reason": "device-offline",
    }
    assert (b"Retry-After", b"10") in fields
    assert (b"Tunnelmux-Reason", b"device-offline") in fields


def test_headlines_are_for_reasons_that_exist_and_others_have_their_status() -> None:
    assert HEADLINES.keys() <= REASONS.keys()
    _, body = Refusal(401, "token-expired", "It is old.").render(b"text/html")
    assert b"<h1>Unauthorized</h1>" in body
    assert b"Try again" not in body


def test_every_reason_has_a_refusal_status() -> None:
    for reason, status in REASONS.items():
        # One is no refusal: a handshake that asks for no session is refused it, and content.
        assert 400 <= status < 600 or (reason, status) in {
            ("credential-proved", 200),
            ("access-proven", 303),
            ("link-unopened", 200),
        }
        assert Refusal(status, reason, "x").phrase
