"""Frequent log lines, built as JSON directly in a tenth of a logger's time. They hold numbers,
addresses and names that cannot be secrets.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import lru_cache

from tunnelmux.observability.logs import (
    get_logger,
    json_writer,
    process_fields,
    shortened,
    wants_info,
    without_secrets,
)

__all__ = ["frequent_line", "line_about", "quoted", "time_of_day", "write_lines"]

quoted = json.encoder.encode_basestring_ascii
"""The text as a JSON string."""

Value = str | int | float | None


def frequent_line(component: str, event: str, *fields: str) -> Callable[..., None]:
    """A function that logs *event* at level `info`, called with the values of *fields* in order."""
    template = ""
    logger = get_logger(component)

    def write(*values: Value) -> None:
        nonlocal template
        writer = json_writer()
        if writer is None or not wants_info():
            logger.info(event, **dict(zip(fields, values, strict=True)))
            return
        if not template:  # made late, when it is known which process this is
            about = [
                line_about(component, event, **process_fields()),
                *(f"{quoted(field)}: %s" for field in fields),
            ]
            template = f'{{"timestamp": "%s", {", ".join(about)}}}'
        texts = [
            quoted(shortened(v)) if type(v) is str else "null" if v is None else v for v in values
        ]
        writer.msg_soon(template % (_timestamp(), *texts))

    return write


def line_about(component: str, event: str, **fields: Value) -> str:
    """The fields of a line after its time, as JSON without braces."""
    return json.dumps({"level": "info", "component": component, "event": event, **fields})[1:-1]


def write_lines(lines: bytes, *, doubtful: bool) -> None:
    """Write lines, each from its time and the fields of `line_about`; *doubtful* ones are searched
    for secrets. In text format they get the time of writing.
    """
    writer = json_writer()
    if writer is not None and not doubtful:
        writer.msg(lines[:-1].decode("ascii"))
        return
    for line in lines.splitlines():
        fields = json.loads(line)
        if writer is not None:
            # Parsed before redaction, which could otherwise remove the end of a string.
            writer.msg(json.dumps({key: _without_secrets(fields[key]) for key in fields}))
        else:
            del fields["timestamp"], fields["level"]
            get_logger(fields.pop("component")).info(fields.pop("event"), **fields)


def _without_secrets(value: Value) -> Value:
    return without_secrets(value) if isinstance(value, str) else value


def time_of_day() -> bytes:
    """The time at the beginning of a line: UTC, RFC 3339, in microseconds."""
    return _timestamp().encode("ascii")


def _timestamp() -> str:
    seconds, fraction = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{fraction // 1000:06d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
