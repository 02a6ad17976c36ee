"""The registry as a whole: the parts that belong to no tenant, and the access to one tenant."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from tunnelmux.config import Secret
from tunnelmux.errors import ConfigError
from tunnelmux.registry.actor import Actor
from tunnelmux.registry.audit import AuditTrail
from tunnelmux.registry.browser_sessions import BrowserSessions
from tunnelmux.registry.changes import Changes
from tunnelmux.registry.device_keys import DeviceSshKeys, SshDevices
from tunnelmux.registry.devices import Credentials, Devices
from tunnelmux.registry.fleet import Fleet
from tunnelmux.registry.leases import Leases
from tunnelmux.registry.pairing import InstallKeys, Joining, PairingRules, Pairings
from tunnelmux.registry.people import Invitations, Members, Users
from tunnelmux.registry.record_limits import RecordLimits
from tunnelmux.registry.recordings import Recordings
from tunnelmux.registry.ssh_keys import SshKeys, Ticket, Tickets
from tunnelmux.registry.ssh_rules import TenantSsh
from tunnelmux.registry.tenants import Tenants
from tunnelmux.registry.terminals import TerminalApprovals, TerminalRequests
from tunnelmux.registry.tidying import Keeping
from tunnelmux.registry.tokens import AccessTokens, ProvenToken
from tunnelmux.registry.visitors import ServiceLinks, VisitorRules, Visitors

__all__ = ["Installation", "Registry", "TenantRegistry", "open_registry"]


class TenantRegistry(abc.ABC):
    """The records of one tenant. Records of other tenants do not exist here.

    The tenant and the actor are given when it is made, not with each call, so that no query can
    forget the tenant. Every call is one transaction, and every change one entry of the audit.
    """

    tenant_id: str
    devices: Devices
    credentials: Credentials
    device_ssh_keys: DeviceSshKeys
    pairings: Pairings
    install_keys: InstallKeys
    members: Members
    invitations: Invitations
    access_tokens: AccessTokens
    terminals: TerminalApprovals
    leases: Leases
    tickets: Tickets
    recordings: Recordings
    ssh: TenantSsh
    visitor_rules: VisitorRules
    service_links: ServiceLinks
    audit: AuditTrail


class Installation(abc.ABC):
    """The records that belong to no tenant, for one actor. Changes are entered in the audit of the
    installation, and also of the tenant if they concern one."""

    tenants: Tenants
    users: Users
    browser_sessions: BrowserSessions
    ssh_keys: SshKeys
    audit: AuditTrail


class Registry(abc.ABC):
    """Who exists and who may.

    Any call raises RegistryAway when the database does not answer in time, and RegistryFailed when
    the database fails (full, read-only, damaged). Nothing has changed then, unless the message says
    that this is unknown.
    """

    changes: Changes
    fleet: Fleet
    joining: Joining
    ssh_devices: SshDevices
    terminals: TerminalRequests
    visitors: Visitors

    @property
    @abc.abstractmethod
    def failures(self) -> Mapping[str, int]:
        """How many calls have failed since it was opened: `away` counts RegistryAway, `failed`
        counts RegistryFailed."""

    @abc.abstractmethod
    def tenant(self, tenant_id: str, by: Actor) -> TenantRegistry:
        """The records of this tenant. A tenant that does not exist has no records; changing
        anything in it raises NoSuchRecord."""

    @abc.abstractmethod
    def installation(self, by: Actor) -> Installation:
        """The records that belong to no tenant."""

    @abc.abstractmethod
    async def prove_token(self, token: Secret, *, address: str) -> ProvenToken | None:
        """The access token with its tenant; None when it is unknown or has ended, or when its user
        has no role there any more.

        Calling it counts as use, which is written at most once a minute.
        """

    @abc.abstractmethod
    async def redeem_ticket(self, ticket: Secret, *, address: str) -> Ticket | None:
        """The ticket, the first time it is shown; None when it is unknown, used or expired, or when
        its user has no role in the tenant any more."""

    @abc.abstractmethod
    async def check(self) -> None:
        """Check that the database answers; raises RegistryAway or RegistryFailed."""

    @abc.abstractmethod
    async def tidy(self, keep: Keeping | None = None) -> None:
        """Delete what is over: old changes, codes, browser sessions; and what ended longer ago than
        `keep` says. Each transaction deletes some hundred rows.

        The API calls it once an hour. Two may do it at once.
        """


def open_registry(
    url: Secret,
    *,
    migrate: bool | None = None,
    rules: PairingRules | None = None,
    limits: RecordLimits | None = None,
    connections: int = 4,
    timeout: float = 5.0,
) -> AbstractAsyncContextManager[Registry]:
    """A registry at `sqlite:////absolute/path.db` or `postgresql://user@host/name`.

    With `migrate` the schema is first created or upgraded; by default only for SQLite, where no one
    else does it. `connections` bounds how many calls run at once; `timeout` is how many seconds
    each may take. Raises ConfigError when the URL cannot be used or the libraries are missing,
    RegistryFailed when the database has another version of the schema, RegistryAway.
    """
    # Not at the top: devices and proxies without a registry do not have SQLAlchemy.
    try:
        from tunnelmux.registry.sql import open_sql_registry
    except ImportError as error:
        raise ConfigError(
            f"registry.url: the registry needs libraries that are not installed ({error.name}): "
            'in a clone of tunnelmux, pip install ".[registry]", for PostgreSQL ".[postgresql]"'
        ) from None

    return open_sql_registry(
        url,
        migrate=migrate,
        rules=rules or PairingRules(),
        limits=limits,
        connections=connections,
        timeout=timeout,
    )
