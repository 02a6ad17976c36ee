"""What an agent says of itself in its handshake."""

from __future__ import annotations

from dataclasses import dataclass, field

from tunnelmux.config.rules import DOMAIN_LABEL
from tunnelmux.proxy.tunnels.assistance import said_serial
from tunnelmux.transports import UpgradeRequest
from tunnelmux.wire import (
    ASSIST_FIELD,
    DEFAULT_SERVICE_FIELD,
    HOST_KEYS_FIELD,
    MOST_SERVICES,
    RELAY_FIELD,
    SERIAL_FIELD,
    SERVICES_FIELD,
    TIMEOUTS_FIELD,
    read_host_keys,
    read_relayed,
    read_timeouts,
)

__all__ = ["Said", "read_said"]

_SERVICES = SERVICES_FIELD.decode("ascii")
_RELAY = RELAY_FIELD.decode("ascii")
_TIMEOUTS = TIMEOUTS_FIELD.decode("ascii")
_DEFAULT_SERVICE = DEFAULT_SERVICE_FIELD.decode("ascii")
_SERIAL = SERIAL_FIELD.decode("ascii")
_HOST_KEYS = HOST_KEYS_FIELD.decode("ascii")
_ASSIST = ASSIST_FIELD.decode("ascii")

_MAX_VERSION = 64
# Bytes of an agent's version that are kept.


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """All of it; what is invalid is left out."""

    version: str = ""
    """The agent's version."""
    services: tuple[str, ...] = ()
    """The services it offers."""
    relayed: dict[str | None, str] = field(default_factory=dict)
    """Services that take raw connections, by name; None is the default service."""
    timeouts: dict[str | None, float] = field(default_factory=dict)
    """Seconds in which targets must begin an answer, where the agent sets its own."""
    serial: str = ""
    """The device's serial number."""
    host_keys: tuple[str, ...] = ()
    """The host keys of its SSH server."""
    assists: bool = False
    """Whether it takes leases, or may later."""
    default_service: str = ""
    """The default service."""


def read_said(request: UpgradeRequest) -> Said:
    """What the agent that sends this handshake says."""
    version = (request.header("User-Agent") or "").removeprefix("tunnelmux/")
    return Said(
        version=version[:_MAX_VERSION],
        services=_services_in(request.header(_SERVICES) or ""),
        relayed=_relayed_in(request.header(_RELAY) or ""),
        timeouts=read_timeouts(request.header(_TIMEOUTS) or ""),
        serial=said_serial(request.header(_SERIAL)),
        host_keys=read_host_keys(request.header(_HOST_KEYS) or ""),
        assists=request.header(_ASSIST) is not None,
        default_service=_name_in(request.header(_DEFAULT_SERVICE) or ""),
    )


def _services_in(field: str) -> tuple[str, ...]:
    """The names in a list of services; invalid names, and those over the limit, are left out."""
    names = (name.strip() for name in field.split(",")[:MOST_SERVICES])
    return tuple(name for name in names if DOMAIN_LABEL.fullmatch(name))


def _relayed_in(field: str) -> dict[str | None, str]:
    """The services that take raw connections, by name; None is the default service."""
    relayed: dict[str | None, str] = {}
    for name, is_default in read_relayed(field):
        if DOMAIN_LABEL.fullmatch(name):
            relayed[name] = name
            if is_default:
                relayed[None] = name
    return relayed


def _name_in(field: str) -> str:
    name = field.strip()
    return name if DOMAIN_LABEL.fullmatch(name) else ""
