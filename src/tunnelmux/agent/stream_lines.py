"""The agent's log lines about streams, of which visitors and the proxy can cause any number."""

from __future__ import annotations

from typing import Literal

from tunnelmux.observability import RepeatedLines, frequent_line, get_logger

__all__ = ["StreamLines"]

_COMPONENT = "agent"
_EVENT = "relay ended"
_FIELDS = ("stream", "service", "bytes_to_target", "bytes_from_target", "duration", "outcome")

_log = get_logger(_COMPONENT)
_log_whole = frequent_line(_COMPONENT, _EVENT, *_FIELDS)


class StreamLines:
    """Writes them. What a service served to its end has a line each time; of what was refused,
    reset or cut, some of each minute have one, so that a flood does not fill a small disk."""

    def __init__(self) -> None:
        self.refused = RepeatedLines("stream refused")
        self.reset = RepeatedLines("stream reset")
        self.lost = RepeatedLines("stream lost")
        self.failed = RepeatedLines("stream failed")
        self.cut = RepeatedLines("request served")
        self._broken = RepeatedLines(_EVENT)

    def relay_ended(
        self,
        stream: int,
        service: str,
        to_target: int,
        from_target: int,
        seconds: float,
        outcome: str,
        broken_side: Literal["proxy", "target"] | None = None,
        error: Exception | None = None,
    ) -> None:
        """Write the line about one raw connection to a service, at its end. `to_target` and
        `from_target` are in bytes, the rest says which side broke and how.
        """
        values = (stream, service, to_target, from_target, round(seconds, 3), outcome)
        if outcome != "finished" and not self._broken.may_write(service):
            return
        if broken_side is None:
            _log_whole(*values)
            return
        fields = dict(zip(_FIELDS, values, strict=True))
        _log.info(_EVENT, **fields, broken_side=broken_side, cause=str(error))
