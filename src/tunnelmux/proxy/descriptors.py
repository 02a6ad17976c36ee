"""Files and sockets that a process may have open, of which each connection is one."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import msgspec

from tunnelmux.config import LimitsConfig, ProxyConfig
from tunnelmux.descriptors import files_allowed
from tunnelmux.limits import IngressLimits, InternalLimits
from tunnelmux.observability import get_logger

Part = TypeVar("Part", IngressLimits, InternalLimits)

__all__ = ["within_descriptors"]

_log = get_logger("proxy")


def within_descriptors(config: ProxyConfig) -> ProxyConfig:
    """The configuration with limits of connections that no stranger can use up all descriptors
    by: where these are gone, no connection is accepted, and so no idle one gives way."""
    files, limits = files_allowed(), config.limits
    share = 4 if config.ingress.tcp else 2  # one half for visitors, of all TCP ports as of HTTP
    lowered = msgspec.structs.replace(
        limits,
        ingress=_lowered(
            limits.ingress,
            max_visitors=files // share,
            max_visitors_per_address=files // (2 * share),
            max_waiting_handshakes=files // 4,
            max_handshakes=files // 16,
        ),
        internal=_lowered(limits.internal, max_callers=files // 8),
    )
    if lowered == limits:
        return config
    _log.warning(
        "limits are lowered",
        files=files,
        **_changes(limits, lowered),
        fix="this process may open few files and sockets: raise LimitNOFILE (ulimit -n)",
    )
    return msgspec.structs.replace(config, limits=lowered)


def _lowered(part: Part, **most: int) -> Part:
    values = {name: min(getattr(part, name), max(limit, 1)) for name, limit in most.items()}
    return dataclasses.replace(part, **values)


def _changes(before: LimitsConfig, after: LimitsConfig) -> dict[str, int]:
    changed: dict[str, int] = {}
    for old, new in ((before.ingress, after.ingress), (before.internal, after.internal)):
        for field in dataclasses.fields(new):
            if getattr(new, field.name) != getattr(old, field.name):
                changed[field.name] = getattr(new, field.name)
    return changed
