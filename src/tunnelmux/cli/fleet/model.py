"""What the commands show, as plain data: the same for both ways to reach a fleet.

`--json` prints these as they are: the fields keep their names, and new ones may be added.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from tunnelmux.sessions import RequestSeen, VisitSummary

__all__ = [
    "Account",
    "Device",
    "DeviceDetails",
    "FleetEvent",
    "SeenRequest",
    "Service",
    "Visit",
]

State = Literal["online", "offline", "disabled", "quarantined"]


class Device(msgspec.Struct, kw_only=True):
    """A device in a list."""

    name: str
    state: State
    since: datetime | None = None
    """When it came online, or went offline."""
    last_seen: datetime | None = None
    address: str = ""
    version: str = ""
    services: list[str] = []
    serial: str = ""
    labels: dict[str, str] = {}
    reason: str = ""
    """Why it is offline or held back."""
    id: str = ""


class Visit(msgspec.Struct, kw_only=True):
    """A visitor's use of one service, now."""

    id: str
    way: str
    service: str
    visitor: str
    since: datetime
    bytes_in: int = 0
    bytes_out: int = 0

    @classmethod
    def of(cls, summary: VisitSummary) -> Visit:
        """The same, as a proxy tells of it."""
        return cls(
            id=summary.id,
            way=summary.way,
            service=summary.service,
            visitor=summary.visitor,
            since=summary.since,
            bytes_in=summary.bytes_in,
            bytes_out=summary.bytes_out,
        )


class Service(msgspec.Struct, kw_only=True):
    """A service that a device offers."""

    name: str
    scheme: str = ""
    default: bool = False


class DeviceDetails(msgspec.Struct, kw_only=True):
    """All that is known of one device."""

    device: Device
    services: list[Service] = []
    visits: list[Visit] = []
    """Who uses it now."""
    paired_by: str = ""
    created: datetime | None = None
    rotation_wanted: bool = False


class FleetEvent(msgspec.Struct, kw_only=True):
    """Something that happened. The kind `gap` says that events before it are missing."""

    kind: str
    at: datetime | None = None
    device: str = ""
    reason: str = ""
    object_id: str = ""


class SeenRequest(msgspec.Struct, kw_only=True):
    """A request that is over. The kind `dropped` says that `count` of them are missing here."""

    kind: Literal["request", "dropped"] = "request"
    at: datetime | None = None
    way: str = ""
    """`http`, `tcp`: by an ingress; `raw`, `ws`, `call`: by the internal API, as the API and
    `tunnelmux` themselves come."""
    device: str = ""
    service: str = ""
    visitor: str = ""
    method: str = ""
    path: str = ""
    status: int = 0
    reason: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    upgraded: bool = False
    ended: str = ""
    problem: str = ""
    count: int = 0

    @classmethod
    def of(cls, seen: RequestSeen) -> SeenRequest:
        """The same, as a proxy tells of it."""
        return cls(**msgspec.structs.asdict(seen))


class Account(msgspec.Struct, kw_only=True):
    """Who the commands act as, and where."""

    server: str
    way: Literal["api", "proxy"]
    name: str = ""
    email: str = ""
    tenant: str = ""
    role: str = ""
