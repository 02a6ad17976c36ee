"""The registry as one thing: what is not bound to a tenant, and the way to what is."""

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
from tunnelmux.registry.recordings import Recordings
from tunnelmux.registry.ssh_keys import SshKeys, Ticket, Tickets
from tunnelmux.registry.ssh_rules import TenantSsh
from tunnelmux.registry.tenants import Tenants
from tunnelmux.registry.terminals import TerminalApprovals, TerminalRequests
from tunnelmux.registry.tokens import AccessTokens, ProvenToken
from tunnelmux.registry.visitors import ServiceLinks, VisitorRules, Visitors

__all__ = ["Installation", "Registry", "TenantRegistry", "open_registry"]


class TenantRegistry(abc.ABC):
    """What belongs to one tenant. Records of another do not exist here.

    The tenant and who acts are given when it is made, never with a call: a query without a tenant
    cannot be written. Every call is one transaction, and every change one entry of the audit.
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
    """What is above tenants, done by an actor: its changes are in the audit of the installation,
    and of the tenant where they touch one."""

    tenants: Tenants
    users: Users
    browser_sessions: BrowserSessions
    ssh_keys: SshKeys
    audit: AuditTrail


class Registry(abc.ABC):
    """Who exists and who may.

    Any call raises RegistryAway when the database does not answer in time, and RegistryFailed when
    it answers that it cannot (full, read-only, damaged); nothing has changed then, unless the
    message says that this is not known.
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
        """How many calls failed since it was opened: `away` by RegistryAway, `failed` by
        RegistryFailed."""

    @abc.abstractmethod
    def tenant(self, tenant_id: str, by: Actor) -> TenantRegistry:
        """What belongs to this tenant. A tenant that does not exist has no records; changing
        anything in it raises NoSuchRecord."""

    @abc.abstractmethod
    def installation(self, by: Actor) -> Installation:
        """What is above tenants."""

    @abc.abstractmethod
    async def prove_token(self, token: Secret, *, address: str) -> ProvenToken | None:
        """Whose access token this is; None when it is unknown, has ended, or its user may nothing.

        Being asked counts as use, written at most once a minute.
        """

    @abc.abstractmethod
    async def redeem_ticket(self, ticket: Secret, *, address: str) -> Ticket | None:
        """What a ticket is for, the first time it is shown; None when it is used, over, or none,
        or its user may nothing in the tenant any more."""

    @abc.abstractmethod
    async def check(self) -> None:
        """Ask the database for a sign of life; raises RegistryAway or RegistryFailed."""

    @abc.abstractmethod
    async def tidy(self) -> None:
        """Forget what is over and of no use any more: old changes, codes, browser sessions.

        To be called once an hour by each process that has a registry open; the audit stays whole.
        """


def open_registry(
    url: Secret,
    *,
    migrate: bool | None = None,
    rules: PairingRules | None = None,
    connections: int = 4,
    timeout: float = 5.0,
) -> AbstractAsyncContextManager[Registry]:
    """A registry at `sqlite:////absolute/path.db` or `postgresql://user@host/name`.

    With `migrate` the schema is made or upgraded first; by default for SQLite only, where nothing
    else would. `connections` bounds how many calls are under way at once, `timeout` is how many
    seconds each may take. Raises ConfigError when the URL cannot be used or the libraries are
    missing, RegistryFailed when the database is of another version, RegistryAway.
    """
    # Not at the top: devices and plain proxies have no SQLAlchemy, and need none.
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
        connections=connections,
        timeout=timeout,
    )
