"""The registry in SQL, made of its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tunnelmux.config import Secret
from tunnelmux.registry.actor import Actor
from tunnelmux.registry.ids import Clock, utc_now
from tunnelmux.registry.pairing import PairingRules
from tunnelmux.registry.record_limits import RecordLimits
from tunnelmux.registry.registry import Installation, Registry, TenantRegistry
from tunnelmux.registry.sql.audit import SqlAuditTrail
from tunnelmux.registry.sql.browser_sessions import SqlBrowserSessions
from tunnelmux.registry.sql.changes import SqlChanges
from tunnelmux.registry.sql.database import Database, parse_url
from tunnelmux.registry.sql.device_keys import SqlDeviceSshKeys, SqlSshDevices
from tunnelmux.registry.sql.devices import SqlCredentials, SqlDevices
from tunnelmux.registry.sql.fleet import SqlFleet
from tunnelmux.registry.sql.joining import SqlJoining
from tunnelmux.registry.sql.leases import SqlLeases
from tunnelmux.registry.sql.pairing import SqlInstallKeys, SqlPairings
from tunnelmux.registry.sql.people import SqlInvitations, SqlMembers, SqlUsers
from tunnelmux.registry.sql.recordings import SqlRecordings
from tunnelmux.registry.sql.ssh_keys import SqlSshKeys, SqlTickets, TicketDesk
from tunnelmux.registry.sql.ssh_rules import SqlTenantSsh
from tunnelmux.registry.sql.tenants import SqlTenants
from tunnelmux.registry.sql.terminals import SqlTerminalApprovals, SqlTerminalRequests
from tunnelmux.registry.sql.tidying import Tidying
from tunnelmux.registry.sql.tokens import SqlAccessTokens, TokenProofs
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads
from tunnelmux.registry.sql.upgrade import prepare
from tunnelmux.registry.sql.visitors import SqlServiceLinks, SqlVisitorRules, SqlVisitors
from tunnelmux.registry.ssh_keys import Ticket
from tunnelmux.registry.tidying import Keeping
from tunnelmux.registry.tokens import ProvenToken

__all__ = ["SqlRegistry", "open_sql_registry"]


def open_sql_registry(
    url: Secret,
    *,
    migrate: bool | None,
    rules: PairingRules,
    limits: RecordLimits | None = None,
    connections: int,
    timeout: float,
    clock: Clock = utc_now,
) -> AbstractAsyncContextManager[SqlRegistry]:
    """See `open_registry`. A URL that cannot be used is refused at once."""
    parse_url(url)

    def make() -> Database:
        return Database(url, connections=connections, timeout=timeout, limits=limits)

    return _opened(make, migrate, rules, clock)


@asynccontextmanager
async def _opened(
    make: Callable[[], Database], migrate: bool | None, rules: PairingRules, clock: Clock
) -> AsyncIterator[SqlRegistry]:
    database = make()
    if migrate is None:
        migrate = database.is_sqlite
    try:
        await prepare(database, migrate=migrate)
        yield SqlRegistry(database, rules, clock)
    finally:
        database.close()


class SqlRegistry(Registry):
    """See `Registry`."""

    def __init__(self, database: Database, rules: PairingRules, clock: Clock) -> None:
        self._database = database
        self._rules = rules
        self._clock = clock
        proxy = Actor.program("tunnelmux-proxy")
        self.changes = SqlChanges(database, clock, tenant_id=None, actor=proxy)
        self.fleet = SqlFleet(database, clock, tenant_id=None, actor=proxy)
        self.joining = SqlJoining(database, clock, rules=rules)
        self.terminals = SqlTerminalRequests(database, clock, rules=rules)
        self.visitors = SqlVisitors(database, clock, tenant_id=None, actor=proxy)
        self.ssh_devices = SqlSshDevices(database, clock, tenant_id=None, actor=proxy)
        self._proofs = TokenProofs(database, clock, tenant_id=None, actor=proxy)
        self._tickets = TicketDesk(database, clock, tenant_id=None, actor=proxy)
        self._keeper = _Keeper(database, clock, tenant_id=None, actor=Actor.program("tunnelmux"))
        self._tidying = Tidying(database, clock)

    @property
    def failures(self) -> Mapping[str, int]:
        return self._database.failures

    def tenant(self, tenant_id: str, by: Actor) -> TenantRegistry:
        return SqlTenantRegistry(self._database, self._clock, tenant_id, by, self._rules)

    def installation(self, by: Actor) -> Installation:
        return SqlInstallation(self._database, self._clock, by)

    async def prove_token(self, token: Secret, *, address: str) -> ProvenToken | None:
        return await self._proofs.prove(token, address)

    async def redeem_ticket(self, ticket: Secret, *, address: str) -> Ticket | None:
        return await self._tickets.redeem(ticket, address)

    async def check(self) -> None:
        await self._keeper.check()

    async def tidy(self, keep: Keeping | None = None) -> None:
        await self._tidying.run(keep or Keeping())


class SqlTenantRegistry(TenantRegistry):
    """See `TenantRegistry`."""

    def __init__(
        self, database: Database, clock: Clock, tenant_id: str, actor: Actor, rules: PairingRules
    ) -> None:
        self.tenant_id = tenant_id
        self.devices = SqlDevices(database, clock, tenant_id=tenant_id, actor=actor, rules=rules)
        self.credentials = SqlCredentials(database, clock, tenant_id=tenant_id, actor=actor)
        self.device_ssh_keys = SqlDeviceSshKeys(database, clock, tenant_id=tenant_id, actor=actor)
        self.pairings = SqlPairings(database, clock, tenant_id=tenant_id, actor=actor, rules=rules)
        self.install_keys = SqlInstallKeys(database, clock, tenant_id=tenant_id, actor=actor)
        self.members = SqlMembers(database, clock, tenant_id=tenant_id, actor=actor)
        self.invitations = SqlInvitations(database, clock, tenant_id=tenant_id, actor=actor)
        self.access_tokens = SqlAccessTokens(database, clock, tenant_id=tenant_id, actor=actor)
        self.terminals = SqlTerminalApprovals(
            database, clock, tenant_id=tenant_id, actor=actor, rules=rules
        )
        self.leases = SqlLeases(database, clock, tenant_id=tenant_id, actor=actor)
        self.tickets = SqlTickets(database, clock, tenant_id=tenant_id, actor=actor)
        self.recordings = SqlRecordings(database, clock, tenant_id=tenant_id, actor=actor)
        self.ssh = SqlTenantSsh(database, clock, tenant_id=tenant_id, actor=actor)
        self.visitor_rules = SqlVisitorRules(database, clock, tenant_id=tenant_id, actor=actor)
        self.service_links = SqlServiceLinks(database, clock, tenant_id=tenant_id, actor=actor)
        self.audit = SqlAuditTrail(database, clock, tenant_id=tenant_id, actor=actor)


class SqlInstallation(Installation):
    """See `Installation`."""

    def __init__(self, database: Database, clock: Clock, actor: Actor) -> None:
        self.tenants = SqlTenants(database, clock, tenant_id=None, actor=actor)
        self.users = SqlUsers(database, clock, tenant_id=None, actor=actor)
        self.browser_sessions = SqlBrowserSessions(database, clock, tenant_id=None, actor=actor)
        self.ssh_keys = SqlSshKeys(database, clock, tenant_id=None, actor=actor)
        self.audit = SqlAuditTrail(database, clock, tenant_id=None, actor=actor)


class _Keeper(Repository):
    """Calls for the database itself."""

    @reads
    def check(self, tx: Transaction) -> None:
        tx.last_change()
