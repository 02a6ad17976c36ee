"""JSON that others wrote."""

from __future__ import annotations

import msgspec
import pytest

from tunnelmux.json_text import BadJson, read_json


class Point(msgspec.Struct):
    x: int
    name: str = ""


def test_what_is_well_formed_is_read() -> None:
    assert read_json(b'{"x": 1, "more": [[]]}', Point) == Point(1)
    assert read_json('{"x": "1"}', dict[str, int], strict=False) == {"x": 1}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b'{"x": "1"}', "Expected `int`"),
        (b'{"x": 1, "name": "\xff"}', "(?i)utf-8"),
        (b'{"x": 1, "more": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
    ],
)
def test_whatever_is_wrong_is_one_kind_of_error(text: bytes, why: str) -> None:
    with pytest.raises(BadJson, match=why):
        read_json(text, Point)
