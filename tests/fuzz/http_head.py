"""Any bytes are a request or response head with one reading, or refused with Refused or BadHead.

A head that was accepted, written out again and read once more is the same head: nothing that this
gateway passes on can be read in two ways.
"""

from __future__ import annotations

import contextlib

import h11

from support.fuzz_input import FuzzInput
from tunnelmux.http.head import (
    BadHead,
    head_end,
    looks_like_no_request,
    parse_request,
    parse_response,
    write_request,
    write_response,
)
from tunnelmux.http.refusal import Refused

METHODS = (b"GET", b"HEAD", b"CONNECT", b"POST")


def one_input(data: bytes) -> None:
    """What the fuzzer calls, and `test_corpus.py` with what the fuzzer kept."""
    given = FuzzInput(data)
    kind = given.number()
    raw = given.rest()
    end = head_end(raw)
    start = kind >> 4
    if start < len(raw) and head_end(raw[:start]) < 0:
        assert head_end(raw, start) == end, "where the search begins matters"
    if kind & 1:
        request(raw, raw[:end] if end >= 0 else raw + b"\r\n\r\n")
    else:
        response(raw[:end] if end >= 0 else raw + b"\r\n\r\n", METHODS[kind >> 1 & 3])


def request(raw: bytes, head: bytes) -> None:
    with contextlib.suppress(Refused):
        for size in {1, len(raw) // 2, len(raw)}:
            looks_like_no_request(raw[:size])
        seen = parse_request(head)
        out = write_request(seen.method, seen.target, seen.headers)
        again = parse_request(out)
        assert (again.method, again.target) == (seen.method, seen.target)
        assert again.headers == seen.headers
        assert (again.content_length, again.chunked) == (seen.content_length, seen.chunked)
        assert out.count(b"\r\n\r\n") == 1 and out.endswith(b"\r\n\r\n")
        other = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        other.receive_data(out)
        if seen.version == b"1.1" or seen.host:
            event = other.next_event()
            assert isinstance(event, h11.Request)
            assert (event.method, event.target) == (seen.method, seen.target)


def response(head: bytes, method: bytes) -> None:
    with contextlib.suppress(BadHead):
        seen = parse_response(head, method)
        out = write_response(seen.status, seen.reason, seen.headers)
        again = parse_response(out, method)
        assert (again.status, again.reason) == (seen.status, seen.reason)
        assert again.headers == seen.headers
        assert again.chunked == seen.chunked
        assert again.content_length == seen.content_length
        assert out.count(b"\r\n\r\n") == 1 and out.endswith(b"\r\n\r\n")
