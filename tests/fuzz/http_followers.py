"""Both directions of an exchange mean to a follower what they mean to h11's path, in any cuts."""

from __future__ import annotations

from support.follower_checks import check_answer, check_request_body
from support.fuzz_input import FuzzInput

BEGINNINGS = (
    b"",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\n",
)
REQUESTS = (
    b"",
    b"POST / HTTP/1.1\r\nHost: a\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
)


def one_input(data: bytes) -> None:
    """What the fuzzer calls, and `test_corpus.py` with what the fuzzer kept."""
    given = FuzzInput(data)
    kind = given.number()
    raw = given.rest()
    steps = [1 + (kind >> 4), max(len(raw), 1) + 128]
    if kind & 1:
        check_request_body(REQUESTS[kind >> 1 & 3] + raw, steps)
    else:
        method = b"HEAD" if kind & 8 else b"GET"
        check_answer(BEGINNINGS[kind >> 1 & 3] + raw, method, steps)
