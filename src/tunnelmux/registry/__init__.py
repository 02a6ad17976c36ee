"""Who exists and who may: tenants, people, devices, credentials, leases, and the audit of it all.

`open_registry(url)` gives a `Registry`; `registry.tenant(id, by=actor)` gives the records of one
tenant. The modules of this package define records and abstract classes. `registry.sql` implements
them on SQLite and PostgreSQL, and is the only part of tunnelmux that knows SQL.
"""

from __future__ import annotations

from tunnelmux.registry.actor import Actor
from tunnelmux.registry.assist import AssistState
from tunnelmux.registry.audit import AuditEntry, AuditFilter, AuditTrail, ChainCheck
from tunnelmux.registry.audit_details import shortened
from tunnelmux.registry.browser_sessions import (
    BrowserSession,
    BrowserSessions,
    NewBrowserSession,
    SignedIn,
)
from tunnelmux.registry.changes import Change, Changes, ChangeWatch, Effect, Effects
from tunnelmux.registry.device_keys import (
    DeviceSshKey,
    DeviceSshKeys,
    SshDevice,
    SshDevices,
)
from tunnelmux.registry.devices import (
    Credential,
    Credentials,
    Device,
    DeviceFilter,
    DeviceHostKeys,
    Devices,
    DeviceSession,
    DeviceState,
    Revocation,
)
from tunnelmux.registry.fleet import (
    Fleet,
    FleetDevice,
    FleetLease,
    Proxy,
    SessionBegan,
    SessionEnded,
    Sighting,
)
from tunnelmux.registry.ids import Page, format_time, is_id, new_id
from tunnelmux.registry.leases import MAX_LEASE, RIGHTS, Lease, Leases, LeaseTerms, Right
from tunnelmux.registry.names import DEFAULT_TENANT
from tunnelmux.registry.pairing import (
    Arrival,
    InstallKey,
    InstallKeys,
    Joining,
    Pairing,
    PairingRules,
    Pairings,
)
from tunnelmux.registry.people import (
    ROLES,
    Invitation,
    Invitations,
    Member,
    Members,
    Membership,
    Role,
    User,
    Users,
)
from tunnelmux.registry.record_limits import RecordLimits
from tunnelmux.registry.recordings import IndexPoint, Recorded, RecordedEnd, Recording, Recordings
from tunnelmux.registry.registry import Installation, Registry, TenantRegistry, open_registry
from tunnelmux.registry.ssh_keys import SshKey, SshKeys, Ticket, Tickets, parse_public_key
from tunnelmux.registry.ssh_rules import CertifiedUser, RecordingFailure, SshRules, TenantSsh
from tunnelmux.registry.tenants import Tenant, Tenants
from tunnelmux.registry.terminals import TerminalApprovals, TerminalRequest, TerminalRequests
from tunnelmux.registry.tidying import Keeping
from tunnelmux.registry.tokens import AccessToken, AccessTokens, ProvenToken
from tunnelmux.registry.visitors import (
    DeviceRule,
    GrantState,
    RuleChange,
    ServiceLink,
    ServiceLinks,
    SigningKey,
    VisitorRules,
    Visitors,
)

__all__ = [
    "DEFAULT_TENANT",
    "MAX_LEASE",
    "RIGHTS",
    "ROLES",
    "AccessToken",
    "AccessTokens",
    "Actor",
    "Arrival",
    "AssistState",
    "AuditEntry",
    "AuditFilter",
    "AuditTrail",
    "BrowserSession",
    "BrowserSessions",
    "CertifiedUser",
    "ChainCheck",
    "Change",
    "ChangeWatch",
    "Changes",
    "Credential",
    "Credentials",
    "Device",
    "DeviceFilter",
    "DeviceHostKeys",
    "DeviceRule",
    "DeviceSession",
    "DeviceSshKey",
    "DeviceSshKeys",
    "DeviceState",
    "Devices",
    "Effect",
    "Effects",
    "Fleet",
    "FleetDevice",
    "FleetLease",
    "GrantState",
    "IndexPoint",
    "InstallKey",
    "InstallKeys",
    "Installation",
    "Invitation",
    "Invitations",
    "Joining",
    "Keeping",
    "Lease",
    "LeaseTerms",
    "Leases",
    "Member",
    "Members",
    "Membership",
    "NewBrowserSession",
    "Page",
    "Pairing",
    "PairingRules",
    "Pairings",
    "ProvenToken",
    "Proxy",
    "RecordLimits",
    "Recorded",
    "RecordedEnd",
    "Recording",
    "RecordingFailure",
    "Recordings",
    "Registry",
    "Revocation",
    "Right",
    "Role",
    "RuleChange",
    "ServiceLink",
    "ServiceLinks",
    "SessionBegan",
    "SessionEnded",
    "Sighting",
    "SignedIn",
    "SigningKey",
    "SshDevice",
    "SshDevices",
    "SshKey",
    "SshKeys",
    "SshRules",
    "Tenant",
    "TenantRegistry",
    "TenantSsh",
    "Tenants",
    "TerminalApprovals",
    "TerminalRequest",
    "TerminalRequests",
    "Ticket",
    "Tickets",
    "User",
    "Users",
    "VisitorRules",
    "Visitors",
    "format_time",
    "is_id",
    "new_id",
    "open_registry",
    "parse_public_key",
    "shortened",
]
