"""Whether a person may reach a service now: the answer of the proxy that would let them in."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

__all__ = ["DecidingRule", "Decision"]


class DecidingRule(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The rule that decides, without its secrets."""

    source: Literal["proxy.toml", "registry", "default"]
    """Where it is written; `default` is what holds where none is."""
    scope: Literal["service", "device", "all"]
    """What it is about: this service, all services of the device, or all devices."""
    let_in: list[str]
    roles: list[str] = []
    people: list[str] = []
    allow_from: list[str] = []
    deny_from: list[str] = []


class Decision(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Whether this person may reach this service now, by HTTP, and why."""

    device: str
    service: str
    allowed: bool
    by: Literal["public", "login", "lease", ""] = ""
    """What lets them in; empty where nothing does."""
    until: datetime | None = None
    """When the access ends; None if only a change of rule or role ends it."""
    lease: str = ""
    """The id of the lease that lets them in."""
    rule: DecidingRule
    reason: str
    """The same in a sentence."""
