"""What the compiled head scanner accepts, `tunnelmux.http` accepts with the same meaning.

Any bytes are incomplete, declined or accepted; a verdict is never taken back by later bytes, the
head sent on means what the proxy would have sent, and a chunked body ends where its decoder says.
"""

from __future__ import annotations

from support.fuzz_input import FuzzInput
from support.head_checks import HOST, check_chunked, check_request, check_response

BEGINNINGS = (
    b"",
    b"GET / HTTP/1.1\r\nHost: " + HOST + b"\r\n",
    b"POST /a?b=c HTTP/1.1\r\nHost: " + HOST + b"\r\nConnection: keep-alive\r\n",
    b"HTTP/1.1 200 OK\r\n",
)


def one_input(data: bytes) -> None:
    """What the fuzzer calls, and `test_corpus.py` with what the fuzzer kept."""
    given = FuzzInput(data)
    kind = given.number()
    raw = given.rest()
    what, option = kind & 3, kind >> 2
    if what == 0:
        cuts = [option, len(raw) // 2, *range(0, min(len(raw), 64), 7)]
        check_chunked(raw, [min(cut, len(raw)) for cut in cuts])
    elif what == 1:
        raw = BEGINNINGS[3 * (option >> 1 & 1)] + raw
        check_response(raw, to_head=bool(option & 1), step=1 + len(raw) // 16)
    else:
        raw = BEGINNINGS[option % 3] + raw
        check_request(raw, step=1 + len(raw) // 16)
