"""The tables, for SQLite and PostgreSQL alike.

Every table that belongs to a tenant has `tenant_id`. Foreign keys use (tenant, id) when both sides
have a tenant, so that the database itself allows no reference into another tenant.
Migrations (`migrations/versions`) make these tables; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, Index, Table, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect

__all__ = ["SYSTEM_TENANT", "metadata"]

SYSTEM_TENANT = "00000000-0000-7000-8000-000000000000"
"""The id of a row for the installation's own audit chain. No list shows it, and it owns nothing."""


class Utc(sa.TypeDecorator[datetime]):
    """A time in UTC, to the microsecond; a time without a zone is refused."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


Id = sa.String(36)
Digest = sa.String(64)
Json = sa.JSON().with_variant(JSONB(), "postgresql")
Short = sa.String(255)

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id() -> Column[str]:
    return Column("id", Id, primary_key=True)


def _tenant() -> Column[str]:
    return Column("tenant_id", Id, ForeignKey("tenants.id"), nullable=False)


def _device(*, primary_key: bool = False) -> tuple[Column[str], Column[str], ForeignKeyConstraint]:
    return (
        Column("tenant_id", Id, nullable=False),
        Column("device_id", Id, nullable=False, primary_key=primary_key),
        ForeignKeyConstraint(
            ["tenant_id", "device_id"], ["devices.tenant_id", "devices.id"], ondelete="CASCADE"
        ),
    )


def _text(name: str) -> Column[str]:
    return Column(name, sa.Text, nullable=False, server_default="")


def _time(name: str, *, nullable: bool = False) -> Column[datetime]:
    return Column(name, Utc, nullable=nullable)


def _number(name: str, default: int = 0) -> Column[int]:
    return Column(name, sa.BigInteger, nullable=False, server_default=str(default))


def _flag(name: str, *, default: bool) -> Column[bool]:
    return Column(
        name, sa.Boolean, nullable=False, server_default=sa.true() if default else sa.false()
    )


tenants = Table(
    "tenants",
    metadata,
    _id(),
    Column("name", sa.String(63), nullable=False, unique=True),
    _text("display_name"),
    _flag("enabled", default=True),
    _time("created"),
    _number("audit_number"),
    Column("audit_hash", Digest, nullable=False),
    # The last entry that was deleted as too old, and its hash; 0 and FIRST_HASH before.
    _number("audit_cut"),
    Column("audit_cut_hash", Digest, nullable=False, server_default="0" * 64),
)

ssh_rules = Table(
    "ssh_rules",
    metadata,
    Column("tenant_id", Id, ForeignKey("tenants.id"), primary_key=True),
    _flag("record_input", default=False),
    Column("on_recording_failure", sa.String(16), nullable=False, server_default=""),
    Column("addresses", Json, nullable=False, server_default="[]"),
)

ssh_authorities = Table(
    "ssh_authorities",
    metadata,
    Column("tenant_id", Id, ForeignKey("tenants.id"), primary_key=True),
    Column("fingerprint", sa.String(64), primary_key=True),
    _text("line"),
    Index(None, "fingerprint"),
)

host_labels = Table(
    "host_labels",
    metadata,
    # A name belongs to a tenant or to a device of the default tenant, never to both.
    Column("label", sa.String(63), primary_key=True),
    _tenant(),
    Column("device_id", Id, nullable=True),
    ForeignKeyConstraint(
        ["tenant_id", "device_id"], ["devices.tenant_id", "devices.id"], ondelete="CASCADE"
    ),
    Index(None, "tenant_id", "device_id"),
)

users = Table(
    "users",
    metadata,
    _id(),
    Column("issuer", Short, nullable=False),
    Column("subject", Short, nullable=False),
    _text("email"),
    _text("name"),
    _flag("enabled", default=True),
    _time("created"),
    _time("last_sign_in", nullable=True),
    UniqueConstraint("issuer", "subject"),
)

memberships = Table(
    "memberships",
    metadata,
    Column("tenant_id", Id, ForeignKey("tenants.id"), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("role", sa.String(16), nullable=False),
    Column("source", sa.String(16), nullable=False),
    _time("since"),
    Index(None, "user_id"),
)

invitations = Table(
    "invitations",
    metadata,
    _id(),
    _tenant(),
    Column("digest", Digest, nullable=False, unique=True),
    Column("email", Short, nullable=False),
    Column("issuer", Short, nullable=True),
    Column("role", sa.String(16), nullable=False),
    _time("created"),
    _time("expires"),
    Column("used_by", Id, nullable=True),
    _flag("revoked", default=False),
    Index(None, "issuer", "email"),
    Index(None, "tenant_id", "id"),
)

devices = Table(
    "devices",
    metadata,
    _id(),
    _tenant(),
    Column("name", sa.String(63), nullable=False),
    Column("label", sa.String(63), nullable=False, unique=True),
    Column("serial", Short, nullable=False, server_default=""),
    # For searches: the same in lower case.
    Column("serial_key", Short, nullable=False, server_default=""),
    Column("labels", Json, nullable=False),
    _flag("enabled", default=True),
    _text("quarantine"),
    Column("paired_by", Id, nullable=False, server_default=""),
    _text("paired_by_name"),
    # Of its SSH server, a line each: those that the gateway accepts, and new ones that wait.
    _text("host_key"),
    _text("reported_host_keys"),
    Column("install_key_id", Id, nullable=True),
    _flag("rotation_wanted", default=False),
    _time("created"),
    UniqueConstraint("tenant_id", "id"),
    UniqueConstraint("tenant_id", "name"),
    Index(None, "tenant_id", "serial"),
    Index(None, "tenant_id", "serial_key"),
    Index(None, "tenant_id", "install_key_id"),
)

device_states = Table(
    "device_states",
    metadata,
    *_device(primary_key=True),
    _flag("online", default=False),
    Column("proxy_id", Id, nullable=True),
    Column("session_id", Id, nullable=True),
    _time("since", nullable=True),
    _time("last_seen", nullable=True),
    _text("address"),
    _text("agent_version"),
    Column("services", Json, nullable=False),
    _text("reason"),
    _text("rival"),
    _time("rival_seen", nullable=True),
    # What the device reports about its switch for assistance; NULL when it has not reported.
    Column("assist", Json, nullable=True),
    Index(None, "proxy_id", "online"),
)

device_sessions = Table(
    "device_sessions",
    metadata,
    _id(),
    *_device(),
    Column("proxy_id", Id, nullable=False),
    _time("started"),
    _time("ended", nullable=True),
    _text("address"),
    _text("agent_version"),
    _text("reason"),
    _number("bytes_to_device"),
    _number("bytes_from_device"),
    Index(None, "tenant_id", "device_id", "id"),
    Index(None, "proxy_id", "ended"),
)

credentials = Table(
    "credentials",
    metadata,
    _id(),
    *_device(),
    Column("digest", Digest, nullable=False, unique=True),
    Column("state", sa.String(16), nullable=False),
    _time("created"),
    _time("proved", nullable=True),
    _time("ended", nullable=True),
    _text("end_reason"),
    # For a device that logs in to the gateway by SSH: the key that it used.
    Column("ssh_key_id", Id, nullable=True),
    Index(None, "tenant_id", "device_id"),
    Index(None, "device_id", "state"),
)

pairings = Table(
    "pairings",
    metadata,
    _id(),
    # NULL while a device waits that no tenant has approved yet.
    Column("tenant_id", Id, ForeignKey("tenants.id"), nullable=True),
    Column("kind", sa.String(16), nullable=False),
    Column("state", sa.String(16), nullable=False),
    Column("code_digest", Digest, nullable=False),
    Column("code_half", Digest, nullable=False),
    Column("poll_digest", Digest, nullable=True, unique=True),
    Column("name", sa.String(63), nullable=False, server_default=""),
    Column("serial", Short, nullable=False, server_default=""),
    Column("labels", Json, nullable=False),
    _text("address"),
    _text("fingerprint"),
    _text("agent_version"),
    Column("install_key_id", Id, nullable=True),
    Column("created_by", Id, nullable=False, server_default=""),
    _text("created_by_name"),
    Column("decided_by", Id, nullable=False, server_default=""),
    _text("decided_by_name"),
    _time("created"),
    _time("expires"),
    _number("wrong_guesses"),
    # Whether a person who has signed in looked it up; so for terminals.
    _flag("seen", default=False),
    Column("device_id", Id, nullable=True),
    Column("replaces", Id, nullable=True),
    Index(None, "code_digest"),
    Index(None, "code_half"),
    Index(None, "tenant_id", "id"),
    Index(None, "expires"),
)

install_keys = Table(
    "install_keys",
    metadata,
    _id(),
    _tenant(),
    Column("digest", Digest, nullable=False, unique=True),
    _text("name"),
    Column("labels", Json, nullable=False),
    _flag("needs_approval", default=False),
    Column("serials", Json, nullable=False),
    _number("max_uses"),
    _number("uses"),
    Column("created_by", Id, nullable=False),
    _time("created"),
    _time("expires"),
    _time("last_used", nullable=True),
    _time("revoked", nullable=True),
    Index(None, "tenant_id", "id"),
)

access_tokens = Table(
    "access_tokens",
    metadata,
    _id(),
    _tenant(),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("digest", Digest, nullable=False, unique=True),
    _text("name"),
    Column("scopes", Json, nullable=False),
    Column("role", sa.String(16), nullable=False),
    _time("created"),
    _time("expires", nullable=True),
    _time("last_used", nullable=True),
    _text("last_address"),
    _time("revoked", nullable=True),
    Index(None, "tenant_id", "id"),
    Index(None, "user_id"),
)

terminal_requests = Table(
    "terminal_requests",
    metadata,
    _id(),
    Column("state", sa.String(16), nullable=False),
    Column("code_digest", Digest, nullable=False),
    # The secret that the terminal polls with; once approved, it is an access token.
    Column("digest", Digest, nullable=False, unique=True),
    _text("client"),
    _text("address"),
    _flag("seen", default=False),
    _time("created"),
    _time("expires"),
    Index(None, "code_digest"),
    Index(None, "expires"),
)

browser_sessions = Table(
    "browser_sessions",
    metadata,
    _id(),
    Column("digest", Digest, nullable=False, unique=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    # The tenant that the person works in; the row does not belong to it, but to the user.
    Column("works_in", Id, ForeignKey("tenants.id"), nullable=True),
    # The role there for which the secret was made: a higher one needs a new secret.
    Column("role", sa.String(16), nullable=True),
    Column("issuer", Short, nullable=False, server_default=""),
    Column("provider_session", Short, nullable=False, server_default=""),
    Column("tokens", sa.LargeBinary, nullable=False),
    _number("version"),
    _text("address"),
    _text("user_agent"),
    _time("created"),
    _time("last_seen"),
    Column("idle", sa.Float, nullable=False),
    _time("idle_ends"),
    _time("ends"),
    _time("refresh_until", nullable=True),
    Index(None, "user_id"),
    Index(None, "issuer", "provider_session"),
    Index(None, "idle_ends"),
)

used_once = Table(
    "used_once",
    metadata,
    Column("key", Digest, primary_key=True),
    _time("until"),
    Index(None, "until"),
)

guesses = Table(
    "guesses",
    metadata,
    # An address or a tenant, and how often it was wrong since `since`.
    Column("subject", Short, primary_key=True),
    _time("since"),
    _number("guesses"),
    Index(None, "since"),
)

access_rules = Table(
    "access_rules",
    metadata,
    *_device(primary_key=True),
    # Empty: the device's own rule, for services without one.
    Column("service", sa.String(63), primary_key=True),
    Column("rule", Json, nullable=False),
    _time("changed"),
    Column("changed_by", Id, nullable=False, server_default=""),
)

service_links = Table(
    "service_links",
    metadata,
    _id(),
    *_device(),
    Column("service", sa.String(63), nullable=False),
    _text("note"),
    _flag("once", default=False),
    _number("uses"),
    _time("last_used", nullable=True),
    _time("created"),
    Column("created_by", Id, nullable=False, server_default=""),
    _time("ends"),
    _time("revoked", nullable=True),
    Index(None, "tenant_id", "device_id", "id"),
    Index(None, "ends"),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    # The public keys with which our programs check each other's signed texts.
    Column("id", sa.String(64), primary_key=True),
    Column("maker", sa.String(16), nullable=False),
    Column("public", sa.LargeBinary, nullable=False),
    _text("url"),
    _time("created"),
    _time("ends"),
)

leases = Table(
    "leases",
    metadata,
    _id(),
    _tenant(),
    # No foreign key: the record of a lease outlives its device.
    Column("device_id", Id, nullable=False),
    Column("services", Json, nullable=False),
    Column("holder", Id, nullable=False),
    _text("holder_name"),
    _text("reason"),
    _flag("recorded", default=True),
    Column("consent", sa.String(16), nullable=False),
    _time("starts"),
    _time("ends"),
    Column("max_uses", sa.BigInteger, nullable=True),
    _number("uses"),
    Column("created_by", Id, nullable=False),
    _time("created"),
    _time("ended", nullable=True),
    Column("ended_by", Id, nullable=False, server_default=""),
    _text("end_reason"),
    _number("extended"),
    Column("kind", sa.String(16), nullable=False, server_default="person"),
    Column("rights", Json, nullable=False, server_default="[]"),
    _flag("sealed", default=False),
    Column("addresses", Json, nullable=False, server_default="[]"),
    Column("approval", sa.String(16), nullable=False, server_default="not_needed"),
    Column("decided_by", Id, nullable=False, server_default=""),
    _time("decided", nullable=True),
    _text("created_by_name"),
    _text("ended_by_name"),
    # For a lease by code: the fingerprint of the holder's key. The device has the key itself.
    Column("key_fingerprint", sa.String(64), nullable=False, server_default=""),
    Index(None, "key_fingerprint"),
    Index(None, "tenant_id", "id"),
    Index(None, "tenant_id", "device_id"),
    Index(None, "tenant_id", "holder"),
    Index(None, "ended", "ends"),
)

ssh_keys = Table(
    "ssh_keys",
    metadata,
    _id(),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    _text("name"),
    Column("fingerprint", sa.String(64), nullable=False, unique=True),
    Column("line", sa.Text, nullable=False),
    _time("created"),
    _time("last_used", nullable=True),
    _text("last_address"),
    Index(None, "user_id"),
)

tickets = Table(
    "tickets",
    metadata,
    _id(),
    *_device(),
    Column("digest", Digest, nullable=False, unique=True),
    Column("user_id", Id, nullable=False),
    Column("lease_id", Id, nullable=True),
    _time("created"),
    _time("expires"),
    _time("used", nullable=True),
    Index(None, "expires"),
)

device_ssh_keys = Table(
    "device_ssh_keys",
    metadata,
    _id(),
    *_device(),
    Column("fingerprint", sa.String(64), nullable=False, unique=True),
    Column("line", sa.Text, nullable=False),
    _time("created"),
    _time("expires"),
    _time("last_used", nullable=True),
    _text("last_address"),
    Index(None, "tenant_id", "device_id"),
    Index(None, "expires"),
)

recordings = Table(
    "recordings",
    metadata,
    _id(),
    _tenant(),
    # No foreign keys: the record of a recording outlives device and person.
    Column("device_id", Id, nullable=False),
    _text("device_label"),
    Column("user_id", Id, nullable=False, server_default=""),
    _text("user_name"),
    _text("account"),
    _text("address"),
    Column("lease_id", Id, nullable=False, server_default=""),
    Column("kind", sa.String(16), nullable=False),
    _text("command"),
    _text("gateway"),
    _time("began"),
    _time("expires"),
    _time("ended", nullable=True),
    _number("size"),
    _text("sha256"),
    _text("problem"),
    Index(None, "tenant_id", "id"),
    Index(None, "tenant_id", "device_id"),
    Index(None, "tenant_id", "user_id"),
    Index(None, "expires"),
)

audit = Table(
    "audit",
    metadata,
    Column("tenant_id", Id, ForeignKey("tenants.id"), primary_key=True),
    Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    _time("at"),
    Column("actor_kind", sa.String(16), nullable=False),
    Column("actor_id", Short, nullable=False),
    _text("actor_name"),
    _text("actor_address"),
    Column("action", sa.String(63), nullable=False),
    Column("object_kind", sa.String(63), nullable=False),
    Column("object_id", Short, nullable=False),
    _text("before"),
    _text("after"),
    Column("previous_hash", Digest, nullable=False),
    Column("hash", Digest, nullable=False),
    Index(None, "tenant_id", "object_id"),
    Index(None, "tenant_id", "actor_id"),
)

counters = Table(
    "counters",
    metadata,
    Column("name", sa.String(63), primary_key=True),
    _number("value"),
)

changes = Table(
    "changes",
    metadata,
    Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    _time("at"),
    Column("tenant_id", Id, nullable=False),
    Column("kind", sa.String(16), nullable=False),
    Column("object_id", Id, nullable=False),
    Index(None, "at"),
)

proxies = Table(
    "proxies",
    metadata,
    _id(),
    Column("name", Short, nullable=False),
    _text("internal_url"),
    _text("version"),
    _time("started"),
    _time("beat"),
    _flag("working", default=True),
    _number("applied"),
)

change_effects = Table(
    "change_effects",
    metadata,
    Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("proxy_id", Id, primary_key=True),
    _number("sessions"),
    _number("visits"),
    _time("at"),
    Index(None, "at"),
)
