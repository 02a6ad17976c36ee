"""What a device says of its own switch for remote assistance, and what follows from it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from tunnelmux.errors import RegistryRefused

__all__ = ["AssistMode", "AssistState"]

AssistMode = Literal["off", "ask", "allow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistState:
    """What a device would take, as it said last. The device decides by itself in the end: this is
    for telling people at once what it would refuse."""

    mode: AssistMode
    """What a request meets now: a refusal, a question at the device, a yes."""
    services: tuple[str, ...]
    """The services that a lease may be about."""
    longest: float
    """Seconds."""
    hours: str = ""
    """When, by the device's own clock, as people read it; empty for always."""

    def check(self, services: Collection[str], starts: datetime, ends: datetime) -> None:
        """Raise RegistryRefused `device_refuses` for what this device would not take."""
        if self.mode == "off":
            raise RegistryRefused(
                "remote assistance is switched off on this device: have it switched on there",
                code="device_refuses",
            )
        missing = [service for service in services if service not in self.services]
        if missing:
            raise RegistryRefused(
                f"the device offers no assistance with {', '.join(missing)}, only with "
                f"{', '.join(self.services) or 'nothing'}",
                code="device_refuses",
                field="services",
            )
        if ends - starts > timedelta(seconds=self.longest):
            raise RegistryRefused(
                f"the device takes {self.longest / 3600:g} h at most: ask for less",
                code="device_refuses",
                field="until",
            )

    def as_json(self) -> dict[str, Any]:
        """For a column."""
        return asdict(self) | {"services": list(self.services)}

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> AssistState | None:
        """From that column."""
        if not value:
            return None
        return cls(**value | {"services": tuple(value["services"])})
