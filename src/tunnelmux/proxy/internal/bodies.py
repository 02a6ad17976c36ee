"""The JSON bodies of requests and answers of plain routes. The OpenAPI description is made from
these structs.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tunnelmux.commands import CommandResult
from tunnelmux.commands.request import DEFAULT_TIMEOUT, CommandFields, Line
from tunnelmux.commands.result import ENCODING_NOTE
from tunnelmux.limits import InternalLimits
from tunnelmux.sessions import SessionSummary, VisitSummary

__all__ = [
    "MAX_ASKED_BY",
    "MAX_SHARED_ID",
    "Closed",
    "ExecAnswer",
    "ExecRequest",
    "ExecResult",
    "Session",
    "SessionList",
    "Status",
    "VisitList",
]

MAX_SHARED_ID = 64
"""Characters of a commandId for several devices: each command's id is this and the device's name.
"""

MAX_ASKED_BY = 128
"""Characters of askedBy: a name and an address, in one line of the audit."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One session, as its own route answers; the names are those of an existing contract."""

    token: str
    connected: bool
    connected_at: datetime
    last_heartbeat: datetime
    remote_addr: str
    user_id: str
    device_id: str


class SessionList(msgspec.Struct, frozen=True):
    """Sessions, sorted by device."""

    sessions: list[SessionSummary]
    total: int


class VisitList(msgspec.Struct, frozen=True):
    """Visits, oldest first; `total` includes those that are not shown."""

    visits: list[VisitSummary]
    total: int


class Closed(msgspec.Struct, frozen=True):
    """The session, visit or inspection has ended."""

    closed: bool = True


class Status(msgspec.Struct, frozen=True):
    """Health and readiness."""

    status: Literal["ok", "ready"]


class CommandOutput(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A command's result, as `command_result` of the relay service has it."""

    stdout: str
    stderr: str
    exit_code: int
    encoding: str = ""
    """Present when invalid UTF-8 was replaced."""
    truncated: bool = False
    reason: str | None = None
    """Why it was ended, if it was."""


class ExecResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A command on one device. `duration` is in seconds."""

    device: str
    command_id: str
    duration: float
    result: CommandOutput

    @classmethod
    def of(cls, device: str, command_id: str, duration: float, found: CommandResult) -> ExecResult:
        """From a collected result."""
        output = CommandOutput(
            stdout=found.stdout,
            stderr=found.stderr,
            exit_code=found.exit_code,
            encoding=ENCODING_NOTE if found.replaced else "",
            truncated=found.truncated,
            reason=found.reason,
        )
        return cls(device=device, command_id=command_id, duration=round(duration, 6), result=output)


class ExecRequest(CommandFields, kw_only=True, rename="camel"):
    """A command and the devices to run it on."""

    devices: Annotated[
        Line | Annotated[list[Line], Meta(min_length=1)],
        Meta(description="A name, or a list of names, patterns and `all`."),
    ]
    command_id: (
        Annotated[
            Line,
            # For one device it may be longer, up to the limit in `CommandRequest.of`.
            Meta(extra_json_schema={"maxLength": MAX_SHARED_ID}),
        ]
        | UnsetType
    ) = UNSET
    timeout: Annotated[
        float,
        Meta(
            gt=0,
            description="Milliseconds; the most is `limits.max_exec_timeout`.",
            extra_json_schema={"minimum": 1, "maximum": InternalLimits().max_exec_timeout * 1000},
        ),
    ] = DEFAULT_TIMEOUT * 1000
    concurrency: (
        Annotated[
            int,
            Meta(
                ge=1,
                description="The most is `limits.exec_concurrency`.",
                extra_json_schema={"maximum": InternalLimits().exec_concurrency},
            ),
        ]
        | UnsetType
    ) = UNSET
    abort_on_error: bool = False
    asked_by: Annotated[
        str,
        Meta(
            max_length=MAX_ASKED_BY,
            description="The person or program on whose behalf this is called, for the audit.",
            extra_json_schema={"pattern": "^[ -~]*$"},
        ),
    ] = ""


class ExecAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A command on all devices, when the last has ended."""

    command_id: str
    succeeded: int
    failed: int
    results: list[ExecResult]
