"""`pump.head`: what the relay takes without h11, and that h11 would have taken it for the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.head_checks import (
    HOST,
    check_request,
    meaning,
    own_fields,
    relayed_request,
)
from support.head_parts import HEADS_OF_PARTS, REQUEST_LINES
from support.http_rig import running_rig
from support.mutations import MUTATIONS, mutated
from tunnelmux.http.head import parse_request
from tunnelmux.pump.head import HeadScanner, read_request


def request(*fields: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes = HOST) -> bytes:
    return b"\r\n".join([line, b"Host: " + host, *fields, b"", b""])


def response(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([line, *fields, b"", b""])


BROWSER = request(
    b"Connection: keep-alive",
    b'sec-ch-ua: "Chromium";v="142", "Not_A Brand";v="99"',
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64)",
    b"Accept: */*",
    b"Accept-Encoding: gzip, deflate, br, zstd",
    b"Cookie: session=6f1d2b7c; name=J\xc3\xb6rg\ttab",
    line=b"GET /static/main.js?v=1&w=%20 HTTP/1.1",
)

# -- Requests that are accepted ---------------------------------------------------------------

ACCEPTED = {
    "a browser's": BROWSER,
    "the least": request(line=b"GET / HTTP/1.1"),
    "HEAD": request(line=b"HEAD /a HTTP/1.1"),
    "a method with a dash": request(line=b"VERSION-CONTROL /a HTTP/1.1"),
    "OPTIONS of a path": request(line=b"OPTIONS /a HTTP/1.1"),
    "a length": request(b"Content-Length: 5"),
    "no length": request(b"Content-Length: 0"),
    "the longest length": request(b"Content-Length: " + b"9" * 18),
    "chunked": request(b"Transfer-Encoding: chunked"),
    "names in any case": request(b"TRANSFER-encoding: chunked", b"cONNECTION: Keep-Alive"),
    "no space behind the colon": request(b"Content-Length:5", b"Accept:a"),
    "an empty value": request(b"Accept:", b"Accept: "),
    "the same field twice": request(b"Cookie: a=b", b"Cookie: c=d"),
    "a name of every token byte": request(b"!#$%&'*+-.^_`|~09azAZ: x"),
    "a target with odd but visible bytes": request(line=b'GET /"<>\\^`{|} HTTP/1.1'),
    "the longest method": request(line=b"A" * 64 + b" / HTTP/1.1"),
    "two slashes": request(line=b"GET //other.example/ HTTP/1.1"),
    "another Host": request(host=b"dev2.localhost:8080"),
    "Host in other case": request(host=HOST.upper()),
    "Host with a dot": request(host=b"dev1.localhost.:8080"),
    "Host with less": request(host=HOST[:-1]),
    "Trailer": request(b"Trailer: X-Sum", b"Transfer-Encoding: chunked"),
    "Tunnelmux-Device": request(b"Tunnelmux-Device: dev2"),
    "Tunnelmux-Service": request(b"tunnelmux-service: ssh"),
    "Host is an address": request(host=b"127.0.0.1:80"),
    "Host is an IPv6 address": request(host=b"[::1]:80"),
    "a login of the connection": request(b"Authorization: NTLM TlRMTVNTUAAB"),
    "a login of the request": request(b"Authorization: Basic TlRMTVNTUAAB"),
    "Expect": request(b"Expect: 100-continue", b"Content-Length: 4"),
    "own word about itself": request(b"X-Forwarded-For: 1.1.1.1", b"Forwarded: for=1.1.1.1"),
    "as many places to cut as a shape has": request(*(b"Keep-Alive: 1", b"X: y") * 24),
    "neighbours that are cut as one": request(*(b"Keep-Alive: 1",) * 30),
    "names that only begin like ours": request(
        b"Hos: x", b"Hosts: x", b"TEA: x", b"X-Realm: x", b"Proxyx: x"
    ),
    "any other word of a proxy": request(b"X-Forwarded-Fox: 1", b"X-Original-URL: /a"),
    "httpoxy": request(b"Proxy: x", b"Proxy-Client-IP: 1.1.1.1"),
    "Connection: close": request(b"Connection: close"),
    "Connection: close in any case": request(b"CONNECTION:ClosE", b"Content-Length: 5"),
    "Connection: close between two cuts": request(
        b"Keep-Alive: 1", b"Connection: close", b"Keep-Alive: 1", line=b"GET / HTTP/1.1"
    ),
}


@pytest.mark.parametrize("raw", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted_requests_mean_the_same_to_h11(raw: bytes) -> None:
    assert check_request(raw)
    assert check_request(raw + b"GET /next HTTP/1.1\r\n")


def test_the_shape_of_a_request() -> None:
    shape = read_request(BROWSER + b"body")
    assert shape == {
        "head_size": len(BROWSER),
        "line_size": BROWSER.index(b"Host"),
        "method_size": 3,
        "target_at": 4,
        "target_size": len(b"/static/main.js?v=1&w=%20"),
        "path_size": len(b"/static/main.js"),
        "host": HOST,
        "device": b"",
        "service": b"",
        "access": b"",
        "login": b"",
        "cookie": b"",
        "member": b"",
        "from_page": b"Sec-Fetch-Site: " in BROWSER or b"Origin: " in BROWSER,
        "from_here": b"Sec-Fetch-Site: same-origin" in BROWSER,
        "said": b"",
        "content_length": 0,
        "chunked": False,
        "is_head": False,
        "closes": False,
        "binds": False,
    }
    closing = read_request(request(b"Connection: close"))
    assert isinstance(closing, dict)
    assert closing["closes"]


# -- Requests that are declined ---------------------------------------------------------------

ALIEN = b"GET / HTTP/1.1\r\nHost: " + HOST

DECLINED = {
    "a fragment": request(line=b"GET /a#b HTTP/1.1"),
    "a fragment of the query": request(line=b"GET /a?b#c HTTP/1.1"),
    "too long a method": request(line=b"A" * 65 + b" / HTTP/1.1"),
    # RFC 9112 11.2 and the literature on it: two readings of where a body ends
    "CL.TE": request(b"Content-Length: 4", b"Transfer-Encoding: chunked"),
    "TE.CL": request(b"Transfer-Encoding: chunked", b"Content-Length: 4"),
    "CL.0 beside TE": request(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    "CL.CL": request(b"Content-Length: 4", b"Content-Length: 5"),
    "CL.CL alike": request(b"Content-Length: 4", b"Content-Length: 4"),
    "CL list": request(b"Content-Length: 4, 4"),
    "CL +": request(b"Content-Length: +4"),
    "CL -": request(b"Content-Length: -4"),
    "CL hexadecimal": request(b"Content-Length: 0x4"),
    "CL underscore": request(b"Content-Length: 1_0"),
    "CL inner space": request(b"Content-Length: 1 0"),
    "CL two spaces": request(b"Content-Length:  4"),
    "CL tab": request(b"Content-Length:\t4"),
    "CL space behind": request(b"Content-Length: 4 "),
    "CL empty": request(b"Content-Length:"),
    "CL leading zero": request(b"Content-Length: 04"),
    "CL fraction": request(b"Content-Length: 4.0"),
    "CL exponent": request(b"Content-Length: 1e1"),
    "CL quoted": request(b'Content-Length: "4"'),
    "CL other digits": request("Content-Length: \u0664".encode()),
    "CL vertical tab": request(b"Content-Length: \x0b4"),
    "CL of 19 digits": request(b"Content-Length: 1" + b"0" * 18),
    "CL absurd": request(b"Content-Length: " + b"9" * 40),
    "CL with an underscore": request(b"Content_Length: 4"),
    "TE.TE": request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "TE.TE identity": request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    "TE.TE x": request(b"Transfer-Encoding: x", b"Transfer-Encoding: chunked"),
    "TE list": request(b"Transfer-Encoding: chunked, identity"),
    "TE list before": request(b"Transfer-Encoding: identity, chunked"),
    "TE comma": request(b"Transfer-Encoding: chunked,"),
    "TE parameter": request(b"Transfer-Encoding: chunked;a=b"),
    "TE gzip": request(b"Transfer-Encoding: gzip"),
    "TE x chunked": request(b"Transfer-Encoding: x chunked"),
    "TE xchunked": request(b"Transfer-Encoding: xchunked"),
    "TE odd case": request(b"Transfer-Encoding: Chunked"),
    "TE shouted": request(b"Transfer-Encoding: CHUNKED"),
    "TE long s": request("Transfer-Encoding: ch\u0075nked\u017f".encode()),
    "TE quoted": request(b'Transfer-Encoding: "chunked"'),
    "TE two spaces": request(b"Transfer-Encoding:  chunked"),
    "TE tab": request(b"Transfer-Encoding:\tchunked"),
    "TE tab behind": request(b"Transfer-Encoding: chunked\t"),
    "TE vertical tab": request(b"Transfer-Encoding: \x0bchunked"),
    "TE form feed": request(b"Transfer-Encoding: chunked\x0c"),
    "TE NUL": request(b"Transfer-Encoding: chunked\x00"),
    "TE no-break space": request(b"Transfer-Encoding: \xa0chunked"),
    "TE next line": request(b"Transfer-Encoding: \x85chunked"),
    "TE empty": request(b"Transfer-Encoding:"),
    "TE space before the colon": request(b"Transfer-Encoding : chunked"),
    "TE tab before the colon": request(b"Transfer-Encoding\t: chunked"),
    "TE vertical tab in the name": request(b"Transfer-Encoding\x0b: chunked"),
    "TE with an underscore": request(b"Transfer_Encoding: chunked"),
    "TE folded": request(b"Transfer-Encoding:\r\n chunked"),
    "TE behind a bare CR": request(b"X: y\rTransfer-Encoding: chunked"),
    "TE behind a bare LF": request(b"X: y\nTransfer-Encoding: chunked"),
    "TE behind LF CR": request(b"X: y\n\rTransfer-Encoding: chunked"),
    # Lines
    "folded with a space": request(b"X: y", b" z"),
    "folded with a tab": request(b"X: y", b"\tz"),
    "folded first line": b"GET / HTTP/1.1\r\n Host: " + HOST + b"\r\n\r\n",
    "bare LF in the request line": b"GET / HTTP/1.1\nHost: " + HOST + b"\r\n\r\n",
    "bare LF at the end": ALIEN + b"\r\n\n",
    "bare LF throughout": request().replace(b"\r\n", b"\n"),
    "CR CR LF": ALIEN + b"\r\r\n\r\n",
    "CR in a name": request(b"X\r: y"),
    "leading CRLF": b"\r\n" + request(),
    "leading LF": b"\n" + request(),
    "leading space": b" " + request(),
    "no colon": request(b"X"),
    "no name": request(b": x"),
    "space in a name": request(b"X Y: z"),
    "colon of another script": request("X\uff1a y".encode()),
    "quote in a name": request(b'"X": y'),
    "obs-text in a name": request(b"X\xff: y"),
    "NUL in a name": request(b"X\x00: y"),
    "NUL in a value": request(b"X: \x00"),
    "DEL in a value": request(b"X: a\x7f"),
    "escape in a value": request(b"X: aaaaaaaaaaa\x1b[2J"),
    "two spaces before a value": request(b"X:  y"),
    "space behind a value": request(b"X: y "),
    # Host
    "no Host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "no fields": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": request(b"Host: " + HOST),
    "two different Hosts": request(b"Host: dev2.localhost"),
    "Host with user": request(host=b"a@" + HOST),
    "Host with more": request(host=HOST + b"/"),
    "Host with space": request(host=HOST + b" "),
    "Host empty": request(host=b""),
    "Host underscored": request().replace(b"Host:", b"Host_:"),
    # Request lines
    "absolute form": request(line=b"GET http://dev2.localhost/ HTTP/1.1"),
    "absolute form with user": request(line=b"GET http://a@dev1.localhost/ HTTP/1.1"),
    "authority form": request(line=b"GET dev2.localhost:80 HTTP/1.1"),
    "asterisk form": request(line=b"OPTIONS * HTTP/1.1"),
    "CONNECT": request(line=b"CONNECT dev1:22 HTTP/1.1"),
    "CONNECT to a path": request(line=b"CONNECT / HTTP/1.1"),
    "no path": request(line=b"GET ?a HTTP/1.1"),
    "HTTP/1.0": request(line=b"GET / HTTP/1.0"),
    "HTTP/1.2": request(line=b"GET / HTTP/1.2"),
    "HTTP/2.0": request(line=b"GET / HTTP/2.0"),
    "HTTP/0.9": request(line=b"GET /"),
    "HTTP/1.10": request(line=b"GET / HTTP/1.10"),
    "HTTP/01.1": request(line=b"GET / HTTP/01.1"),
    "http/1.1": request(line=b"GET / http/1.1"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two spaces before the target": request(line=b"GET  / HTTP/1.1"),
    "two spaces before the version": request(line=b"GET /  HTTP/1.1"),
    "tab for a space": request(line=b"GET\t/ HTTP/1.1"),
    "space behind the version": request(line=b"GET / HTTP/1.1 "),
    "space in the target": request(line=b"GET /a b HTTP/1.1"),
    "obs-text in the target": request(line=b"GET /\xff HTTP/1.1"),
    "NUL in the target": request(line=b"GET /\x00 HTTP/1.1"),
    "DEL in the target": request(line=b"GET /\x7f HTTP/1.1"),
    "small method": request(line=b"get / HTTP/1.1"),
    "small head": request(line=b"head / HTTP/1.1"),
    "method with a colon": request(line=b"GET: / HTTP/1.1"),
    "no method": request(line=b" / HTTP/1.1"),
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    # Fields that are more than a relay can carry on by itself
    "Connection: close, twice": request(b"Connection: close", b"Connection: close"),
    "Connection: close, then not": request(b"Connection: close", b"Connection: keep-alive"),
    "Connection: close, but first not": request(b"Connection: keep-alive", b"Connection: close"),
    "Connection: keep-alive twice": request(*(b"Connection: keep-alive",) * 2),
    "Connection: close far from another": request(b"Connection: close", b"X: y", b"Connection: X"),
    "Connection list with close": request(b"Connection: keep-alive, close"),
    "Connection list of closes": request(b"Connection: close, close"),
    "Connection: close and a comma": request(b"Connection: close,"),
    "Connection: close and a parameter": request(b"Connection: close;a=b"),
    "Connection: close and Host": request(b"Connection: close, Host"),
    "Connection: close padded": request(b"Connection:  close"),
    "Connection: close with a tab behind": request(b"Connection: close\t"),
    "Connection: close quoted": request(b'Connection: "close"'),
    "Connection: close with a long s": request("Connection: clo\u017fe".encode()),
    "Connection: closed": request(b"Connection: closed"),
    "Connection: clos": request(b"Connection: clos"),
    "Connection: close in HTTP/1.0": request(b"Connection: close", line=b"GET / HTTP/1.0"),
    "Connection: upgrade": request(b"Connection: Upgrade", b"Upgrade: websocket"),
    "Connection names a field": request(b"Connection: keep-alive, X-Secret", b"X-Secret: 1"),
    "Connection names Host": request(b"Connection: Host"),
    "Connection: keep_alive": request(b"Connection: keep_alive"),
    "Connection empty": request(b"Connection:"),
    "Upgrade": request(b"Upgrade: h2c"),
    "HTTP2-Settings": request(b"HTTP2-Settings: AAMAAABkAAQAAP__"),
    "TE": request(b"TE: trailers"),
    "Proxy-Authorization": request(b"Proxy-Authorization: Basic x"),
    "Proxy-Connection": request(b"Proxy-Connection: keep-alive"),
    "Tunnelmux-Device twice": request(*(b"Tunnelmux-Device: dev2",) * 2),
    "Tunnelmux-Device empty": request(b"Tunnelmux-Device:"),
    "Host in brackets": request(host=b"[dev1]"),
    "Host half in brackets": request(host=b"[::1"),
    "Host of a port": request(host=b":80"),
    "Host with a sign": request(host=b"dev1_.localhost"),
    "more fields than there may be": request(*(b"a:",) * 256),
    "Tunnelmux_Service": request(b"Tunnelmux_Service: ssh"),
    "X_Forwarded_For": request(b"X_Forwarded_For: 1.1.1.1"),
    "Keep_Alive": request(b"Keep_Alive: 1"),
    "TE with an x before": request(b"X-Transfer-Encoding: chunked", b"Transfer-Encoding: x"),
    "more places to cut than a shape has": request(*(b"Keep-Alive: 1", b"X: y") * 25),
}


@pytest.mark.parametrize("raw", DECLINED.values(), ids=DECLINED.keys())
def test_declined_requests_are_declined_as_soon_as_seen_and_for_good(raw: bytes) -> None:
    assert read_request(raw) == "declined"
    assert not check_request(raw)
    assert not check_request(
        raw + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n"
    )


EARLY = {
    b"": "incomplete",
    b"G": "incomplete",
    b"GET /a HTTP/1.1\r": "incomplete",
    b"GET / HTTP/1.1\r\nX: y\r\n\r": "incomplete",
    b"GET / HTTP/1.1\rHost: x\r\r": "incomplete",
    b"\r": "declined",
    b"\x16": "declined",
    b"get": "declined",
    b"GET /a HTTP/1.0\r\n": "declined",
    b"GET /\n": "declined",
    b"GET / HTTP/1.1\r\nX :\r\n": "declined",
    b"GET / HTTP/1.1\r\nX: \x00\r\n": "declined",
    b"GET / HTTP/1.1\r\nHost: a b\r\n": "declined",
    b"GET / HTTP/1.1\r\nTE: x\r\n": "declined",
}


@pytest.mark.parametrize(("raw", "verdict"), EARLY.items())
def test_what_can_never_be_accepted_is_declined_before_the_head_is_whole(
    raw: bytes, verdict: str
) -> None:
    assert read_request(raw) == verdict


def test_every_byte_at_every_place_of_a_word() -> None:
    token = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    text = {0x09, *range(0x20, 0x7F), *range(0x80, 0x100)}
    for octet in range(256):
        for place in range(1, 18):
            word = b"x" * place + bytes([octet]) + b"x" * (17 - place) + b"x"
            colon = octet == 0x3A  # ends the name
            cases = {
                request(word + b": y"): octet in token or colon,
                request(b"A: " + word): octet in text,
                request(line=b"GET /" + word + b" HTTP/1.1"): 0x21 <= octet <= 0x7E
                and octet != 0x23,  # a fragment
                request(line=b"A" + word.upper() + b" / HTTP/1.1"): bytes([octet]).upper()
                in b"-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            }
            for raw, good in cases.items():
                assert isinstance(read_request(raw), dict) == good, raw


@pytest.mark.parametrize("of_request", [True, False])
@pytest.mark.parametrize(
    "raw",
    [
        b"X: " + b"y" * 60_000 + b"\r\n",
        b"a:\r\n" * 250,
        b"X: " + b"y" * 250 + b"\r\n" + b"a: b\r\n" * 200,
    ],
    ids=["one long line", "many short lines", "both"],
)
def test_a_head_in_single_bytes_costs_no_more_than_a_whole_one(
    raw: bytes, of_request: bool
) -> None:
    """Counted in bytes looked at, so that no machine is too slow for it."""
    raw = (request() if of_request else response(b"Content-Length: 2"))[:-2] + raw + b"\r\n"
    whole, pieces = [HeadScanner(of_request=of_request) for _ in range(2)]
    shape = whole.feed(raw)
    assert isinstance(shape, dict)
    for at in range(len(raw) - 1):
        assert pieces.feed(raw[at : at + 1]) == "incomplete"
    assert pieces.feed(raw[-1:]) == shape
    assert whole.steps == pieces.steps == 2 * len(raw)


@pytest.mark.parametrize("of_request", [True, False])
def test_too_many_fields_are_declined_before_they_are_all_read(of_request: bool) -> None:
    raw = (request() if of_request else response(b"Content-Length: 2"))[:-2]
    assert HeadScanner(of_request=of_request, max_fields=3).feed(raw + b"a:\r\n" * 3) == "declined"
    good = HeadScanner(of_request=of_request, max_fields=3).feed(raw + b"a:\r\n" * 2 + b"\r\n")
    assert isinstance(good, dict)
    scanner = HeadScanner(of_request=of_request)
    assert scanner.feed(raw + b"a:\r\n" * 15_000 + b"\r\n") == "declined"
    assert scanner.steps < 2 * len(raw) + 2 * 4 * 300


def test_what_a_request_says_of_its_sender_is_left_out_and_told() -> None:
    raw = request(b"X-Forwarded-For: 1.1.1.1", b"A: b", b"Forwarded: for=1.1.1.1", b"x-real-ip: 1")
    shape = read_request(raw)
    assert isinstance(shape, dict)
    assert shape["said"] == (
        b"X-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\nx-real-ip: 1\r\n"
    )
    assert relayed_request(raw) == request(b"A: b")


def test_where_a_request_says_that_it_goes_is_left_out_and_told() -> None:
    raw = request(b"Tunnelmux-Service: web", b"tunnelmux-device: dev2", b"Tunnelmux-X: y")
    shape = read_request(raw)
    assert isinstance(shape, dict)
    assert (shape["device"], shape["service"]) == (b"dev2", b"web")
    assert relayed_request(raw) == request()


# -- What is sent on --------------------------------------------------------------------------


def test_a_request_goes_on_without_the_fields_of_this_hop_and_with_ours_last() -> None:
    raw = request(
        b"Keep-Alive: timeout=5",
        b"Accept: a",
        b"X-Forwarded-For: 1.1.1.1",
        b"X-Forwarded-Host: bank.example",
        b"X-Forwarded-Port: 443",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Server: x",
        b"X-Forwarded-Prefix: /admin",
        b"X-Real-IP: 1.1.1.1",
        b"True-Client-IP: 1.1.1.1",
        b"Forwarded: for=1.1.1.1",
        b"Accept: b",
        b"Connection: keep-alive",
        b"Content-Length: 4",
    )
    assert relayed_request(raw + b"body", b"X-Real-IP: 2.2.2.2\r\n") == request(
        b"Accept: a",
        b"Accept: b",
        b"Content-Length: 4",
        b"X-Real-IP: 2.2.2.2",
    )
    assert check_request(raw)


@pytest.mark.parametrize(
    ("name", "body"),
    [("a browser's", b""), ("a length", b"hello"), ("chunked", b"0\r\n\r\n"), ("HEAD", b"")],
)
async def test_the_slow_path_sends_the_same_over_a_real_connection(name: str, body: bytes) -> None:
    raw = ACCEPTED[name]
    async with running_rig() as rig:
        await rig.visitor.send(raw + body)
        target = await rig.target()
        slow = parse_request(await target.read_head())
        await target.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        await rig.visitor.read_head()
    quick = parse_request(relayed_request(raw) or b"")
    assert (quick.method, quick.target) == (slow.method, slow.target)
    assert (quick.content_length, quick.chunked) == (slow.content_length, slow.chunked)
    assert meaning(quick.headers) == meaning(slow.headers)


# -- Any bytes --------------------------------------------------------------------------------


@given(REQUEST_LINES, HEADS_OF_PARTS, st.booleans(), st.sampled_from([b"\r\n", b"\n", b""]))
@settings(max_examples=300)
def test_requests_of_any_parts(line: bytes, fields: bytes, names_host: bool, end: bytes) -> None:
    host = b"Host: " + HOST + b"\r\n" if names_host else b""
    check_request(line + b"\r\n" + host + fields + end, step=3)


@given(st.sampled_from(list(ACCEPTED.values())), MUTATIONS)
@settings(max_examples=300)
def test_good_requests_with_a_few_bytes_changed(
    raw: bytes, changes: list[tuple[int, str, bytes]]
) -> None:
    check_request(mutated(raw, changes), step=7)


TOKENS = st.text("!#$%&'*+-.^_`|~0189azAZ", min_size=1, max_size=20).map(str.encode)
TEXTS = (
    st.text([chr(c) for c in (*range(0x20, 0x7F), 9, *range(0x80, 0x100))], max_size=40)
    .map(lambda text: text.encode("latin-1").strip(b" \t"))
)  # fmt: skip
HARMLESS = st.tuples(TOKENS.map(lambda name: b"X" + name), TEXTS)


@given(st.lists(HARMLESS, max_size=8), st.sampled_from([b": ", b":"]), st.binary(max_size=4))
@settings(max_examples=200)
def test_harmless_fields_are_accepted(
    fields: list[tuple[bytes, bytes]], colon: bytes, rest: bytes
) -> None:
    raw = request(*[colon.join(pair) for pair in fields])
    assert check_request(raw + rest, step=11)
    out = relayed_request(raw, own_fields()) or b""
    assert out == raw[:-2] + own_fields() + b"\r\n"
