"""Groups of devices in proxy.toml: several devices that visitors reach under one name."""

from __future__ import annotations

from typing import Literal

import msgspec

from tunnelmux.config.rules import InvalidSetting, check_label, check_unique

__all__ = ["MAX_DEVICES", "Balance", "GroupConfig", "Sticky", "read_label"]

Balance = Literal["least-busy", "failover"]
"""How a device is chosen: the one with the fewest visits, or the first one that is there."""

Sticky = Literal["none", "address", "cookie"]
"""What makes a visitor come back to the same device."""

MAX_DEVICES = 64
"""Devices of one group. Each request looks at all of them."""


def read_label(setting: str, text: str) -> tuple[str, str]:
    """Key and value of a label; raises InvalidSetting for that setting."""
    key, _, value = text.partition("=")
    if not key or not value or text != text.strip() or not text.isprintable():
        raise InvalidSetting(setting, f"{text!r} is no label: write key=value, like role=shop")
    return key, value


class GroupConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several devices with the same services, which visitors reach under one name."""

    name: str
    """Its name, and its label in host names, where a device's name would stand."""

    devices: list[str] = []
    """The names of its devices, at most 64; with `failover` the preferred ones first."""

    label: str | None = None
    """Instead of `devices`: `key=value`, for all devices with that label, in the order of their
    names; of more than 64 the first ones. Devices of tenants never belong to it.
    """

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
        if (not self.devices) == (self.label is None):
            raise InvalidSetting(
                "devices", f'group "{self.name}" needs devices or a label, and not both'
            )
        if self.label is not None:
            read_label("label", self.label)
        if len(self.devices) > MAX_DEVICES:
            raise InvalidSetting("devices", f"has more than {MAX_DEVICES} entries")
        check_unique("devices", self.devices)

    @property
    def wanted_label(self) -> tuple[str, str]:
        """Key and value of the label; two empty texts without one."""
        return read_label("label", self.label) if self.label is not None else ("", "")
