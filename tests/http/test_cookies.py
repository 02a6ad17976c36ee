"""A device's cookies stay with the device."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmux.http.fields import clearing_own, own_cookies
from tunnelmux.pump.cookies import (
    clearing_only_own,
    head_clearing_only_own,
    without_parent_domains,
)

HOST = b"web--dev1.devices.example.com:8080"


@pytest.mark.parametrize(
    "domain",
    [
        b"devices.example.com",
        b".devices.example.com",
        b"..devices.example.com",
        b"DEVICES.Example.COM",
        b"devices.example.com.",
        b"example.com",
        b"com",
        b' "devices.example.com"',
        b"devices.ex%61mple.com",
        "b\u00fccher.example".encode(),
        b"devices.example.com\x01",
    ],
)
def test_a_domain_above_the_host_is_taken_out(domain: bytes) -> None:
    for attribute in (b"Domain=" + domain, b"\tdOmAiN \t= " + domain + b" "):
        value = b"id=1; Path=/;" + attribute + b"; HttpOnly"
        assert without_parent_domains(value, HOST) == b"id=1; Path=/; HttpOnly"
        assert without_parent_domains(b"id=1;" + attribute, HOST) == b"id=1"


@pytest.mark.parametrize(
    "value",
    [
        b"id=1",
        b"",
        b";",
        b"id=1; Path=/; Secure; HttpOnly; SameSite=Lax",
        b"Domain=devices.example.com",  # the cookie's own name
        b"id=1; Domain=web--dev1.devices.example.com",
        b"id=1; Domain=.WEB--dev1.devices.example.com",
        b"id=1; Domain=dev1.devices.example.com",  # a neighbour: a browser refuses it
        b"id=1; Domain=router.lan",
        b"id=1; Domain=vices.example.com",
        b"id=1; Domain=",
        b"id=1; Domain",
        b"id=1; Domains=example.com",
        b"id=1; Path=/Domain=example.com",
    ],
)
def test_all_else_stays_as_it_is(value: bytes) -> None:
    assert without_parent_domains(value, HOST) == value


def test_none_of_several_stays() -> None:
    value = b"id=1; Domain=dev9.lan; Domain=example.com; Secure; Domain=.com"
    assert without_parent_domains(value, HOST) == b"id=1; Domain=dev9.lan; Secure"


@pytest.mark.parametrize("host", [b"dev1.localhost", b"dev1.localhost.", b"DEV1.localhost.:80"])
def test_the_host_is_read_without_its_port_and_dot(host: bytes) -> None:
    assert without_parent_domains(b"a=b; Domain=localhost", host) == b"a=b"
    assert without_parent_domains(b"a=b; Domain=dev1.localhost", host) != b"a=b"


@pytest.mark.parametrize("host", [b"", b".", b":", b"[::1]:80", b"127.0.0.1"])
def test_a_host_that_is_no_name_is_no_trouble(host: bytes) -> None:
    assert without_parent_domains(b"a=b; Domain=example.com; Secure", host)


@given(st.text('dD;=. \tominexaplcw"%\u00fc-1', max_size=60))
def test_what_a_browser_would_take_for_a_parent_never_comes_through(text: str) -> None:
    value = b"a=b; " + text.encode()
    out = without_parent_domains(value, b"web.example.com")
    for attribute in out.split(b";")[1:]:
        name, _, domain = attribute.partition(b"=")
        if name.strip().lower() == b"domain":
            plain = domain.strip().lower().lstrip(b".").removesuffix(b".")
            assert re.fullmatch(rb"[a-z0-9.-]*", plain)
            assert plain == b"" or not b"web.example.com".endswith(b"." + plain)
    assert without_parent_domains(out, b"web.example.com") == out


def test_only_set_cookie_is_looked_at() -> None:
    fields = [
        (b"SET-COOKIE", b"a=1; Domain=localhost"),
        (b"Set-Cookie", b"b=2"),
        (b"X-Cookie", b"c=3; Domain=localhost"),
    ]
    assert own_cookies(fields, b"dev1.localhost") == [
        (b"SET-COOKIE", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"X-Cookie", b"c=3; Domain=localhost"),
    ]


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (b'"cookies"', b""),
        (b'"*"', b'"cache", "executionContexts", "storage"'),
        (b'"cache", "cookies", "storage"', b'"cache", "storage"'),
        (b'"cache" ,\t"COOKIES"', b'"cache"'),
        (b'"cookies", "*"', b'"cache", "executionContexts", "storage"'),
        (b"cookies", b""),  # some browsers look at the word only
        (b'"cook\\ies", "storage"', b'"storage"'),
        (b'"something-new"', b""),
        (b"", b""),
    ],
)
def test_cookies_of_the_whole_domain_are_not_cleared(value: bytes, held: bytes) -> None:
    assert clearing_only_own(value) == held
    assert clearing_own([(b"Clear-Site-Data", value), (b"A", b"b")]) == [
        *([(b"Clear-Site-Data", held)] if held else []),
        (b"A", b"b"),
    ]
    head = b"HTTP/1.1 200 OK\r\nCLEAR-Site-Data:%s\r\nA: b\r\n\r\n" % value
    line = b"CLEAR-Site-Data: %s\r\n" % held if held else b""
    assert head_clearing_only_own(head) == b"HTTP/1.1 200 OK\r\n" + line + b"A: b\r\n\r\n"


@pytest.mark.parametrize("value", [b'"cache"', b'"storage","cache"', b' "executionContexts" '])
def test_what_concerns_one_origin_is_cleared_as_it_was_said(value: bytes) -> None:
    assert clearing_only_own(value) is value
    head = b"HTTP/1.1 200 OK\r\nClear-Site-Data:%s\r\n\r\n" % value
    assert head_clearing_only_own(head) == head


@given(
    st.binary(max_size=40)
    | st.lists(st.sampled_from([b'"*"', b'"cookies"', b'"cache"', b"*", b" ", b""])).map(b",".join)
)
def test_no_value_clears_cookies(value: bytes) -> None:
    for member in clearing_only_own(value).split(b","):
        assert b"*" not in member and b"cookies" not in member.lower()
