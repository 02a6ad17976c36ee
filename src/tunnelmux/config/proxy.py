"""The settings of proxy.toml: listeners, devices, access and limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from tunnelmux.config.access import AccessConfig, check_address_lists
from tunnelmux.config.cluster import ClusterConfig
from tunnelmux.config.groups import GroupConfig, read_label
from tunnelmux.config.process import AuditConfig, DrainConfig, LimitsConfig, LogConfig, OtelConfig
from tunnelmux.config.registry import RegistryAddress
from tunnelmux.config.rules import (
    DOMAIN_LABEL,
    Address,
    InvalidSetting,
    check_api_key,
    check_fingerprint,
    check_label,
    check_network,
    check_token,
    check_unique,
    is_loopback,
    parse_address,
    split_url,
)
from tunnelmux.config.secret import Secret, hash_token
from tunnelmux.config.token_file import read_token_file
from tunnelmux.config.workers import ProcessConfig
from tunnelmux.wire import TUNNEL_PATH

__all__ = [
    "DeviceConfig",
    "HttpIngress",
    "Ingress",
    "InternalListener",
    "ProxyConfig",
    "RegistrySource",
    "SocketIOAgent",
    "SocketIOListener",
    "TcpIngress",
    "TunnelListener",
]


_AGENT_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_FIELD_NAME = re.compile(r"[A-Za-z0-9-]+")
_PATH = re.compile(r"/[A-Za-z0-9\-._~!$&'()*+,;=:@%/]*")  # RFC 3986 section 3.3


def _check_tls_pair(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        missing = "tls_certificate" if certificate is None else "tls_key"
        raise InvalidSetting(missing, "is missing: TLS needs tls_certificate and tls_key together")


class TunnelListener(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listener for agents."""

    listen: str = "0.0.0.0:3800"
    """`host:port` that agents dial."""

    path: str = TUNNEL_PATH
    """The path of the WebSocket endpoint."""

    trusted_proxies: list[str] = []
    """Addresses and networks of load balancers in front of this listener, so that many agents have
    one address: `max_arrivals_per_address` does not apply to them.
    """

    allow_from: list[str] = []
    """Addresses and networks from which agents may connect; with it, all others are refused."""

    deny_from: list[str] = []
    """Addresses and networks that are refused, even where `allow_from` names them."""

    tls_certificate: Path | None = None
    """PEM file with the certificate chain; with it, agents dial `wss://`."""

    tls_key: Path | None = None
    """PEM file with the private key of `tls_certificate`."""

    state_dir: Path | None = None
    """The folder that keeps, over a restart, which devices were online; default: systemd's
    StateDirectory, or the user's state directory.
    """

    def __post_init__(self) -> None:
        parse_address("listen", self.listen)
        if not _PATH.fullmatch(self.path):
            raise InvalidSetting(
                "path", f'"{self.path}" is not a path: write it like "{TUNNEL_PATH}"'
            )
        for network in self.trusted_proxies:
            check_network("trusted_proxies", network)
        check_address_lists(self.allow_from, self.deny_from)
        _check_tls_pair(self.tls_certificate, self.tls_key)

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return parse_address("listen", self.listen)


class InternalListener(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listener of the internal API, for the back end. Without this table there is none.

    Without `secret`, `secret_file` and `client_ca`, only programs on this machine can call: the
    proxy refuses to listen on any but a loopback address then. With both a secret and `client_ca`,
    a caller needs both.
    """

    listen: str = "127.0.0.1:3801"
    """`host:port` that the back end dials."""

    secret: Secret | None = None
    """What callers send as `Authorization: Bearer SECRET`."""

    secret_file: Path | None = None
    """A file whose only content is the secret."""

    tls_certificate: Path | None = None
    """PEM file with the certificate chain; with it, callers use `https://`."""

    tls_key: Path | None = None
    """PEM file with the private key of `tls_certificate`."""

    client_ca: Path | None = None
    """PEM file with the authorities that sign callers' certificates; with it, a caller needs one
    (mutual TLS)."""

    def __post_init__(self) -> None:
        parse_address("listen", self.listen)
        if self.secret is not None and self.secret_file is not None:
            raise InvalidSetting("secret", "and secret_file are both there: keep one of them")
        if self.secret is not None:
            if not self.secret:
                raise InvalidSetting("secret", "is empty: make one with `openssl rand -hex 32`")
            check_token("secret", self.secret.reveal())
        _check_tls_pair(self.tls_certificate, self.tls_key)
        if self.client_ca is not None and self.tls_certificate is None:
            raise InvalidSetting(
                "client_ca", "has no effect without TLS: set tls_certificate and tls_key as well"
            )
        if not self.asks_for_credentials and not is_loopback(self.address.host):
            raise InvalidSetting(
                "listen",
                f'"{self.listen}" can be reached from other machines, and nothing says who may '
                "call: set secret, secret_file or client_ca, or listen on 127.0.0.1",
            )

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return parse_address("listen", self.listen)

    @property
    def asks_for_credentials(self) -> bool:
        """Whether callers must authenticate."""
        return any((self.secret, self.secret_file, self.client_ca))

    def read_secret(self) -> Secret | None:
        """The secret, from its file when that is the source; raises ConfigError."""
        if self.secret_file is None:
            return self.secret
        return read_token_file("secret_file", self.secret_file)


class CertificateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One more certificate for visitors, used for the names in it (SNI)."""

    certificate: Path
    """PEM file with the certificate chain."""

    key: Path
    """PEM file with the private key of `certificate`."""


class HttpIngress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listener for HTTP visitors. Without this table there is none."""

    listen: str
    """`host:port` that visitors dial."""

    domain: str = "localhost"
    """The domain under which every device is one label: `dev1.localhost`."""

    public_url: str | None = None
    """The URL of `domain` for visitors: `https://tunnel.example.com`. Links to services begin with
    it. Default: from `listen` and TLS; behind trusted proxies, `https://` and the domain.
    """

    trusted_proxies: list[str] = []
    """Addresses and networks whose `Forwarded`, `X-Forwarded-*` and `X-Real-IP` are trusted."""

    trusted_fields: list[str] = []
    """Other fields about a visitor that trusted proxies may set, such as `Remote-User`. All other
    fields of this kind are dropped, because a proxy that does not set them passes on the visitor's
    own.
    """

    proxies_keep_logins: bool = False
    """Whether the trusted proxies keep a connection for one visitor once a login by NTLM or
    Negotiate began on it, as HAProxy does. False: such a login ends with its request if the proxy
    names the request's visitor. Caddy and nginx send requests of several visitors on one
    connection, and all of them would be logged in as the first.
    """

    parent_cookies: bool = False
    """Whether a device may set or clear cookies for the parent domain, which all devices share.
    False: such a cookie is limited to the device's host, and `Clear-Site-Data` clears none.
    """

    tls_certificate: Path | None = None
    """PEM file with the certificate chain for `*.domain`; with it, visitors use `https://`. It and
    the others are reloaded when their files change."""

    tls_key: Path | None = None
    """PEM file with the private key of `tls_certificate`."""

    tls_min_version: Literal["1.2", "1.3"] = "1.2"
    """The lowest version of TLS for visitors."""

    certificates: list[CertificateConfig] = []
    """Certificates for other names; a visitor who names none of them (SNI) gets `tls_certificate`.
    """

    def __post_init__(self) -> None:
        parse_address("listen", self.listen)
        for label in self.domain.split("."):
            if not DOMAIN_LABEL.fullmatch(label):
                raise InvalidSetting(
                    "domain",
                    f'"{self.domain}" is not a domain name: write it like "tunnel.example.com", '
                    "in lower case, with no port, no dot at either end and no wildcard",
                )
        if self.public_url is not None:
            parts = split_url(
                "public_url", self.public_url, ("https", "http"), f"https://{self.domain}"
            )
            if parts.path not in ("", "/") or parts.query or parts.fragment:
                raise InvalidSetting(
                    "public_url", f'"{self.public_url}" has a path: end it after host and port'
                )
        for network in self.trusted_proxies:
            check_network("trusted_proxies", network)
        for name in self.trusted_fields:
            if not _FIELD_NAME.fullmatch(name):
                raise InvalidSetting(
                    "trusted_fields",
                    f'{name!r} is not a field\'s name: write it like "Remote-User"',
                )
        _check_tls_pair(self.tls_certificate, self.tls_key)
        if self.certificates and self.tls_certificate is None:
            raise InvalidSetting("tls_certificate", "is missing: visitors without SNI get this one")

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return parse_address("listen", self.listen)

    def url_of(self, port: int) -> str:
        """The URL of `domain` for visitors, when this listens on that port."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        if self.tls_certificate is None and self.trusted_proxies:
            return f"https://{self.domain}"
        scheme, usual = ("http", 80) if self.tls_certificate is None else ("https", 443)
        return f"{scheme}://{self.domain}" + (f":{port}" if port != usual else "")


class TcpIngress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One public TCP port that leads to one service of one device."""

    listen: str
    """`host:port` that visitors dial."""

    device: str
    """The device it leads to, one of `[[devices]]`."""

    service: str
    """The service on that device, as its agent.toml names it."""

    public: bool = False
    """Whether anyone who reaches the port may connect. Beyond loopback this or `allow_from` is
    needed: a TCP port asks for no credential.
    """

    allow_from: list[str] = []
    """Addresses and networks of visitors; with it, all others are refused."""

    deny_from: list[str] = []
    """Addresses and networks that are refused, even where `allow_from` names them."""

    def __post_init__(self) -> None:
        parse_address("listen", self.listen)
        check_address_lists(self.allow_from, self.deny_from)
        if not (self.public or self.allow_from or is_loopback(self.address.host)):
            raise InvalidSetting(
                "listen",
                f'"{self.listen}" can be reached from other machines, and nothing says who may '
                'connect: add allow_from = ["192.0.2.0/24"] with their networks, or public = true, '
                "or listen on 127.0.0.1",
            )
        # `dev1--acme` is a tenant's device, which only a registry knows.
        for part in self.device.split("--", 1):
            check_label("device", part)
        check_label("service", self.service)

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return parse_address("listen", self.listen)


class Ingress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listeners for visitors."""

    http: HttpIngress | None = None
    """The HTTP listener, or None."""

    tcp: list[TcpIngress] = []
    """The TCP ports."""


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device that may connect, and its token."""

    name: str
    """Its name, and its label in host names: a-z, 0-9 and single `-`."""

    token: Secret | None = None
    """The token its agent sends. Give exactly one of the three token keys."""

    token_sha256: str | None = None
    """The SHA-256 of the token in hexadecimal, so that this file holds no secret."""

    token_file: Path | None = None
    """A file whose only content is the token."""

    enabled: bool = True
    """False refuses the device with 403, and keeps its entry."""

    labels: list[str] = []
    """Labels like `role=shop`, by which `[[groups]]` can name it."""

    def __post_init__(self) -> None:
        check_label("name", self.name)
        for label in self.labels:
            read_label("labels", label)
        given = [self.token, self.token_sha256, self.token_file]
        if sum(value is not None for value in given) != 1:
            raise InvalidSetting(
                "token",
                f'device "{self.name}" needs exactly one of token, token_sha256 and token_file',
            )
        if self.token is not None:
            check_token("token", self.token.reveal())
        if self.token_sha256 is not None:
            check_fingerprint("token_sha256", self.token_sha256)

    def read_token_hash(self) -> str:
        """The token's SHA-256 in hexadecimal; reads `token_file` when that is the source.

        Raises ConfigError when the file cannot be read or holds no token.
        """
        if self.token_sha256 is not None:
            return self.token_sha256
        if self.token is not None:
            return hash_token(self.token)
        assert self.token_file is not None  # one of the three is set, see __post_init__
        return hash_token(read_token_file("token_file", self.token_file))


class RegistrySource(RegistryAddress, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The registry with further devices; for a name that is in both, this file takes precedence.
    Without `url` and `url_file` there is none. A reload does not change it.
    """

    migrate: bool = True
    """False: the tables of a SQLite file are neither made nor upgraded by this program. Those of
    PostgreSQL never are."""

    name: str | None = None
    """The name of this proxy in the registry, unique there; by default the name of the machine."""

    internal_url: str | None = None
    """The URL at which other programs call this proxy's internal API; by default that of
    [internal].
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.internal_url is not None:
            split_url("internal_url", self.internal_url, ("http", "https"), "http://10.0.0.7:3801")


class SocketIOAgent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One agent that may connect with Socket.IO, and its key."""

    proxy_id: str
    """The name it sends (its `proxyId`); commands address it by this name."""

    api_key: Secret | None = None
    """The key it sends. Give exactly one of `api_key` and `api_key_sha256`."""

    api_key_sha256: str | None = None
    """The SHA-256 of the key in hexadecimal, so that this file holds no secret."""

    group: str | None = None
    """A group of agents: a command for the group goes to the least busy of them."""

    def __post_init__(self) -> None:
        for key, name in (("proxy_id", self.proxy_id), ("group", self.group)):
            if name is not None and not _AGENT_NAME.fullmatch(name):
                raise InvalidSetting(
                    key, f'"{name}" cannot be a name: use 1 to 128 of a-z, A-Z, 0-9, ".", "_", "-"'
                )
        if (self.api_key is None) == (self.api_key_sha256 is None):
            raise InvalidSetting(
                "api_key", f'"{self.proxy_id}" needs exactly one of api_key and api_key_sha256'
            )
        if self.api_key is not None:
            check_api_key("api_key", self.api_key.reveal())
        if self.api_key_sha256 is not None:
            check_fingerprint("api_key_sha256", self.api_key_sha256)

    @property
    def key_hash(self) -> str:
        """The key's SHA-256 in hexadecimal."""
        if self.api_key_sha256 is not None:
            return self.api_key_sha256
        assert self.api_key is not None  # one of the two is set, see __post_init__
        return hash_token(self.api_key)


class SocketIOListener(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listener for the relay service's agents, which use Socket.IO."""

    listen: str
    """`host:port` that they dial."""

    path: str = "/socket.io/"
    """The path of the Socket.IO endpoint."""

    trusted_proxies: list[str] = []
    """Addresses and networks of load balancers in front of this listener, whose `X-Forwarded-For`
    is trusted. Without this, all agents behind one count as one address.
    """

    allow_eio3: bool = False
    """Accept agents that speak Engine.IO 3, as clients of Socket.IO 2 and the Go library
    googollee/go-socket.io do. Off by default, as in socket.io itself."""

    allow_from: list[str] = []
    """Addresses and networks from which agents may connect; with it, all others are refused."""

    deny_from: list[str] = []
    """Addresses and networks that are refused, even where `allow_from` names them."""

    tls_certificate: Path | None = None
    """PEM file with the certificate chain; with it, agents dial `https://`."""

    tls_key: Path | None = None
    """PEM file with the private key of `tls_certificate`."""

    agents: list[SocketIOAgent] = []
    """The agents that may connect."""

    def __post_init__(self) -> None:
        parse_address("listen", self.listen)
        if not _PATH.fullmatch(self.path):
            raise InvalidSetting(
                "path", f'"{self.path}" is not a path: write it like "/socket.io/"'
            )
        for network in self.trusted_proxies:
            check_network("trusted_proxies", network)
        check_address_lists(self.allow_from, self.deny_from)
        _check_tls_pair(self.tls_certificate, self.tls_key)
        check_unique("agents.proxy_id", [agent.proxy_id for agent in self.agents])

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return parse_address("listen", self.listen)


class ProxyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of proxy.toml."""

    proxy: ProcessConfig = ProcessConfig()
    tunnel: TunnelListener = TunnelListener()
    internal: InternalListener | None = None
    ingress: Ingress = Ingress()
    access: AccessConfig = AccessConfig()
    devices: list[DeviceConfig] = []
    groups: list[GroupConfig] = []
    registry: RegistrySource = RegistrySource()
    cluster: ClusterConfig | None = None
    socketio: SocketIOListener | None = None
    limits: LimitsConfig = LimitsConfig()
    audit: AuditConfig = AuditConfig()
    drain: DrainConfig = DrainConfig()
    log: LogConfig = LogConfig()
    otel: OtelConfig = OtelConfig()

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        known = {*names, *self._check_groups(names)}
        check_unique("devices.name", names)
        for index, ingress in enumerate(self.ingress.tcp):
            if ingress.device not in known and not self.registry.is_there:
                raise InvalidSetting(
                    f"ingress.tcp[{index}].device",
                    f'there is no device "{ingress.device}": add it under [[devices]], or name '
                    f"one of {', '.join(names) or 'them (there are none yet)'}",
                )
        self._check_listeners()
        self._check_access(names)
        self._check_agent_names(names)

    def read_token_hashes(self) -> dict[str, DeviceConfig]:
        """Every device under the SHA-256 of its token, in hexadecimal; reads the token files.

        Raises ConfigError when a file cannot be read, or two devices share a token: a token is
        all that tells devices apart.
        """
        devices: dict[str, DeviceConfig] = {}
        for index, device in enumerate(self.devices):
            try:
                token_hash = device.read_token_hash()
            except InvalidSetting as error:
                raise InvalidSetting(f"devices[{index}].{error.key}", error.problem) from None
            if token_hash in devices:
                raise InvalidSetting(
                    f"devices[{index}].token",
                    f'"{device.name}" has the same token as "{devices[token_hash].name}": give '
                    "each device a token of its own",
                )
            devices[token_hash] = device
        return devices

    def _check_access(self, devices: list[str]) -> None:
        """Check that an ingress beyond loopback has access rules, and that no rule needs a missing
        registry.
        """
        rules = {f"access.rules[{index}]": rule for index, rule in enumerate(self.access.rules)}
        for path, rule in {"access": self.access, **rules}.items():
            if rule.needs_registry and not self.registry.is_there:
                key = "assertion" if rule.assertion else "let_in"
                raise InvalidSetting(
                    f"{path}.{key}",
                    "needs people and keys that only a registry has: set [registry] url to the "
                    'database of tunnelmux-api, or use "basic" or "token"',
                )
        http = self.ingress.http
        if http is None or is_loopback(http.address.host) or self.access.let_in:
            return
        ruled = {rule.device for rule in self.access.rules if rule.service is None}
        left = [name for name in devices if name not in ruled]
        if left or not self.registry.is_there:
            who = f"device {left[0]}" if left else "its devices"
            raise InvalidSetting(
                "access.let_in",
                f'ingress.http.listen = "{http.listen}" can be reached from other machines, and '
                f"nothing says who may visit {who}: write under [access] let_in = "
                '["basic"] with users (tunnelmux-proxy password NAME makes them), ["login"] with '
                'a registry, or ["public"] for all; or listen on 127.0.0.1',
            )

    def _check_groups(self, devices: list[str]) -> list[str]:
        """Check groups against the devices. Returns their names."""
        names = [group.name for group in self.groups]
        check_unique("groups.name", names)
        for index, group in enumerate(self.groups):
            if group.name in devices:
                raise InvalidSetting(
                    f"groups[{index}].name",
                    f'"{group.name}" is also a device: give the group another name',
                )
            unknown = [name for name in group.devices if name not in devices]
            if unknown and not self.registry.is_there:
                raise InvalidSetting(
                    f"groups[{index}].devices",
                    f'there is no device "{unknown[0]}": add it under [[devices]]',
                )
        return names

    def _check_agent_names(self, devices: list[str]) -> None:
        """Check that names of devices, Socket.IO agents and groups differ: commands use only the
        name.
        """
        agents = self.socketio.agents if self.socketio is not None else []
        ids = {agent.proxy_id for agent in agents}
        for index, agent in enumerate(agents):
            if agent.proxy_id in devices:
                raise InvalidSetting(
                    f"socketio.agents[{index}].proxy_id",
                    f'"{agent.proxy_id}" is also a device: give one of them another name',
                )
            if agent.group in ids or agent.group in devices:
                raise InvalidSetting(
                    f"socketio.agents[{index}].group",
                    f'"{agent.group}" is also a device or an agent: give the group another name',
                )

    def _check_listeners(self) -> None:
        listeners = {"tunnel.listen": self.tunnel.address}
        if self.internal is not None:
            listeners["internal.listen"] = self.internal.address
        if self.ingress.http is not None:
            listeners["ingress.http.listen"] = self.ingress.http.address
        if self.cluster is not None:
            listeners["cluster.listen"] = self.cluster.listen_address
        if self.socketio is not None:
            listeners["socketio.listen"] = self.socketio.address
        for index, ingress in enumerate(self.ingress.tcp):
            listeners[f"ingress.tcp[{index}].listen"] = ingress.address
        taken: dict[Address, str] = {}
        for key, address in listeners.items():
            if address.port and address in taken:
                raise InvalidSetting(
                    key, f"{address} is also {taken[address]}: give each listener its own port"
                )
            taken[address] = key
