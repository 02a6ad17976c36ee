"""JSON that others wrote, read so that only one error can come of it."""

from __future__ import annotations

from typing import TypeVar

import msgspec

__all__ = ["BadJson", "read_json"]

T = TypeVar("T")


class BadJson(ValueError):
    """The text is not JSON (RFC 8259), or not of the wanted shape. The message says where, and may
    show a part of the text.
    """


def read_json(text: bytes | bytearray | str, kind: type[T], *, strict: bool = True) -> T:
    """The value in `text`, as a `kind`. With `strict` off, numbers may be written as strings.

    Raises BadJson.
    """
    try:
        return msgspec.json.decode(text, type=kind, strict=strict)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadJson(str(error)) from None
    except RecursionError:
        # Nested by a thousand levels, which takes one kilobyte, also in a member that is not read.
        raise BadJson("it is nested too deeply") from None
