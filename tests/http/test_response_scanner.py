"""`pump.head`: which answers the relay takes without h11, with the meaning they have for h11."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.head_checks import check_response, relayed_response
from support.head_parts import HEADS_OF_PARTS, STATUS_LINES
from support.mutations import MUTATIONS, mutated
from tunnelmux.pump.head import read_response


def response(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([line, *fields, b"", b""])


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
    "304": (response(line=b"HTTP/1.1 304 Not Modified"), 0, "bodiless"),
    "304 with a length": (
        response(b"Content-Length: 9", line=b"HTTP/1.1 304 Not Modified"),
        0,
        "bodiless announces",
    ),
    "304 chunked": (
        response(b"Transfer-Encoding: chunked", line=b"HTTP/1.1 304 Not Modified"),
        0,
        "bodiless announces",
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
    "trailers announced": (
        response(b"Trailer: X-Sum", b"Transfer-Encoding: chunked"),
        -1,
        "chunked",
    ),
    "one of our fields": (response(b"Tunnelmux-Reason: x", b"Content-Length: 1"), 1, "has_hop"),
    "a login of the connection": (
        response(b"WWW-Authenticate: Negotiate", b"Content-Length: 1"),
        1,
        "binds",
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
    "HTTP/0.9": b"<!doctype html>\n",
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
