"""One field as long as a head may be: what looks at it looks at each byte a few times at most."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tunnelmux.proxy.visitors.carrier import _TRACEPARENT
from tunnelmux.pump.passing import names_in_head
from tunnelmux.sessions.inspections import masked_fields, masked_target

MOST_SECONDS = 5
"""Of the processor: each of these took ten seconds to seventeen minutes, and now milliseconds."""

SPACES = b" " * 64_000
START = b"GET / HTTP/1.1\r\n"

LOOKS: dict[str, Callable[[], object]] = {
    "a Host of spaces": lambda: names_in_head(START + b"Host:" + SPACES[:8170]),
    "a Host with spaces within": lambda: names_in_head(
        START + b"Host: x" + SPACES[:8000] + b"y\r\n\r\n"
    ),
    "spaces in a traceparent": lambda: _TRACEPARENT.search(
        START + b"traceparent: x" + SPACES + b"y\r\n\r\n"
    ),
    "a target of question marks": lambda: masked_target("/" + "?" * 64_000),
    "a Referer of question marks": lambda: masked_fields([(b"Referer", b"?" * 64_000)]),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_field_as_long_as_a_head_may_be(look: Callable[[], object]) -> None:
    began = time.process_time()
    look()
    assert time.process_time() - began < MOST_SECONDS


def test_names_and_parameters_are_found_all_the_same() -> None:
    head = START + b"Host: \t x y \r\nHOST:z\r\n"
    assert names_in_head(head + b"\r\n") == (b"z", b"", b"")
    assert names_in_head(START + b"Host: x y\t\r\nHost: z") == (b"x y", b"", b"")
    found = _TRACEPARENT.search(START + b"Traceparent: \t1 \r\n\r\n")
    assert found is not None
    assert found[1].strip() == b"1"
    assert masked_target("/x?a?token=t&?code=c") == "/x?a?token=***&?code=***"
