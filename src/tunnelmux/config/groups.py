"""Groups of devices in proxy.toml: several devices that visitors reach under one name."""

from __future__ import annotations

from typing import Literal

import msgspec

from tunnelmux.config.rules import InvalidSetting, check_label, check_unique

__all__ = ["Balance", "GroupConfig", "Sticky"]

Balance = Literal["least-busy", "failover"]
"""How a device is chosen: the one with the fewest visits, or the first one that is there."""

Sticky = Literal["none", "address", "cookie"]
"""What makes a visitor come back to the same device."""

_MAX_DEVICES = 64
# Devices of one group. Each request looks at all of them.


class GroupConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several devices with the same services, which visitors reach under one name."""

    name: str
    """Its name, and its label in host names, where a device's name would stand."""

    devices: list[str]
    """The names of its devices, at most 64; with `failover` the preferred ones first."""

    balance: Balance = "least-busy"
    """`least-busy`: a visitor gets the device with the fewest visits at this proxy. `failover`: the
    first device in the list that is there.
    """

    sticky: Sticky = "none"
    """`address`: visitors from one address get the same device. `cookie`: a browser does, by a
    cookie of the proxy. While that device cannot serve them, another one does.
    """

    def __post_init__(self) -> None:
        check_label("name", self.name)
        if not self.devices:
            raise InvalidSetting("devices", f'group "{self.name}" needs at least one device')
        if len(self.devices) > _MAX_DEVICES:
            raise InvalidSetting("devices", f"has more than {_MAX_DEVICES} entries")
        check_unique("devices", self.devices)
