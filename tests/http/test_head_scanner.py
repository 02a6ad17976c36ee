"""`pump.head`: what the relay takes without h11, and that h11 would have taken it for the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.head_checks import (
    HOST,
    check_request,
    check_response,
    meaning,
    own_fields,
)
from support.http_rig import running_rig
from support.mutations import MUTATIONS, mutated
from tunnelmux.http.head import parse_request
from tunnelmux.pump.head import (
    read_request,
    read_response,
    relayed_request,
    relayed_response,
)


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
    "a target with odd but visible bytes": request(line=b'GET /"<>\\^`{|}# HTTP/1.1'),
    "two slashes": request(line=b"GET //other.example/ HTTP/1.1"),
    "own word about itself": request(b"X-Forwarded-For: 1.1.1.1", b"Forwarded: for=1.1.1.1"),
    "as many places to cut as a shape has": request(*(b"Keep-Alive: 1", b"X: y") * 12),
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
    shape = read_request(BROWSER + b"body", HOST)
    assert shape == {
        "head_size": len(BROWSER),
        "line_size": BROWSER.index(b"Host"),
        "method_size": 3,
        "target_at": 4,
        "target_size": len(b"/static/main.js?v=1&w=%20"),
        "path_size": len(b"/static/main.js"),
        "content_length": 0,
        "chunked": False,
        "is_head": False,
        "closes": False,
    }
    closing = read_request(request(b"Connection: close"), HOST)
    assert isinstance(closing, dict)
    assert closing["closes"]


# -- Requests that are declined ---------------------------------------------------------------

ALIEN = b"GET / HTTP/1.1\r\nHost: " + HOST

DECLINED = {
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
    "bare CR throughout": request().replace(b"\r\n", b"\r"),
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
    "another Host": request(host=b"dev2.localhost:8080"),
    "Host in other case": request(host=HOST.upper()),
    "Host with a dot": request(host=b"dev1.localhost.:8080"),
    "Host with user": request(host=b"a@" + HOST),
    "Host with more": request(host=HOST + b"/"),
    "Host with less": request(host=HOST[:-1]),
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
    "Expect": request(b"Expect: 100-continue", b"Content-Length: 4"),
    "TE": request(b"TE: trailers"),
    "Trailer": request(b"Trailer: X-Sum", b"Transfer-Encoding: chunked"),
    "Proxy-Authorization": request(b"Proxy-Authorization: Basic x"),
    "Proxy-Connection": request(b"Proxy-Connection: keep-alive"),
    "Tunnelmux-Device": request(b"Tunnelmux-Device: dev2"),
    "Tunnelmux-Service": request(b"tunnelmux-service: ssh"),
    "Tunnelmux_Service": request(b"Tunnelmux_Service: ssh"),
    "X_Forwarded_For": request(b"X_Forwarded_For: 1.1.1.1"),
    "Keep_Alive": request(b"Keep_Alive: 1"),
    "TE with an x before": request(b"X-Transfer-Encoding: chunked", b"Transfer-Encoding: x"),
    "more places to cut than a shape has": request(*(b"Keep-Alive: 1", b"X: y") * 13),
}


@pytest.mark.parametrize("raw", DECLINED.values(), ids=DECLINED.keys())
def test_declined_requests_are_declined_as_soon_as_seen_and_for_good(raw: bytes) -> None:
    assert read_request(raw, HOST) == "declined"
    assert not check_request(raw)
    assert not check_request(
        raw + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n"
    )


EARLY = {
    b"": "incomplete",
    b"G": "incomplete",
    b"GET /a HTTP/1.1\r": "incomplete",
    b"GET / HTTP/1.1\r\nX: y\r\n\r": "incomplete",
    b"\r": "declined",
    b"\x16": "declined",
    b"get": "declined",
    b"GET h": "declined",
    b"GET /a HTTP/1.0": "declined",
    b"GET / HTTP/1.1\r\nX :": "declined",
    b"GET / HTTP/1.1\r\nX: \x00": "declined",
    b"GET / HTTP/1.1\r\nX: y\r\n ": "declined",
    b"GET / HTTP/1.1\r\nHost: dev2.localhost\r\n": "declined",
    b"GET / HTTP/1.1\r\nTunnelmux-Device: x\r\n": "declined",
}


@pytest.mark.parametrize(("raw", "verdict"), EARLY.items())
def test_what_can_never_be_accepted_is_declined_before_the_head_is_whole(
    raw: bytes, verdict: str
) -> None:
    assert read_request(raw, HOST) == verdict


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
                request(line=b"GET /" + word + b" HTTP/1.1"): 0x21 <= octet <= 0x7E,
                request(line=b"A" + word.upper() + b" / HTTP/1.1"): bytes([octet]).upper()
                in b"-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            }
            for raw, good in cases.items():
                assert isinstance(read_request(raw, HOST), dict) == good, raw


def test_an_empty_host_matches_nothing() -> None:
    assert read_request(request(host=b""), b"") == "declined"


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
    assert relayed_request(raw + b"body", HOST, b"X-Real-IP: 2.2.2.2\r\n") == request(
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
    quick = parse_request(relayed_request(raw, HOST) or b"")
    assert (quick.method, quick.target) == (slow.method, slow.target)
    assert (quick.content_length, quick.chunked) == (slow.content_length, slow.chunked)
    assert meaning(quick.headers) == meaning(slow.headers)


# -- Responses --------------------------------------------------------------------------------

NGINX = response(
    b"Server: nginx/1.22.1",
    b"Content-Type: text/html",
    b"Content-Length: 100",
    b"Connection: keep-alive",
    b'ETag: "65f0c1a2-64"',
)

GOOD_RESPONSES = {
    "a server's": (NGINX, 100, ""),
    "chunked": (response(b"Transfer-Encoding: chunked"), -1, "chunked"),
    "chunked in other case": (response(b"Transfer-Encoding: Chunked"), -1, "chunked"),
    "until the end": (response(b"A: b"), -1, "until_end closes"),
    "no fields": (response(), -1, "until_end closes"),
    "no content": (response(b"Content-Length: 0"), 0, ""),
    "closing": (response(b"Content-Length: 1", b"Connection: Close"), 1, "closes"),
    "no reason": (response(b"Content-Length: 1", line=b"HTTP/1.1 200 "), 1, ""),
    "obs-text": (response(b"Content-Length: 1", line=b"HTTP/1.1 404 \xe4\t b"), 1, ""),
    "1.0": (response(b"Content-Length: 1", line=b"HTTP/1.0 200 OK"), 1, "closes is_old"),
    "1.0 kept": (
        response(b"Content-Length: 1", b"Connection: keep-alive", line=b"HTTP/1.0 200 OK"),
        1,
        "is_old",
    ),
    "100": (response(line=b"HTTP/1.1 100 Continue"), 0, "bodiless"),
    "103": (response(b"Link: </a>", line=b"HTTP/1.1 103 Early Hints"), 0, "bodiless"),
    "204": (response(line=b"HTTP/1.1 204 No Content"), 0, "bodiless"),
    "204 with a 0": (
        response(b"Content-Length: 0", b"A: b", line=b"HTTP/1.1 204 No Content"),
        0,
        "bodiless",
    ),
    "304": (response(b"Content-Length: 9", line=b"HTTP/1.1 304 Not Modified"), 0, "bodiless"),
    "304 chunked": (
        response(b"Transfer-Encoding: chunked", line=b"HTTP/1.1 304 Not Modified"),
        0,
        "bodiless",
    ),
    "blanks around a value": (response(b"Content-Length: 1", b"A: \t b \t"), 1, ""),
    "an upgrade offered": (
        response(b"Upgrade: h2,h2c", b"Connection: Upgrade", b"Content-Length: 1"),
        1,
        "has_hop",
    ),
    "an upgrade offered at the end": (
        response(b"Upgrade: h2", b"Connection: Upgrade, close", b"Content-Length: 1"),
        1,
        "closes has_hop",
    ),
    "an upgrade offered and kept": (
        response(b"Connection: upgrade,Keep-Alive", b"Content-Length: 1", line=b"HTTP/1.0 200 OK"),
        1,
        "is_old has_hop",
    ),
    "an upgrade offered, old": (
        response(b"Connection: upgrade", b"Content-Length: 1", line=b"HTTP/1.0 200 OK"),
        1,
        "closes is_old has_hop",
    ),
    "for a proxy": (
        response(b"Proxy-Authenticate: Basic", b"TE: x", b"Content-Length: 1"),
        1,
        "has_hop",
    ),
    "NTLM": (
        response(b"Proxy-Support: Session-Based-Authentication", b"Content-Length: 1"),
        1,
        "",
    ),
    "Expect, which means nothing there": (response(b"Expect: x", b"Content-Length: 1"), 1, ""),
}


@pytest.mark.parametrize(
    ("raw", "length", "flags"), GOOD_RESPONSES.values(), ids=GOOD_RESPONSES.keys()
)
def test_accepted_responses(raw: bytes, length: int, flags: str) -> None:
    shape = read_response(raw + b"body")
    assert isinstance(shape, dict)
    assert shape["content_length"] == length
    assert {key for key, value in shape.items() if value is True} == set(flags.split())
    assert check_response(raw, to_head=False)
    assert check_response(raw, to_head=True)


BAD_RESPONSES = {
    "CL and TE": response(b"Content-Length: 4", b"Transfer-Encoding: chunked"),
    "TE and CL": response(b"Transfer-Encoding: chunked", b"Content-Length: 4"),
    "CL twice": response(b"Content-Length: 4", b"Content-Length: 4"),
    "CL twice and different": response(b"Content-Length: 4", b"Content-Length: 5"),
    "CL list": response(b"Content-Length: 4, 4"),
    "CL signed": response(b"Content-Length: +4"),
    "CL padded": response(b"Content-Length:  4"),
    "CL leading zero": response(b"Content-Length: 04"),
    "CL too long": response(b"Content-Length: " + b"9" * 19),
    "TE twice": response(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "TE gzip": response(b"Transfer-Encoding: gzip, chunked"),
    "TE underscored": response(b"Transfer_Encoding: chunked"),
    "TE in 1.0": response(b"Transfer-Encoding: chunked", line=b"HTTP/1.0 200 OK"),
    "TE in 204": response(b"Transfer-Encoding: chunked", line=b"HTTP/1.1 204 No Content"),
    "CL in 204": response(b"Content-Length: 4", line=b"HTTP/1.1 204 No Content"),
    "CL in 100": response(b"Content-Length: 0", line=b"HTTP/1.1 100 Continue"),
    "TE in 103": response(b"Transfer-Encoding: chunked", line=b"HTTP/1.1 103 Early Hints"),
    "Connection in 103": response(b"Connection: close", line=b"HTTP/1.1 103 Early Hints"),
    "100 in 1.0": response(line=b"HTTP/1.0 100 Continue"),
    "101": response(b"Connection: Upgrade", b"Upgrade: x", line=b"HTTP/1.1 101 Switching"),
    "101 bare": response(line=b"HTTP/1.1 101 Switching"),
    "Upgrade in 103": response(b"Upgrade: h2", line=b"HTTP/1.1 103 Early Hints"),
    "Connection names a field": response(b"Connection: keep-alive, X", b"X: y"),
    "Connection names a field first": response(b"Connection: X, close", b"X: y"),
    "Connection ends in a comma": response(b"Connection: close,"),
    "Connection begins with a comma": response(b"Connection: , close"),
    "Connection with a tab": response(b"Connection: close,\tupgrade"),
    "Connection with two spaces": response(b"Connection: close,  upgrade"),
    "Connection with a space before": response(b"Connection: close , upgrade"),
    "Connection with a parameter": response(b"Connection: close;x"),
    "Connection underscored": response(b"Connection: keep_alive"),
    "Connection empty": response(b"Connection:"),
    "two Connections": response(b"Connection: keep-alive", b"Connection: close"),
    "Trailer": response(b"Trailer: X-Sum", b"Transfer-Encoding: chunked"),
    "Tunnelmux-Reason": response(b"Tunnelmux-Reason: target-broke"),
    "Tunnelmux_Reason": response(b"Tunnelmux_Reason: target-broke"),
    "Proxy_Authenticate": response(b"Proxy_Authenticate: Basic"),
    "folding": response(b"A: b", b" c"),
    "folded first": response(b" A: b"),
    "space before the colon": response(b"Content-Length : 4"),
    "bare LF": response(b"A: b").replace(b"\r\n", b"\n"),
    "bare LF in the end": b"HTTP/1.1 200 OK\r\nA: b\r\n\n",
    "bare CR": response(b"A: b\rContent-Length: 4"),
    "NUL": response(b"A: \x00"),
    "control": response(b"Set-Cookie: a=\x01"),
    "control in the reason": response(line=b"HTTP/1.1 200 O\x1bK"),
    "no space behind the status": response(line=b"HTTP/1.1 200"),
    "status of two digits": response(line=b"HTTP/1.1 20 OK"),
    "status of four digits": response(line=b"HTTP/1.1 2000 OK"),
    "status 099": response(line=b"HTTP/1.1 099 OK"),
    "status 600": response(line=b"HTTP/1.1 600 OK"),
    "signed status": response(line=b"HTTP/1.1 +20 OK"),
    "two spaces before the status": response(line=b"HTTP/1.1  200 OK"),
    "HTTP/1.2": response(line=b"HTTP/1.2 200 OK"),
    "HTTP/2": response(line=b"HTTP/2 200 OK"),
    "nothing behind the version": b"HTTP/1.1\r\n\n",
    "ICY": response(line=b"ICY 200 OK"),
    "HTTP/0.9": b"<!doctype html>",
    "leading CRLF": b"\r\n" + response(),
    "a banner": b"SSH-2.0-OpenSSH_9.2p1\r\n",
}


@pytest.mark.parametrize("raw", BAD_RESPONSES.values(), ids=BAD_RESPONSES.keys())
def test_declined_responses(raw: bytes) -> None:
    assert read_response(raw) == "declined"
    assert not check_response(raw, to_head=False)
    assert not check_response(raw, to_head=True)


def test_a_response_goes_on_as_http_1_1_without_the_fields_of_this_hop() -> None:
    old = response(
        b"Content-Length: 1",
        b"Connection: keep-alive",
        b"Keep-Alive: timeout=5",
        b"A: b",
        line=b"HTTP/1.0 200 OK",
    )
    assert relayed_response(old) == response(b"Content-Length: 1", b"A: b")
    assert relayed_response(response(), fields=b"Connection: close\r\n") == response(
        b"Connection: close"
    )
    head = response(b"Transfer-Encoding: chunked", b"A: b")
    assert relayed_response(head, to_head=True) == response(b"A: b")
    assert relayed_response(head) == head


# -- Any bytes --------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        *(
            b"Accept",
            b"Cookie",
            b"X-A",
            b"Connection",
            b"Keep-Alive",
            b"Upgrade",
            b"TE",
            b"Trailer",
        ),
        *(b"Content-Length", b"Transfer-Encoding", b"Host", b"Expect", b"Forwarded", b"X-Real-IP"),
        *(b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Prefix", b"Proxy-Connection"),
        *(b"Tunnelmux-Service", b"HTTP2-Settings", b"content-length", b"TRANSFER-ENCODING"),
        *(b"Content_Length", b"X_Forwarded_For", b"Set-Cookie", b"Proxy", b"Tunnelmux"),
        *(b"Proxy-Support", b"Proxy-Authenticate", b"Upgrade", b"Connection", b"Connection"),
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            *(b"keep-alive", b"close", b"Keep-Alive", b"chunked", b"Chunked", b"0", b"5", b"05"),
            *(b"Upgrade", b"upgrade, close", b"Upgrade,Keep-Alive", b"close, keep-alive"),
            *(b"5, 5", b"", b"a, b", b"for=1.1.1.1", b"trailers", b"100-continue", b"9" * 18),
            *(b"9" * 19, b"9" * 20, b"9" * 21, HOST, b"dev2.localhost", b"x\ty", b"J\xc3\xb6rg"),
        ]
    ),
    st.binary(max_size=12),
)
COLONS = st.sampled_from([b": "] * 12 + [b":", b":  ", b":\t", b" : "])
ENDS = st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r", b" \r\n", b"\r\n ", b"\r\r\n"])
FIELDS = st.builds(lambda *parts: b"".join(parts), NAMES, COLONS, VALUES, ENDS)
METHODS = [b"GET", b"HEAD", b"POST", b"CONNECT", b"OPTIONS", b"get", b"M-SEARCH", b"A_B"]
REQUEST_LINES = st.builds(
    lambda *parts: b" ".join(parts),
    st.sampled_from(METHODS),
    st.sampled_from([b"/", b"/a?b", b"//x", b"*", b"http://dev1.localhost/", b"dev1:80", b"/\xff"]),
    st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0", b"HTTP/1.2", b"http/1.1"]),
)
STATUS_LINES = st.builds(
    lambda *parts: b" ".join(parts),
    st.sampled_from([b"HTTP/1.1"] * 4 + [b"HTTP/1.0", b"HTTP/1.2"]),
    st.sampled_from([b"200", b"404", b"100", b"101", b"103", b"204", b"304", b"599", b"600"]),
    st.sampled_from([b"OK", b"", b"Not Found", b"\xe4\t", b"\x01"]),
)
HEADS_OF_PARTS = st.lists(FIELDS, max_size=5).map(b"".join)


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
    out = relayed_request(raw, HOST, own_fields()) or b""
    assert out == raw[:-2] + own_fields() + b"\r\n"


@given(STATUS_LINES, HEADS_OF_PARTS, st.booleans())
@settings(max_examples=300)
def test_responses_of_any_parts(line: bytes, fields: bytes, to_head: bool) -> None:
    check_response(line + b"\r\n" + fields + b"\r\n", to_head=to_head, step=3)


@given(st.sampled_from([case[0] for case in GOOD_RESPONSES.values()]), MUTATIONS, st.booleans())
@settings(max_examples=300)
def test_good_responses_with_a_few_bytes_changed(
    raw: bytes, changes: list[tuple[int, str, bytes]], to_head: bool
) -> None:
    check_response(mutated(raw, changes), to_head=to_head, step=7)
