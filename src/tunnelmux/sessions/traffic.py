"""How much the sessions of devices have moved, as a proxy tells it."""

from __future__ import annotations

from datetime import datetime

import msgspec

__all__ = ["DeviceTraffic", "OtherTraffic", "TrafficList"]


class DeviceTraffic(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Bytes that the session of one device moved, headers included, and its live visits."""

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
