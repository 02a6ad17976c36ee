"""What has become of a device, as the console tells it: connections, leases and changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tunnelmux.api.records import Device, DeviceSession
from tunnelmux.api.routes.audit import AuditEntry
from tunnelmux.api.routes.leases import Lease

__all__ = ["TimelineEntry", "timeline_of"]

_MOST = 15
# Entries: what fits beside the services of a device. The audit and the sessions have all.

_CHANGES = {
    "device.change": "changed",
    "device.disable": "disabled",
    "device.enable": "enabled",
    "device.quarantine": "put in quarantine",
    "device.release": "released from quarantine",
    "device.pin_host_key": "host key noted",
    "device.forget_host_key": "host key forgotten",
    "device.revoke": "credentials revoked",
    "device.rotate": "new credentials",
    "session.close": "session ended by hand",
    "visit.close": "visit ended by hand",
    "inspection.begin": "inspection began",
    "inspection.replay": "request sent again",
    "inspection.end": "inspection ended",
}
"""Actions of the audit that are told, in words."""


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One thing that happened."""

    kind: Literal["good", "warn", "bad", "accent", ""]
    """The colour of its dot."""
    title: str
    text: str
    at: datetime


def timeline_of(
    device: Device,
    sessions: Sequence[DeviceSession],
    leases: Sequence[Lease],
    changes: Sequence[AuditEntry],
) -> list[TimelineEntry]:
    """The last things that happened, the newest first."""
    by = f"by {device.paired_by_name}" if device.paired_by_name else ""
    entries = [TimelineEntry("accent", "let in", by, device.created)]
    entries += _of_sessions(sessions)
    entries += _of_leases(leases)
    for change in changes:
        if change.action in _CHANGES:
            who = change.actor.name or change.actor.kind
            kind: Literal["bad", ""] = "bad" if change.action == "device.disable" else ""
            entries.append(TimelineEntry(kind, _CHANGES[change.action], f"by {who}", change.at))
    return sorted(entries, key=lambda entry: entry.at, reverse=True)[:_MOST]


def _of_sessions(sessions: Sequence[DeviceSession]) -> Iterator[TimelineEntry]:
    for session in sessions:
        where = f"from {session.address}" if session.address else ""
        yield TimelineEntry("good", "connected", where, session.started)
        if session.ended is not None:
            yield TimelineEntry("warn", "lost", session.reason, session.ended)


def _of_leases(leases: Sequence[Lease]) -> Iterator[TimelineEntry]:
    for lease in leases:
        holder = lease.holder_name or "support by code"
        services = ", ".join(lease.services)
        yield TimelineEntry("accent", f"lease for {holder}", services, lease.created)
        if lease.ended is not None:
            text = lease.end_reason
            yield TimelineEntry("", f"lease of {holder} ended", text, lease.ended)
