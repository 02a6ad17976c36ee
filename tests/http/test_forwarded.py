"""`Forwarded` and `X-Forwarded-*` say the same, whichever of them a target reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmux.http.fields import (
    TrustedProxies,
    Visitor,
    client_address,
    forwarding_fields,
    reported_hosts,
    reported_scheme,
)
from tunnelmux.http.forwarded import MOST_HOPS, Hop, parse_forwarded, write_forwarded
from tunnelmux.http.head import Field, field_values

NGINX = Visitor("127.0.0.1", trusted=True)
OURS = b'for=127.0.0.1;host="dev1.x:81";proto=http'


def sent(*fields: Field, visitor: Visitor = NGINX) -> dict[bytes, bytes]:
    """What the target sees of a request with these fields."""
    seen = dict(forwarding_fields(fields, visitor, b"dev1.x:81"))
    assert len(seen) == len(forwarding_fields(fields, visitor, b"dev1.x:81"))
    return seen


FOR = (b"X-Forwarded-For", b"203.0.113.9")
PROTO = (b"X-Forwarded-Proto", b"https")
HOST = (b"X-Forwarded-Host", b"www.example.com")


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ((FOR, PROTO), b'for=203.0.113.9;host="dev1.x:81";proto=https'),
        ((FOR, PROTO, HOST), b'for=203.0.113.9;host="www.example.com";proto=https'),
        ((FOR,), b'for=203.0.113.9;host="dev1.x:81";proto=http'),
        ((PROTO,), b'host="dev1.x:81";proto=https'),
        ((FOR, PROTO, (b"Forwarded", b"for=203.0.113.9;proto=https;by=_a")),
         b'for=203.0.113.9;host="dev1.x:81";proto=https;by=_a'),
        # A visitor's own, which the proxy passed on
        ((FOR, PROTO, (b"Forwarded", b"for=6.6.6.6;proto=https")),
         b'for=203.0.113.9;host="dev1.x:81";proto=https'),
        ((FOR, PROTO, (b"Forwarded", b"for=203.0.113.9;proto=http")),
         b'for=203.0.113.9;host="dev1.x:81";proto=https'),
        ((FOR, PROTO, (b"Forwarded", b"for=203.0.113.9")),
         b'for=203.0.113.9;host="dev1.x:81";proto=https'),
        ((FOR, PROTO, (b"Forwarded", b'for="203.0.113.9')),
         b'for=203.0.113.9;host="dev1.x:81";proto=https'),
    ],
)  # fmt: skip
def test_forwarded_follows_what_a_trusted_proxy_says_in_the_other_way(
    fields: tuple[Field, ...], first: bytes
) -> None:
    assert sent(*fields)[b"Forwarded"] == first + b", " + OURS


def test_the_other_way_follows_forwarded() -> None:
    seen = sent((b"Forwarded", b'For="[2001:DB8::1]";Proto=https;Host="www.example.com", for=_b'))
    assert seen[b"X-Forwarded-For"] == b"2001:DB8::1, _b, 127.0.0.1"
    assert seen[b"X-Forwarded-Proto"] == b"https"
    assert seen[b"X-Forwarded-Host"] == b"www.example.com"
    assert seen[b"Forwarded"] == (
        b'for="[2001:DB8::1]";host="www.example.com";proto=https, for=_b, ' + OURS
    )


def test_a_chain_of_proxies() -> None:
    addresses = b"203.0.113.9, 2001:db8::7, [2001:db8::8]:443, 192.0.2.1:80, unknown, what?"
    seen = sent((b"X-Forwarded-For", addresses), (b"X-Forwarded-Proto", b"https"))
    assert seen[b"X-Forwarded-For"] == addresses + b", 127.0.0.1"
    assert seen[b"Forwarded"] == (
        b'for=203.0.113.9;host="dev1.x:81";proto=https, for="[2001:db8::7]", '
        b'for="[2001:db8::8]:443", for="192.0.2.1:80", for=unknown, for=unknown, ' + OURS
    )


def test_a_chain_whose_protocols_are_all_told() -> None:
    seen = sent(
        (b"X-Forwarded-For", b"203.0.113.9, 192.0.2.1"),
        (b"X-Forwarded-Proto", b"https, http"),
        (b"X-Forwarded-Host", b"a.example, b.example"),
    )
    assert seen[b"Forwarded"] == (
        b'for=203.0.113.9;host="a.example";proto=https, '
        b'for=192.0.2.1;host="b.example";proto=http, ' + OURS
    )


class Counted(TrustedProxies):
    """Trusts 192.0.2.0/24, and counts how often it is asked."""

    asked = 0

    def __contains__(self, address: str) -> bool:
        Counted.asked += 1
        return super().__contains__(address)


def test_only_the_last_hops_count_and_cost() -> None:
    """A proxy may pass on 60 KB that a visitor wrote."""
    trusted = Counted.parse(["192.0.2.0/24"])
    theirs = b"192.0.2.1," * 6000
    last = b", ".join(b"192.0.2.%d" % number for number in range(100, 100 + MOST_HOPS - 1))
    said = b"203.0.113.9, " + last
    for fields in (
        [(b"X-Forwarded-For", theirs + said)],
        [(b"X-Forwarded-For", theirs), *[(b"x-forwarded-for", b",")] * 9, (FOR[0], said)],
    ):
        assert sent(*fields)[b"X-Forwarded-For"] == said + b", 127.0.0.1"
        assert sent(*fields)[b"Forwarded"].count(b"for=") == MOST_HOPS + 1
        Counted.asked = 0
        assert client_address(fields, trusted) == "203.0.113.9"
        assert Counted.asked == MOST_HOPS
    # One more proxy, and nothing further left is looked at.
    assert client_address([(FOR[0], said + b",192.0.2.7")], trusted) == "192.0.2.100"
    many = b"a," * 30_000 + b"https"
    assert len(sent((b"X-Forwarded-Proto", many))[b"X-Forwarded-Proto"].split(b",")) == MOST_HOPS
    assert len(reported_hosts([(b"X-Forwarded-Host", many)])) == MOST_HOPS
    assert client_address([(FOR[0], b"," * 60_000)], trusted) is None


def test_a_long_forwarded_line_of_a_visitor_is_left_out() -> None:
    ours = (b"Forwarded", b"for=203.0.113.9;proto=https")
    for theirs in (
        b"for=192.0.2.1, " * 4000 + b"for=192.0.2.1",
        b";".join(b"a%d=b" % number for number in range(7000)),
        b'for="' + b"\\a" * 29_000 + b'"',
        b'for="' + b'\\"' * 29_000,
        b'for="192.0.2.1',
    ):
        fields = [(b"Forwarded", theirs), ours]
        assert sent(*fields)[b"Forwarded"] == (
            b'for=203.0.113.9;host="dev1.x:81";proto=https, ' + OURS
        )
        assert client_address(fields, TrustedProxies.parse(["192.0.2.0/24"])) == "203.0.113.9"
    short = [(b"Forwarded", b", ".join([b"for=_a"] * 100))] * 9
    assert sent(*short)[b"Forwarded"].count(b"for=_a") == MOST_HOPS


@pytest.mark.parametrize(
    ("said", "client", "scheme"),
    [
        ([FOR, PROTO], "203.0.113.9", b"https"),
        ([(b"Forwarded", b'for=192.0.2.1;proto=https, for="[2001:db8::7]:443";proto=http')],
         "2001:db8::7", b"https"),
        # X-Forwarded-For counts where there is any: a visitor's own Forwarded may have passed.
        ([FOR, PROTO, (b"Forwarded", b"for=6.6.6.6;proto=http")], "203.0.113.9", b"https"),
        ([(FOR[0], b"6.6.6.6, 203.0.113.9:51234")], "203.0.113.9", None),
        ([(FOR[0], b"6.6.6.6, [2001:DB8::7]:51234, 192.0.2.3:80")], "2001:db8::7", None),
        ([(FOR[0], b"::ffff:203.0.113.9")], "203.0.113.9", None),
        ([(FOR[0], b"6.6.6.6, unknown")], None, None),
        ([(FOR[0], b"6.6.6.6, unknown, 192.0.2.3")], "192.0.2.3", None),
        ([(b"Forwarded", b"for=6.6.6.6, for=_hidden, for=192.0.2.3")], "192.0.2.3", None),
        ([], None, None),
    ],
)  # fmt: skip
def test_who_asks_behind_the_trusted_proxies(
    said: list[Field], client: str | None, scheme: bytes | None
) -> None:
    assert client_address(said, TrustedProxies.parse(["192.0.2.0/24"])) == client
    assert reported_scheme(said) == scheme


def test_both_say_the_same_of_a_visitor_without_a_proxy() -> None:
    for address, node in (
        ("203.0.113.7", b"203.0.113.7"),
        ("::ffff:203.0.113.7", b"203.0.113.7"),
        ("2001:db8::1", b'"[2001:db8::1]"'),
        ("fe80::1%eth0", b'"[fe80::1]"'),
    ):
        seen = sent(FOR, PROTO, HOST, visitor=Visitor(address, "https"))
        assert seen[b"Forwarded"] == b'for=%s;host="dev1.x:81";proto=https' % node
        assert seen[b"X-Forwarded-For"] == node.strip(b'"[]')
        assert seen[b"X-Forwarded-Proto"] == b"https"
        assert seen[b"X-Forwarded-Host"] == b"dev1.x:81"


@pytest.mark.parametrize(
    ("value", "hops"),
    [
        (b"", ()),
        (b" , ,", ()),
        (b"for=1.2.3.4", (Hop(b"1.2.3.4"),)),
        (b'for="a\\"b";by=x', (Hop(b'a"b', more=((b"by", b"x"),)),)),
        (b'host="a,b;c"', (Hop(host=b"a,b;c"),)),
        (b"for=a;;proto=b ,\tfor=c;", (Hop(b"a", proto=b"b"), Hop(b"c"))),
        (b"for=[::1]", None),
        (b"for=1.2.3.4:80", None),
        (b"for", None),
        (b'for="a', None),
        (b"for=a;for=b", None),
        (b"for=a;FOR=a", None),
        (b"for=a b", None),
    ],
)
def test_forwarded_as_rfc_7239_writes_it(value: bytes, hops: tuple[Hop, ...] | None) -> None:
    assert parse_forwarded(value) == hops


@given(st.text('for=host;proto,"\\[:]1a. ', max_size=80))
def test_what_is_written_reads_the_same(text: str) -> None:
    value = text.encode()
    hops = parse_forwarded(value)
    if hops:
        written = write_forwarded(hops)
        again = parse_forwarded(written)
        assert again is not None and len(again) == len(hops)
        assert write_forwarded(again) == written


ADDRESSES = st.sampled_from([b"203.0.113.9", b"::1", b"[::1]:80", b"unknown", b"x y", b"_h", b'"'])
ELEMENTS = st.lists(st.text('for=12."[:],;proto', max_size=12).map(str.encode), max_size=3)


@given(
    st.lists(ADDRESSES, max_size=3),
    st.lists(st.sampled_from([b"http", b"https", b"ws"]), max_size=3),
    st.lists(st.sampled_from([b"a.example", b"b.example:1"]), max_size=3),
    ELEMENTS,
)
def test_they_never_disagree(
    addresses: list[bytes], protos: list[bytes], hosts: list[bytes], elements: list[bytes]
) -> None:
    given_fields = [
        *((b"X-Forwarded-For", one) for one in addresses),
        *((b"X-Forwarded-Proto", one) for one in protos),
        *((b"X-Forwarded-Host", one) for one in hosts),
        *((b"Forwarded", one) for one in elements),
    ]
    fields = forwarding_fields(given_fields, NGINX, b"dev1.x")
    (value,) = (value for name, value in fields if name == b"Forwarded")
    hops = parse_forwarded(value)
    assert hops is not None
    assert hops[0].proto == field_values(fields, b"x-forwarded-proto")[0]
    assert hops[0].host == field_values(fields, b"x-forwarded-host")[0]
    if field_values(given_fields, b"x-forwarded-for"):
        assert len(hops) == len(field_values(fields, b"x-forwarded-for"))
    assert hops[-1] == Hop(b"127.0.0.1", b"dev1.x", b"http")
