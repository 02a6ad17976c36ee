"""The JSON that plain routes answer with. The OpenAPI description is made from these structs."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from tunnelmux.commands import CommandResult
from tunnelmux.commands.result import ENCODING_NOTE
from tunnelmux.sessions import SessionSummary, VisitSummary

__all__ = [
    "Closed",
    "ExecAnswer",
    "ExecResult",
    "Session",
    "SessionList",
    "Status",
    "VisitList",
]


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One session, by its own route: the names are those of an existing contract."""

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
    """Visits, the oldest first; `total` counts those that are not shown as well."""

    visits: list[VisitSummary]
    total: int


class DeviceTraffic(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the session of one device moved, headers included, and who uses it now."""

    device: str
    connected_at: datetime
    bytes_to_device: int
    bytes_from_device: int
    streams: int
    visits: int


class OtherTraffic(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The same of all other devices together."""

    devices: int
    bytes_to_device: int
    bytes_from_device: int


class TrafficList(msgspec.Struct, frozen=True):
    """Devices, the busiest first, and the rest."""

    devices: list[DeviceTraffic]
    rest: OtherTraffic


class Closed(msgspec.Struct, frozen=True):
    """Something has ended."""

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
    """There when bytes that are no UTF-8 were replaced."""
    truncated: bool = False
    reason: str | None = None
    """Why it did not simply end."""


class ExecResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A command on one device. `duration` is in seconds."""

    device: str
    command_id: str
    duration: float
    result: CommandOutput

    @classmethod
    def of(cls, device: str, command_id: str, duration: float, found: CommandResult) -> ExecResult:
        """From what was gathered of it."""
        output = CommandOutput(
            stdout=found.stdout,
            stderr=found.stderr,
            exit_code=found.exit_code,
            encoding=ENCODING_NOTE if found.replaced else "",
            truncated=found.truncated,
            reason=found.reason,
        )
        return cls(device=device, command_id=command_id, duration=round(duration, 6), result=output)


class ExecAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A command on all devices, when the last has ended."""

    command_id: str
    succeeded: int
    failed: int
    results: list[ExecResult]
