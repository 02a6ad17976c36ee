"""A command's events as one object: the payload of `command_result`."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass

from tunnelmux.commands.events import (
    Event,
    Exited,
    Output,
    Started,
    StreamName,
    Truncated,
    failure,
)

__all__ = ["ENCODING_NOTE", "CommandResult", "ResultBuilder", "collect"]

ENCODING_NOTE = "utf-8, invalid bytes replaced"
"""The `encoding` of a result whose texts are not the exact bytes."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The relay service's result object, and facts that it has no field for."""

    stdout: str
    stderr: str
    exit_code: int
    replaced: bool = False
    """Whether invalid UTF-8 was replaced by U+FFFD."""

    truncated: bool = False
    """Whether output over a limit was discarded; a line at the end of the text says so too."""

    reason: str | None = None
    """The Exited event's."""

    def to_json(self) -> dict[str, object]:
        """`{stdout, stderr, exitCode}`; `encoding`, `truncated` and `reason` only where
        they apply."""
        content: dict[str, object] = {
            "stdout": self.stdout,
            "stderr": self.stderr,
            "exitCode": self.exit_code,
        }
        if self.replaced:
            content["encoding"] = ENCODING_NOTE
        if self.truncated:
            content["truncated"] = True
        if self.reason is not None:
            content["reason"] = self.reason
        return content


class ResultBuilder:
    """Collects the events of one command. It holds the output and the last event."""

    def __init__(self) -> None:
        self._kept: dict[StreamName, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._limits: dict[StreamName, int] = {}
        self._end = failure("lost", "the command's end was never reported")

    def size(self, stream: StreamName) -> int:
        """Bytes kept of that stream."""
        return len(self._kept[stream])

    def keep(self, stream: StreamName, data: bytes) -> None:
        """Add output."""
        self._kept[stream] += data

    def note_truncated(self, stream: StreamName, limit: int) -> None:
        """Record that output was discarded; the first report of a stream counts."""
        self._limits.setdefault(stream, limit)

    def add(self, event: Event) -> None:
        """Add an event."""
        match event:
            case Output(stream, data):
                self.keep(stream, data)
            case Truncated(stream, most):
                self.note_truncated(stream, most)
            case Exited():
                self._end = event
            case Started():
                pass

    def result(self) -> CommandResult:
        """The result. Without an Exited event the command counts as lost."""
        kept, end = self._kept, self._end
        texts = {stream: data.decode("utf-8", "replace") for stream, data in kept.items()}
        replaced = any(text.encode("utf-8") != kept[stream] for stream, text in texts.items())
        for stream, most in self._limits.items():
            line = f"[truncated: {stream} was over {most} bytes]"
            texts[stream] += _own_line(texts[stream], line)
        if end.message is not None:
            texts["stderr"] += _own_line(texts["stderr"], end.message)
        is_truncated = bool(self._limits)
        return CommandResult(
            texts["stdout"], texts["stderr"], end.exit_code, replaced, is_truncated, end.reason
        )


async def collect(events: AsyncIterable[Event], *, limit: int | None = None) -> CommandResult:
    """Read a command's events to the end; returns the result.

    Keeps at most `limit` bytes of each stream and reads on; without a limit, the sender's own limit
    applies. A message that says why a command failed ends stderr as a line of its own. A command
    whose events stop without an exit is lost.
    """
    built = ResultBuilder()
    async for event in events:
        if isinstance(event, Output) and limit is not None:
            room = limit - built.size(event.stream)
            built.keep(event.stream, event.data[:room])
            if room < len(event.data):
                built.note_truncated(event.stream, limit)
        else:
            built.add(event)
    return built.result()


def _own_line(text: str, line: str) -> str:
    return f"{line}\n" if not text or text.endswith("\n") else f"\n{line}\n"
