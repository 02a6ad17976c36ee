"""The settings of gateway.toml: the SSH listener, rights, recordings and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from tunnelmux.config.api import RegistryConfig
from tunnelmux.config.process import DrainConfig, LogConfig
from tunnelmux.config.proxies import ProxyCalls
from tunnelmux.config.rules import (
    Address,
    InvalidSetting,
    check_network,
    parse_address,
    parse_pin,
    split_url,
)
from tunnelmux.wire import TUNNEL_PATH

__all__ = [
    "AccessConfig",
    "GatewayConfig",
    "GatewayLimits",
    "GatewayListener",
    "RecordingConfig",
    "TunnelsConfig",
]

_RIGHTS = ("shell", "exec", "sftp", "forward", "agent", "x11")


class GatewayListener(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listener for SSH clients."""

    listen: str = "127.0.0.1:2222"
    """`host:port` to listen on."""

    state_dir: Path
    """The folder for this program's state: its host key, made at the first start, and recordings.
    Two gateways behind one name need the same host key.
    """

    host_certificate: Path | None = None
    """A certificate for the host key, by an authority that people's known_hosts trust."""

    allow: list[str] = []
    """Addresses and networks from which connections are accepted; empty for all."""

    trusted_proxies: list[str] = []
    """Addresses and networks of load balancers in front, which must begin each connection with a
    head of the PROXY protocol (version 1 or 2). The address in it is the person's.
    """

    console_url: str | None = None
    """The URL where people register their SSH keys; shown to a person whose key is not known."""

    def __post_init__(self) -> None:
        parse_address("listen", self.listen)
        for network in self.allow:
            check_network("allow", network)
        for network in self.trusted_proxies:
            check_network("trusted_proxies", network)
        if self.console_url is not None:
            split_url(
                "console_url", self.console_url, ("https", "http"), "https://tunnels.example.com"
            )

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return parse_address("listen", self.listen)


class AccessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What people may do without a lease, and how the gateway logs in to devices."""

    standing_rights: list[str] = []
    """What operators, admins and owners of a tenant may do on its devices without a lease: `shell`,
    `exec`, `sftp`, `forward`, `agent`, `x11`. Empty: everyone needs a lease."""

    authority_file: Path | None = None
    """The key behind the tenants' authorities, made by `tunnelmux-gateway keys new-authority`. With
    it the gateway logs in to devices by short-lived certificates; `tunnelmux-gateway authority`
    prints the key that a device must trust. Without it, people log in with their own forwarded SSH
    agents.
    """

    ssh_service: str = "ssh"
    """The name of the service through which a device offers its sshd."""

    accounts: list[str] = []
    """Accounts on devices that people may log in as; empty for all. The device's sshd decides too.
    """

    def __post_init__(self) -> None:
        for right in self.standing_rights:
            if right not in _RIGHTS:
                raise InvalidSetting(
                    "standing_rights", f'"{right}" is not one of {", ".join(_RIGHTS)}'
                )


class RecordingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How sessions are recorded: asciicast version 2, output and terminal sizes, no input."""

    folder: Path | None = None
    """Where recordings go; by default `recordings` in gateway.state_dir."""

    max_bytes: int = 64 * 1024 * 1024
    """Bytes of one recording: a day of busy typing. A session that reaches it is treated as
    `on_failure` says.
    """

    max_bytes_per_tenant: int = 10 * 1024**3
    """Bytes of all recordings of one tenant together: 160 of the largest, or thousands of usual
    sessions, and a part of most disks. Sessions of a tenant that reaches it are treated as
    `on_failure` says, and it begins no more; other tenants do not notice. The files are counted
    once an hour, so that it may be as much more as other gateways with this folder write meanwhile.
    """

    min_free: int = 256 * 1024**2
    """Free bytes of the disk below which no recorded session begins, so that those that are going
    on can be recorded to their end."""

    keep: float = 90 * 86_400.0
    """Seconds for which a recording is kept."""

    on_failure: Literal["stop", "continue"] = "stop"
    """When a recording cannot go on (a full disk, a limit): `stop` ends the session, so that
    nothing goes unrecorded; `continue` lets it go on, and the audit says so."""

    def __post_init__(self) -> None:
        if not 65_536 <= self.max_bytes <= 2**40:
            raise InvalidSetting("max_bytes", f"{self.max_bytes} is not from 65536 to {2**40}")
        for name, least in (("max_bytes_per_tenant", 65_536), ("min_free", 0)):
            if not least <= getattr(self, name) <= 2**50:
                raise InvalidSetting(name, f"{getattr(self, name)} is not from {least} to {2**50}")
        if not 3600 <= self.keep <= 3650 * 86_400:
            raise InvalidSetting("keep", f"{self.keep:g} is not from an hour to ten years")


class TunnelsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the gateway dials the proxy on behalf of devices that have only OpenSSH."""

    url: str | None = None
    """The proxy's tunnel endpoint, as in agent.toml. Without it no device connects by SSH."""

    ca_file: Path | None = None
    """PEM file of the authority that signed the proxy's certificate; default: the system's."""

    pin: str | None = None
    """The SHA-256 of the proxy's certificate: accept that one and no other."""

    def __post_init__(self) -> None:
        if self.url is None:
            for name in ("ca_file", "pin"):
                if getattr(self, name) is not None:
                    raise InvalidSetting("url", f"is missing: {name} is of no use without it")
            return
        split_url("url", self.url, ("ws", "wss"), f"wss://proxy.example.com:3800{TUNNEL_PATH}")
        if self.pin is not None:
            parse_pin("pin", self.pin)


class GatewayLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on what callers may use."""

    max_connections: int = 1024
    """Connections at once; one with a session costs some 100 kB."""

    max_connections_per_address: int = 64
    """Connections at once from one address, of IPv6 from one /64."""

    login_timeout: float = 120.0
    """Seconds from the connection to a log-in, as OpenSSH's LoginGraceTime."""

    max_sessions: int = 10
    """Sessions and forwards at once on one connection, as OpenSSH's MaxSessions."""

    max_tries: int = 20
    """Keys and other credentials that one connection may try: an SSH agent full of keys has as
    many.
    """

    max_failures: int = 30
    """Failed log-ins of one address within `failure_period`; then its connections wait for a turn:
    ten in a second go on, and who has the right key gets in.
    """

    failure_period: float = 600.0
    """Seconds after which failed log-ins are forgotten."""

    max_file_lines: int = 1000
    """Operations on files of one sftp session that the log and the record of the lease list, some
    100 bytes each: more say nothing to a reader. The recording of the session lists all.
    """

    connect_timeout: float = 20.0
    """Seconds for connecting to a device and logging in to its sshd, and for its sshd to begin a
    session then. One that does not loses the session, and the person is told."""

    def __post_init__(self) -> None:
        for name, most in (
            ("max_connections", 100_000),
            ("max_connections_per_address", 100_000),
            ("max_sessions", 1000),
            ("max_tries", 1000),
            ("max_failures", 100_000),
            ("max_file_lines", 100_000),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise InvalidSetting(name, f"{getattr(self, name)} is not from 1 to {most}")
        for name, longest in (
            ("login_timeout", 3600),
            ("failure_period", 86_400),
            ("connect_timeout", 600),
        ):
            if not 1 <= getattr(self, name) <= longest:
                raise InvalidSetting(name, f"{getattr(self, name):g} is not from 1 to {longest} s")


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of gateway.toml."""

    gateway: GatewayListener
    """The listener for SSH clients."""

    registry: RegistryConfig
    """The database."""

    access: AccessConfig = msgspec.field(default_factory=AccessConfig)
    """What people may do without a lease, and how the gateway logs in to devices."""

    recording: RecordingConfig = msgspec.field(default_factory=RecordingConfig)
    """How sessions are recorded."""

    proxies: ProxyCalls = msgspec.field(default_factory=ProxyCalls)
    """How to call the proxies."""

    tunnels: TunnelsConfig = msgspec.field(default_factory=TunnelsConfig)
    """Devices that have only OpenSSH."""

    drain: DrainConfig = msgspec.field(default_factory=DrainConfig)
    """How long SIGTERM waits for sessions in progress."""

    log: LogConfig = msgspec.field(default_factory=LogConfig)
    """What is logged, and how."""

    limits: GatewayLimits = msgspec.field(default_factory=GatewayLimits)
    """Limits on what callers may use."""
