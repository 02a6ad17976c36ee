"""The state of a device's own switch for remote assistance, and the check of leases against it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from tunnelmux.errors import RegistryRefused

__all__ = ["AssistMode", "AssistState"]

AssistMode = Literal["off", "ask", "allow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistState:
    """Which leases a device would accept, as it last reported. In the end the device decides
    itself: this is to tell people at once what it would refuse."""

    mode: AssistMode
    """What the device does with a request now: refuse it, ask the person there, or accept it."""
    services: tuple[str, ...]
    """The services for which it accepts leases."""
    longest: float
    """The longest lease it accepts, in seconds."""
    hours: str = ""
    """The hours at which it accepts leases, by its own clock, as text; empty for always."""
    until: datetime | None = None
    """When assistance goes off by itself that a person at the device has switched on, which is how
    a device asks for help; None where no person did."""

    def check(self, services: Collection[str], starts: datetime, ends: datetime) -> None:
        """Raise RegistryRefused `device_refuses` for a lease that this device would not accept."""
        if self.mode == "off":
            raise RegistryRefused(
                "remote assistance is switched off on this device: switch it on there",
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
                f"the device accepts at most {self.longest / 3600:g} h: ask for less",
                code="device_refuses",
                field="until",
            )

    def as_json(self) -> dict[str, Any]:
        """The value of a JSON column."""
        until = self.until.astimezone(UTC).isoformat(timespec="seconds") if self.until else None
        return asdict(self) | {"services": list(self.services), "until": until}

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> AssistState | None:
        """Read the value of that column."""
        if not value:
            return None
        until = value.get("until")
        return cls(
            **value
            | {
                "services": tuple(value["services"]),
                "until": datetime.fromisoformat(until) if until else None,
            }
        )
