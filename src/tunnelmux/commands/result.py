"""A command's events as one object: what `command_result` carries."""

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

__all__ = ["ENCODING_NOTE", "CommandResult", "collect"]

ENCODING_NOTE = "utf-8, invalid bytes replaced"
"""What `encoding` says in a result whose texts are not the exact bytes."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The seed's result object, and what it cannot say."""

    stdout: str
    stderr: str
    exit_code: int
    replaced: bool = False
    """Whether bytes that are no UTF-8 were replaced by U+FFFD."""

    truncated: bool = False
    """Whether output over a limit was thrown away; a line at the end of the text says so too."""

    reason: str | None = None
    """The Exited event's."""

    def to_json(self) -> dict[str, object]:
        """`{stdout, stderr, exitCode}`; `encoding`, `truncated` and `reason` only where they say
        something.
        """
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


async def collect(events: AsyncIterable[Event], *, limit: int | None = None) -> CommandResult:
    """All of a command in one object, read to its end.

    Keeps at most `limit` bytes of each stream and reads on; without a limit, the sender's own is
    relied on. A message that says why a command failed ends stderr as a line of its own. Events
    that stop without an exit are a command that was lost.
    """
    kept: dict[StreamName, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    limits: dict[StreamName, int] = {}
    end = failure("lost", "the command's end was never reported")
    async for event in events:
        match event:
            case Output(stream, data):
                room = len(data) if limit is None else limit - len(kept[stream])
                kept[stream] += data[:room]
                if limit is not None and room < len(data):
                    limits.setdefault(stream, limit)
            case Truncated(stream, most):
                limits.setdefault(stream, most)
            case Exited():
                end = event
            case Started():
                pass
    texts = {stream: data.decode("utf-8", "replace") for stream, data in kept.items()}
    replaced = any(text.encode("utf-8") != kept[stream] for stream, text in texts.items())
    for stream, most in limits.items():
        texts[stream] += _own_line(texts[stream], f"[truncated: {stream} was over {most} bytes]")
    if end.message is not None:
        texts["stderr"] += _own_line(texts["stderr"], end.message)
    return CommandResult(
        texts["stdout"], texts["stderr"], end.exit_code, replaced, bool(limits), end.reason
    )


def _own_line(text: str, line: str) -> str:
    return f"{line}\n" if not text or text.endswith("\n") else f"\n{line}\n"
