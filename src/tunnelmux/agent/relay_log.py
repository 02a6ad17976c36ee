"""The log line about one raw connection to a service, written at its end."""

from __future__ import annotations

from typing import Literal

from tunnelmux.observability import frequent_line, get_logger

__all__ = ["log_relay"]

_COMPONENT = "agent"
_EVENT = "relay ended"
_FIELDS = ("stream", "service", "bytes_to_target", "bytes_from_target", "duration", "outcome")

_log = get_logger(_COMPONENT)
_log_whole = frequent_line(_COMPONENT, _EVENT, *_FIELDS)


def log_relay(
    stream: int,
    service: str,
    to_target: int,
    from_target: int,
    seconds: float,
    outcome: str,
    broken_side: Literal["proxy", "target"] | None = None,
    error: Exception | None = None,
) -> None:
    """Write the line; `to_target` and `from_target` are in bytes, the rest says which side broke
    and how.
    """
    values = (stream, service, to_target, from_target, round(seconds, 3), outcome)
    if broken_side is None:
        _log_whole(*values)
        return
    fields = dict(zip(_FIELDS, values, strict=True))
    _log.info(_EVENT, **fields, broken_side=broken_side, cause=str(error))
