"""The events of a command, each as one line of JSON (NDJSON)."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

__all__ = [
    "EXIT_FAILED",
    "EXIT_FORBIDDEN",
    "EXIT_TIMEOUT",
    "MAX_MESSAGE",
    "REASONS",
    "CameBy",
    "Event",
    "Exited",
    "InvalidEvent",
    "Output",
    "SshUse",
    "Started",
    "StreamName",
    "Truncated",
    "as_sentence",
    "decode_event",
    "encode_event",
    "failure",
]

EXIT_TIMEOUT = 124
"""The exit status of timeout(1)."""

EXIT_FORBIDDEN = 126
"""A shell's exit status for a command that it may not execute."""

EXIT_FAILED = 255
"""The exit status of ssh(1) for failures of its own."""

REASONS: dict[str, str] = {
    "auth-failed": "The SSH server took none of the credentials.",
    "bad-key": "The private key or its certificate cannot be read, or the passphrase is wrong.",
    "busy": "The limit of concurrent commands is reached.",
    "cancelled": "The caller left before the command ended, and it was killed.",
    "failed": "The SSH server refused or failed; the message has its words.",
    "forbidden": "The device's configuration does not allow this host, user or command.",
    "host-key-changed": "The SSH server's key differs from the one that is known for it.",
    "host-key-unknown": "The SSH server's key is not known, and only known ones are allowed.",
    "lost": "The connection was lost while the command ran; how it ended is not known.",
    "refused": "Nothing listens at that host and port.",
    "timeout": "The timeout was reached; the command was killed.",
    "unreachable": "The host name is unknown, or the address is unreachable.",
}
"""Why a command did not end by itself. Programs depend on these codes: codes may be added, never
changed.
"""

StreamName = Literal["stdout", "stderr"]

CameBy = Literal["new", "reused", "failed"]

_MAX_POOLED = 10_000
# The most connections that an agent may report; exec.max_connections is 64 by default.

_MAX_KEPT = 86_400.0  # the most seconds it may report; exec.idle_connection is 60

MAX_MESSAGE = 2048
"""Characters that are kept of an Exited's message from another machine: a long sentence."""

_REASON = re.compile(r"[a-z0-9-]{1,64}")


class InvalidEvent(ValueError):
    """A line is not an event: its sender does not speak this format."""


@dataclass(frozen=True, slots=True)
class SshUse:
    """How a command used its agent's pool of SSH connections."""

    came_by: CameBy | None = None
    """How it got its connection: a new one was made for it, one was reused, or making one failed.
    None when this was reported before, or there was none.
    """

    seconds: float | None = None
    """Seconds that making the connection took, where it was made for this command."""

    pooled: int = 0
    """Connections in the pool at that moment."""

    kept_for: float = 0.0
    """Seconds after which the pool closes unused connections."""


@dataclass(frozen=True, slots=True)
class Started:
    """The SSH server has started the command. A command that failed before has no such event."""

    command_id: str
    at: float
    """Seconds since the epoch, by the clock of the machine that asked the SSH server."""

    ssh: SshUse | None = None
    """None where the executor does not report it."""


@dataclass(frozen=True, slots=True)
class Output:
    """What the command wrote, byte for byte."""

    stream: StreamName
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncated:
    """The command wrote more than `limit` bytes to that stream; the rest was thrown away."""

    stream: StreamName
    limit: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The end, and always the last event.

    `exit_code` is the command's own, 128 + n when signal n ended it, or one of EXIT_*. `reason` is
    None when the command ended by itself, else one of REASONS, with a sentence in `message`. The
    byte counts are what the command wrote, even where less was passed on.
    """

    exit_code: int
    duration: float = 0.0
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    reason: str | None = None
    message: str | None = None
    ssh: SshUse | None = None
    """As in Started."""


Event = Started | Output | Truncated | Exited


def failure(reason: str, message: str, *, duration: float = 0.0) -> Exited:
    """The end of a command that never ran, with the exit code that goes with the reason."""
    codes = {"timeout": EXIT_TIMEOUT, "forbidden": EXIT_FORBIDDEN}
    return Exited(codes.get(reason, EXIT_FAILED), duration, reason=reason, message=message)


def encode_event(event: Event) -> bytes:
    """The event as one line, its line feed included. Output is base64, so nothing is lost."""
    content: dict[str, object]
    match event:
        case Output(stream, data):
            content = {"event": stream, "data": base64.b64encode(data).decode("ascii")}
        case Started(command_id, at):
            content = {"event": "started", "commandId": command_id, "at": at, **_ssh(event)}
        case Truncated(stream, limit):
            content = {"event": "truncated", "stream": stream, "limit": limit}
        case Exited():
            content = {
                "event": "exit",
                "exitCode": event.exit_code,
                "duration": round(event.duration, 6),
                "stdoutBytes": event.stdout_bytes,
                "stderrBytes": event.stderr_bytes,
            }
            if event.reason is not None:
                content["reason"] = event.reason
            if event.message is not None:
                content["message"] = event.message
            content |= _ssh(event)
    return json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n"


def decode_event(line: bytes) -> Event:
    """The event in one line. Raises InvalidEvent.

    A message is brought to one line of at most MAX_MESSAGE characters that a terminal can show.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidEvent("a line is not JSON") from None
    if not isinstance(content, Mapping):
        raise InvalidEvent("a line is not a JSON object")
    match content.get("event"):
        case "stdout" | "stderr" as stream:
            return Output(cast("StreamName", stream), _data(content))
        case "started":
            return Started(_text(content, "commandId"), _number(content, "at"), _ssh_use(content))
        case "truncated":
            stream = _text(content, "stream")
            if stream not in ("stdout", "stderr"):
                raise InvalidEvent("stream must be stdout or stderr")
            return Truncated(cast("StreamName", stream), _count(content, "limit"))
        case "exit":
            return Exited(
                _count(content, "exitCode"),
                _number(content, "duration"),
                _count(content, "stdoutBytes"),
                _count(content, "stderrBytes"),
                _reason(content),
                _message(content),
                _ssh_use(content),
            )
        case _:
            raise InvalidEvent("event must be started, stdout, stderr, truncated or exit")


def _ssh(event: Started | Exited) -> dict[str, object]:
    use = event.ssh
    if use is None:
        return {}
    content: dict[str, object] = {"pooled": use.pooled, "keptFor": use.kept_for}
    if use.came_by is not None:
        content["connection"] = use.came_by
    if use.seconds is not None:
        content["seconds"] = round(use.seconds, 6)
    return {"ssh": content}


def _ssh_use(content: Mapping[str, Any]) -> SshUse | None:
    """The pool's figures in an event; None where they are invalid, which does not fail
    the command."""
    said = content.get("ssh")
    if not isinstance(said, Mapping):
        return None
    came_by = said.get("connection")
    if came_by not in (None, "new", "reused", "failed"):
        return None
    try:
        seconds = None if said.get("seconds") is None else _number(said, "seconds")
        pooled, kept_for = _count(said, "pooled"), _number(said, "keptFor")
    except InvalidEvent:
        return None
    return SshUse(came_by, seconds, min(pooled, _MAX_POOLED), min(kept_for, _MAX_KEPT))


def _data(content: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(_text(content, "data"), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidEvent("data must be base64") from None


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str):
        raise InvalidEvent(f"{key} must be a text")
    return value


def _reason(content: Mapping[str, Any]) -> str | None:
    if content.get("reason") is None:
        return None
    reason = _text(content, "reason")
    if not _REASON.fullmatch(reason):
        raise InvalidEvent("reason must be a code such as timeout")
    return reason


def _message(content: Mapping[str, Any]) -> str | None:
    return None if content.get("message") is None else as_sentence(_text(content, "message"))


def as_sentence(text: str) -> str:
    """A text from another machine as one line for logs and terminals. At most MAX_MESSAGE
    characters; control characters and those that change the writing direction become spaces.
    """
    cut = text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"
    if cut.isprintable():
        return cut
    return "".join(letter if letter.isprintable() else " " for letter in cut)


def _number(content: Mapping[str, Any], key: str) -> float:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidEvent(f"{key} must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise InvalidEvent(f"{key} must be a number from 0 up")
    return number


def _count(content: Mapping[str, Any], key: str) -> int:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidEvent(f"{key} must be a whole number from 0 up")
    return value
