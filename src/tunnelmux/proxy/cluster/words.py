"""What nodes write to each other on the streams of a hop.

`CONNECT dev1` with the generation of the session that is meant begins a stream that leads to that
device, byte for byte. `GET /v1/devices/dev1` asks what the node knows of it. Both only ever mean
sessions of the very node that is asked: nothing goes two hops.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

__all__ = ["DEVICE_PATH", "MOVED", "DeviceThere"]

DEVICE_PATH = "/v1/devices/"
"""Before the name of a device."""

MOVED = "device-moved"
"""The Tunnelmux-Reason where that session is not here, or no more."""


class DeviceThere(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node tells another one of a device whose session it has."""

    generation: int
    user_id: str = ""
    connected_at: datetime
    last_heartbeat: datetime
    remote_addr: str = ""
    credential: str = ""
    """The digest of `SessionHandle.credential`, in hexadecimal."""
    default_service: str = ""
    relayed: dict[str, str] = {}
    """The services that take raw connections, by what is asked for; the empty name is the default
    one."""
    timeouts: dict[str, float] = {}
    """Seconds by service; under the empty name, those of the default one."""
