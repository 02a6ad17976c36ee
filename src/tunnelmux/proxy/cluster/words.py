"""The protocol between nodes on the streams of a hop. `CONNECT dev1` with the generation of the
session begins a stream to that device, byte for byte. `GET /v1/devices/dev1` asks for the node's
data about it. Both concern sessions of the asked node only, at whichever of its workers: no stream
goes over three machines.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

__all__ = ["DEVICE_PATH", "MOVED", "DeviceThere"]

DEVICE_PATH = "/v1/devices/"
"""The prefix of a device's name."""

MOVED = "device-moved"
"""The Tunnelmux-Reason where the session is not, or no longer, on the asked node."""


class DeviceThere(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A node's answer about a device whose session it has."""

    generation: int
    user_id: str = ""
    connected_at: datetime
    last_heartbeat: datetime
    remote_addr: str = ""
    credential: str = ""
    """The digest of `SessionHandle.credential`, in hexadecimal."""
    default_service: str = ""
    relayed: dict[str, str] = {}
    """Services that take raw connections; the empty name is the default service."""
    timeouts: dict[str, float] = {}
    """Response timeouts in seconds by service; the empty name is the default service."""
