"""The settings of api.toml: the listener, the OpenID provider, the registry and the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from tunnelmux.config.process import DrainConfig, LogConfig
from tunnelmux.config.proxies import ProxyCalls
from tunnelmux.config.registry import RegistryAddress
from tunnelmux.config.rules import (
    Address,
    InvalidSetting,
    check_network,
    is_loopback,
    parse_address,
    split_url,
)
from tunnelmux.config.secret import Secret
from tunnelmux.config.token_file import read_token_file
from tunnelmux.wire import TUNNEL_PATH

__all__ = [
    "ApiConfig",
    "ApiLimits",
    "ApiListener",
    "BrowserSessionConfig",
    "GatewayEndpoint",
    "MetricsListener",
    "OIDCConfig",
    "PairingConfig",
    "ProxyEndpointConfig",
    "RecordingsConfig",
    "RegistryConfig",
    "RoleMapping",
]

_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"}
_ALGORITHMS |= {"EdDSA", "Ed25519"}
# Signatures with the provider's private key. "none" is no signature, and HS256 uses the client's
# secret, which others may know.

_ROLES = ("viewer", "operator", "admin", "owner")


class ApiListener(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listener for browsers and programs."""

    listen: str = "127.0.0.1:3721"
    """`host:port` to listen on."""

    public_url: str
    """The URL that people type, as seen from outside: `https://tunnels.example.com`. The provider
    sends browsers back to it."""

    tls_certificate: Path | None = None
    """PEM file with the certificate chain; without it, a proxy in front speaks TLS. A renewed one
    is used within 5 s.
    """

    tls_key: Path | None = None
    """PEM file with the private key of `tls_certificate`."""

    trusted_proxies: list[str] = []
    """Addresses and networks whose `X-Forwarded-For` is trusted: the proxy in front."""

    def __post_init__(self) -> None:
        parse_address("listen", self.listen)
        parts = split_url(
            "public_url", self.public_url, ("https", "http"), "https://tunnels.example.com"
        )
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise InvalidSetting(
                "public_url", f'"{self.public_url}" has a path: end it after the host and port'
            )
        if parts.scheme == "http" and not _is_local(parts.hostname or ""):
            raise InvalidSetting(
                "public_url",
                f'"{self.public_url}" is plain HTTP, over which browsers do not keep the session '
                "cookie: write https://, with a TLS proxy in front or tls_certificate here",
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "tls_certificate" if self.tls_certificate is None else "tls_key"
            raise InvalidSetting(missing, "is missing: TLS needs both, certificate and key")
        for network in self.trusted_proxies:
            check_network("trusted_proxies", network)

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return parse_address("listen", self.listen)


class RegistryConfig(RegistryAddress, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The database of tenants, people and devices. Give exactly one of `url` and `url_file`."""

    migrate: bool | None = None
    """Whether to bring the schema up to date at the start; by default for SQLite only."""

    connections: int = 8
    """Concurrent calls to the database; up to a quarter of them look up tokens that were not shown
    before, and a quarter are for callers without any, who pair devices: so that strangers keep no
    one waiting for long."""

    timeout: float = 5.0
    """Seconds after which a call to the database is abandoned."""

    records_kept: float = 90 * 86_400.0
    """Seconds for which access tokens, invitations, install keys, credentials and leases stay in
    lists after their end: three months, to look up what was. An install key stays as long as there
    are devices that came by it."""

    audit_kept: float = 1096 * 86_400.0
    """Seconds for which an entry of the audit is kept: three years. 0: for ever. The chain of those
    that stay can still be checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_there:
            raise InvalidSetting(
                "url",
                "is missing: set url or url_file, for example "
                "sqlite:////var/lib/tunnelmux-api/registry.db",
            )
        if not 1 <= self.connections <= 64:
            raise InvalidSetting("connections", f"{self.connections} is not from 1 to 64")
        if not 0.1 <= self.timeout <= 60:
            raise InvalidSetting("timeout", f"{self.timeout:g} is not from 0.1 to 60 seconds")
        for name in ("records_kept", "audit_kept"):
            seconds = getattr(self, name)
            if not 86_400 <= seconds <= 36_525 * 86_400 and (name, seconds) != ("audit_kept", 0):
                raise InvalidSetting(
                    name, f"{seconds:g} is not from a day to 100 years, in seconds"
                )

    def require_url(self) -> Secret:
        """The URL, from its file when that is the source; raises InvalidSetting."""
        url = self.read_url()
        assert url is not None  # there is one of the two, see __post_init__
        return url


class RoleMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the table that turns a value of the provider's role claim into a role."""

    value: str
    """The value in the claim `oidc.role_claim`, for example a group's name."""

    role: Literal["viewer", "operator", "admin", "owner"]
    """The role it gives."""

    tenant: str | None = None
    """The tenant it gives the role in; without it, the tenants that the claim `oidc.tenant_claim`
    names.
    """


class OIDCConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The OpenID provider: the only way to sign in."""

    issuer: str
    """The provider's identifier (issuer): the URL below which `/.well-known/openid-configuration`
    is served.
    """

    client_id: str
    """This server's client id at the provider. Its redirect URI there is
    `PUBLIC_URL/api/auth/callback`."""

    client_secret: Secret | None = None
    """Left out for a public client, which proves itself by PKCE alone."""

    client_secret_file: Path | None = None
    """A file whose only content is the client's secret."""

    client_auth: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"
    """How the secret is sent, where there is one."""

    algorithms: list[str] = msgspec.field(default_factory=lambda: ["RS256", "ES256", "EdDSA"])
    """Signature algorithms of tokens that are accepted."""

    prompt: str | None = None
    """Sent as `prompt` when a person signs in: `login`, `consent` or `select_account`."""

    ca_file: Path | None = None
    """PEM file with the authorities that sign the provider's certificate; the system's without."""

    timeout: float = 10.0
    """Seconds that one request to the provider may take: people wait for it."""

    clock_skew: float = 30.0
    """Seconds by which the provider's clock may differ from this machine's."""

    tenant_claim: str | None = None
    """A claim of the id_token with the name, or the names, of the tenants a person belongs to."""

    role_claim: str | None = None
    """A claim of the id_token with a list of roles or groups, which `[[oidc.roles]]` maps to roles.
    A membership that came from a claim ends when the claim no longer has the value, that of the
    last owner too: the audit and the log say so, and `tunnelmux-api admin grant` names another.
    """

    roles: list[RoleMapping] = []
    """Maps the values of `role_claim` to roles."""

    def __post_init__(self) -> None:
        parts = split_url("issuer", self.issuer, ("https", "http"), "https://id.example.com")
        if parts.scheme == "http" and not _is_local(parts.hostname or ""):
            raise InvalidSetting(
                "issuer", f'"{self.issuer}" is plain HTTP: a provider on another machine needs TLS'
            )
        if not self.client_id:
            raise InvalidSetting("client_id", "is empty: write the name the provider knows")
        if self.client_secret is not None and self.client_secret_file is not None:
            raise InvalidSetting("client_secret", "and client_secret_file are both there: keep one")
        unknown = sorted(set(self.algorithms) - _ALGORITHMS)
        if unknown or not self.algorithms:
            what = f'"{unknown[0]}" is not one of' if unknown else "is empty: name some of"
            raise InvalidSetting("algorithms", f"{what} {', '.join(sorted(_ALGORITHMS))}")
        if not 0 <= self.clock_skew <= 300:
            raise InvalidSetting("clock_skew", f"{self.clock_skew:g} is not from 0 to 300 seconds")
        if not 0.1 <= self.timeout <= 60:
            raise InvalidSetting("timeout", f"{self.timeout:g} is not from 0.1 to 60 seconds")
        if self.roles and self.role_claim is None:
            raise InvalidSetting("role_claim", "is missing: [[oidc.roles]] maps its values")
        if self.tenant_claim is None:
            for mapping in self.roles:
                if mapping.tenant is None:
                    raise InvalidSetting(
                        "roles",
                        f'the row for "{mapping.value}" names no tenant: add tenant, or set '
                        "tenant_claim",
                    )

    def read_secret(self) -> Secret | None:
        """The client's secret, from its file when that is the source; raises InvalidSetting."""
        if self.client_secret_file is None:
            return self.client_secret
        return read_token_file("client_secret_file", self.client_secret_file, _check_secret)


class BrowserSessionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a browser stays signed in, and the keys behind its cookie."""

    key_file: Path
    """A file with one key a line, `ID KEY`, made by `tunnelmux-api keys new`. The first signs
    cookies and encrypts tokens; the others are still accepted. Remove the last some days after a
    new first was added.
    """

    idle: float = 8 * 3600.0
    """Seconds without a request after which a person has to sign in again: a working day."""

    lifetime: float = 7 * 86_400.0
    """Seconds after which a person has to sign in again in any case."""

    terminal_lifetime: float = 30 * 86_400.0
    """Seconds after which a terminal that was signed in with `tunnelmux login` has to be signed in
    again: for that long a lost laptop has access, unless its token is revoked."""

    def __post_init__(self) -> None:
        if not 60 <= self.idle <= self.lifetime:
            raise InvalidSetting("idle", f"{self.idle:g} is not from 60 s to lifetime")
        if not self.lifetime <= 90 * 86_400:
            raise InvalidSetting("lifetime", f"{self.lifetime:g} is more than 90 days")
        if not 60 <= self.terminal_lifetime <= 366 * 86_400:
            raise InvalidSetting(
                "terminal_lifetime", f"{self.terminal_lifetime:g} is not from 60 s to 366 days"
            )


class ProxyEndpointConfig(ProxyCalls, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to call the proxies' internal APIs. Their addresses are in the registry: a proxy with
    `[registry]` and `[internal]` writes its own there.
    """

    forward_timeout: float = 60.0
    """Seconds within which a device's service must begin its answer to a forwarded request."""

    tunnel_urls: list[str] = msgspec.field(default_factory=list)
    """Tunnel endpoints that pairing gives to agents, best first
    (`wss://proxy.example.com:3800/tunnel/connect`).
    """

    tunnel_pin: str | None = None
    """`sha256:` and the fingerprint of the proxies' certificate, where it is self-signed: pairing
    gives it to agents as their `pin`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for url in self.tunnel_urls:
            split_url(
                "tunnel_urls", url, ("ws", "wss"), f"wss://proxy.example.com:3800{TUNNEL_PATH}"
            )


class PairingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a pairing code is valid, and how many wrong guesses are allowed."""

    lifetime: float = 600.0
    """Seconds for which a code is valid: time to walk to the device and type eight letters."""

    max_guesses: int = 5
    """Wrong second halves for one first half, after which the codes with that first half are void
    (RFC 8628 section 5.1: five guesses at 20^8 are 2^-32)."""

    address_budget: int = 20
    """Wrong codes from one address, of IPv6 from one /64, within `budget_period`; more are refused
    unchecked. A /56 has 4 times as many, a /48 16 times, a provider (/16, of IPv6 /32) 256 times,
    and a person who has signed in as many from anywhere. As many requests for a code may come from
    one address in 2 s, and 5 times as many wait; then the oldest gives way that no person has
    looked up.
    """

    tenant_budget: int = 100
    """Wrong codes by people of one tenant within `budget_period`."""

    budget_period: float = 600.0
    """Seconds after which wrong codes are forgotten."""

    max_waiting: int = 1000
    """Devices of all tenants that wait with a code on display; so many devices of each tenant may
    wait that have shown an install key, and so many terminals. Asking takes little or nothing: when
    all places are taken, the oldest of the block of addresses (/24, of IPv6 /48) with the most
    gives way.
    """

    key_budget: int = 1000
    """Uses of one install key within `budget_period`, half of them at most from one block of
    addresses (/24, of IPv6 /48); more get 429, and the audit has `install_key.rest`. A workshop
    pairs fewer, and a thief of the key does not use it up before it is revoked.
    """

    def __post_init__(self) -> None:
        for name in ("lifetime", "budget_period"):
            if not 10 <= getattr(self, name) <= 86_400:
                raise InvalidSetting(name, f"{getattr(self, name):g} is not from 10 s to a day")
        for name, most in (
            ("max_guesses", 20),
            ("address_budget", 10_000),
            ("tenant_budget", 10_000),
            ("max_waiting", 10_000),
            ("key_budget", 1_000_000),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise InvalidSetting(name, f"{getattr(self, name)} is not from 1 to {most}")


class ApiLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on what callers may use."""

    max_body: int = 1_048_576
    """Bytes of a request's body, and of one message of a WebSocket; bodies that are streamed to a
    device do not count."""

    body_stall: float = 30.0
    """Seconds in which at least one byte of a body must come; then 408."""

    max_connections: int = 4096
    """Connections at once, and never more than half of the descriptors that the process may have
    (LimitNOFILE). With more, the oldest on which no caller has proved who they are gives way."""

    max_connections_per_address: int = 256
    """Connections at once from one address, of IPv6 from one /64; more are reset. Room for an
    office behind one address, but not all places for one client. trusted_proxies are exempt.
    """

    max_calls_per_person: int = 8
    """Calls of one person that are worked on at once, and of one address of strangers; more wait
    their turn, 30 s at most. Four times as many of a tenant. A browser makes six at once. Commands,
    forwarded requests and streams of events have limits of their own.
    """
    max_changes_per_minute: int = 600
    """Calls of one person in a minute that may change something; more get 429. Each writes a record
    that stays. Ten a second are more than a script needs that goes through a fleet.
    """
    max_devices_per_tenant: int = 100_000
    """Devices of one tenant, however they come in: so that one account or install key does not fill
    the database of all."""

    max_access_tokens_per_person: int = 200
    """Valid access tokens of one person in one tenant: one for each program and machine of theirs.
    """
    max_ssh_keys_per_person: int = 50
    """SSH keys of one person: the gateway looks through all of them."""

    max_leases_per_person: int = 50
    """Leases of one device that one person asked for and that are not over."""

    max_leases_per_device: int = 500
    """The same of all people: each proxy keeps all of them, and tells an agent that connects."""

    max_links_per_device: int = 1000
    """Links to the services of one device that are valid; a program that makes one for each visit
    must revoke some."""

    max_pairing_codes_per_tenant: int = 1000
    """Codes made in the console that can be used: each makes it a little likelier that a guess is
    right."""

    max_install_keys_per_tenant: int = 200
    """Install keys that can be used: one for each batch of devices."""

    max_invitations_per_tenant: int = 1000
    """Invitations that can be accepted: a large organisation on its first day."""

    max_events: int = 256
    """Callers that follow events at once: each holds a connection. A tenant other than the default
    one takes three quarters of them at most."""

    max_events_per_person: int = 32
    """How many of these one person may have, in browsers and by access tokens together: so that one
    account does not take all of them. Each open page of the console is one."""

    max_terminals: int = 64
    """Terminals in browsers at once: each is an SSH connection to the gateway, half a megabyte
    and little processor time. A tenant other than the default one has three quarters at most."""
    max_terminals_per_person: int = 16
    """How many of these one person may have: so that one account does not take all of them."""

    def __post_init__(self) -> None:
        for name in ("max_connections", "max_connections_per_address", "max_devices_per_tenant"):
            if not 1 <= getattr(self, name) <= 1_000_000:
                raise InvalidSetting(name, f"{getattr(self, name)} is not from 1 to 1000000")
        for name in (
            *("max_events", "max_events_per_person", "max_access_tokens_per_person"),
            *("max_ssh_keys_per_person", "max_leases_per_person", "max_leases_per_device"),
            *("max_links_per_device", "max_pairing_codes_per_tenant"),
            *("max_install_keys_per_tenant", "max_invitations_per_tenant"),
        ):
            if not 1 <= getattr(self, name) <= 100_000:
                raise InvalidSetting(name, f"{getattr(self, name)} is not from 1 to 100000")
        for name in ("max_terminals", "max_terminals_per_person", "max_calls_per_person"):
            if not 1 <= getattr(self, name) <= 10_000:
                raise InvalidSetting(name, f"{getattr(self, name)} is not from 1 to 10000")
        if not 1 <= self.max_changes_per_minute <= 1_000_000:
            raise InvalidSetting(
                "max_changes_per_minute",
                f"{self.max_changes_per_minute} is not from 1 to 1000000",
            )
        if not 1024 <= self.max_body <= 2**30:
            raise InvalidSetting("max_body", f"{self.max_body} is not from 1024 to {2**30}")
        if not 0.1 <= self.body_stall <= 3600:
            raise InvalidSetting("body_stall", f"{self.body_stall:g} is not from 0.1 to 3600 s")


class RecordingsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where recordings of SSH sessions are."""

    folder: Path | None = None
    """The folder that tunnelmux-gateway writes (`recording.folder`), on this machine or mounted
    here, readable for this program. Without it recordings are listed, but cannot be played."""


class MetricsListener(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Prometheus reads `GET /metrics`. Without this table there is no such listener. It asks
    for no credential: restrict access to it by the network.
    """

    listen: str = "127.0.0.1:3722"
    """`host:port` to listen on."""

    def __post_init__(self) -> None:
        parse_address("listen", self.listen)

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return parse_address("listen", self.listen)


class GatewayEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach tunnelmux-gateway, for the console's SSH commands and terminals."""

    address: str | None = None
    """`host:port` that people's `ssh` connects to, as seen from outside. With it, the page of a
    device has the plain `ssh` command."""

    host_key_file: Path | None = None
    """The public half of the gateway's host key, `ssh_host_ed25519_key.pub` in its `state_dir`.
    With it, the console has terminals in the browser; it accepts no gateway with another key."""

    connect: str | None = None
    """`host:port` at which this program reaches the gateway, where that is not `address`."""

    def __post_init__(self) -> None:
        for name in ("address", "connect"):
            value = getattr(self, name)
            if value is not None:
                parse_address(name, value)
        if self.host_key_file is not None and self.address is None and self.connect is None:
            raise InvalidSetting(
                "connect", "is missing: set the address of the gateway with this host key"
            )

    @property
    def inner_address(self) -> Address | None:
        """Where this program connects."""
        where = self.connect or self.address
        return parse_address("connect", where) if where is not None else None

    @property
    def public_address(self) -> Address | None:
        """`address`, parsed."""
        return parse_address("address", self.address) if self.address is not None else None


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of api.toml."""

    api: ApiListener
    """The listener."""

    registry: RegistryConfig
    """The database."""

    oidc: OIDCConfig
    """The OpenID provider."""

    browser_sessions: BrowserSessionConfig
    """How long people stay signed in."""

    proxies: ProxyEndpointConfig = msgspec.field(default_factory=ProxyEndpointConfig)
    """How to call the proxies."""

    gateway: GatewayEndpoint = msgspec.field(default_factory=GatewayEndpoint)
    """The SSH gateway."""

    metrics: MetricsListener | None = None
    """Where Prometheus reads metrics."""

    recordings: RecordingsConfig = msgspec.field(default_factory=RecordingsConfig)
    """Where recordings of SSH sessions are."""

    pairing: PairingConfig = msgspec.field(default_factory=PairingConfig)
    """How devices are paired by codes."""

    drain: DrainConfig = msgspec.field(default_factory=DrainConfig)
    """How long SIGTERM waits for requests in progress."""

    log: LogConfig = msgspec.field(default_factory=LogConfig)
    """What is logged, and how."""

    limits: ApiLimits = msgspec.field(default_factory=ApiLimits)
    """Limits on what callers may use."""


def _is_local(host: str) -> bool:
    return is_loopback(host) or host.endswith(".localhost")


def _check_secret(key: str, text: str) -> None:
    if not text or not text.isascii() or not text.isprintable():
        raise InvalidSetting(key, "must hold one line of printable ASCII characters")
