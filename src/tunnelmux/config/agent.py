"""The settings of agent.toml: the proxy to dial, this device, and its local services."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from tunnelmux.config.assist import AssistConfig
from tunnelmux.config.execution import ExecConfig
from tunnelmux.config.http_proxy import HttpProxy, parse_http_proxy
from tunnelmux.config.join import TUNNEL_URL_SCHEMES, decode_join, find_join
from tunnelmux.config.process import (
    AgentLimitsConfig,
    AgentLogConfig,
    AuditConfig,
    DrainConfig,
    OtelConfig,
)
from tunnelmux.config.rules import (
    Address,
    InvalidSetting,
    MissingSetting,
    Target,
    check_api_key,
    check_label,
    check_token,
    check_unique,
    is_loopback,
    parse_address,
    parse_pin,
    parse_target,
    split_url,
)
from tunnelmux.config.secret import Secret
from tunnelmux.config.shell import ShellConfig
from tunnelmux.config.token_file import read_small_file, read_token_file
from tunnelmux.wire import LONGEST_TIMEOUT, TUNNEL_PATH

__all__ = [
    "OWN_SHELL",
    "AgentConfig",
    "AgentMetrics",
    "BackoffConfig",
    "Device",
    "MainServer",
    "ProxyEndpoint",
    "ServiceConfig",
]

_URL_EXAMPLE = f"ws://proxy.example.com:3800{TUNNEL_PATH}"

_MAIN_URL_EXAMPLE = "https://main.example.com"
_SOCKETIO_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")

OWN_SHELL = "tcp+unix:/tunnelmux-agent/shell"
"""The target of the agent's own shell, which is no path: the agent serves it itself."""

_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]+")
_CHECK_PATH = re.compile(r"/[!-~]{0,1023}")
_LONGEST_INTERVAL = 3600
_MOST_FAILURES = 100

_HOST_FIELD = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]+)?|\[[0-9A-Fa-f:.]+\](?::[0-9]+)?")


class ProxyEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The proxy to dial, how to verify it, and this device's credential.

    With `join`, `url` and `pin` are filled in from it.
    """

    url: str = ""
    """The tunnel endpoint: `ws://`, or `wss://` under TLS."""

    token: Secret | None = None
    """This device's token. Give exactly one of `token`, `token_file`, `join` and
    `join_file`."""

    token_file: Path | None = None
    """A file whose only content is the token; read again for every connection."""

    join: Secret | None = None
    """The line a proxy's quickstart or `invite` printed, instead of `url`, token and `pin`."""

    join_file: Path | None = None
    """A file that has the line, alone or within the command to paste; the file is not changed."""

    pin: str | None = None
    """The SHA-256 of the proxy's certificate, as `openssl x509 -fingerprint -sha256` prints it, or
    `sha256:` and its digits: accept that one and no other."""

    ca_file: Path | None = None
    """PEM file of the authority that signed the proxy's certificate; default: the system's."""

    http_proxy: Secret | None = None
    """The HTTP proxy that leads out of this network, `http://user:password@host:port` or without
    the login, or `https://`. Empty text: none. Without the key, the variables HTTPS_PROXY,
    HTTP_PROXY, ALL_PROXY and NO_PROXY count, as curl reads them."""

    sessions: int = 2
    """Sessions with the proxy, where it tells of several nodes: 2, on different nodes, so that the
    device stays reachable when one fails; or 1. With a proxy that is alone it is one."""

    def __post_init__(self) -> None:
        if self.sessions not in (1, 2):
            raise InvalidSetting("sessions", f"{self.sessions} is not 1 or 2")
        if self.join_file is not None:
            self._read_join_file(self.join_file)
        if self.join is not None:
            invitation = decode_join("join", self.join.reveal())
            for key, value in (("url", invitation.url), ("pin", invitation.pin)):
                if getattr(self, key) not in (None, "", value):
                    raise InvalidSetting(key, "is already part of join: leave out one of the two")
                # The struct is frozen; only its construction may still set fields.
                msgspec.structs.force_setattr(self, key, value)
        if not self.url:
            raise MissingSetting("url", f'is missing: write it as "{_URL_EXAMPLE}"')
        split_url("url", self.url, TUNNEL_URL_SCHEMES, _URL_EXAMPLE)
        self._check_credentials()
        if self.pin is not None:
            msgspec.structs.force_setattr(self, "pin", parse_pin("pin", self.pin))
            if not self.is_encrypted:
                raise InvalidSetting("pin", "is of no use without TLS: use wss:// in url")
        _way_out(self)  # refuses one that is none

    def _read_join_file(self, file: Path) -> None:
        join = Secret(find_join("join_file", read_small_file("join_file", file, "join line")))
        if self.join not in (None, join):
            raise InvalidSetting("join", "and join_file are both there: keep one of them")
        msgspec.structs.force_setattr(self, "join", join)

    def _check_credentials(self) -> None:
        given = [self.token, self.token_file, self.join]
        count = sum(value is not None for value in given)
        if count == 0:
            raise MissingSetting("token_file", "is missing: add it, or token, under [proxy]")
        if count > 1:
            raise InvalidSetting("token", "must be the only one of token, token_file and join")
        if self.token is not None:
            check_token("token", self.token.reveal())

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection to the proxy uses TLS."""
        return self.url.startswith("wss:")

    @property
    def way_out(self) -> HttpProxy | None:
        """The HTTP proxy to go through, or None."""
        return _way_out(self)

    def read_token(self) -> Secret:
        """The token to send; reads `token_file` when that is the source.

        With `join` it is the invitation's single-use token. Raises ConfigError when the file
        cannot be read or holds no token.
        """
        if self.token is not None:
            return self.token
        if self.join is not None:
            return decode_join("join", self.join.reveal()).token
        assert self.token_file is not None  # one of the three is set, see __post_init__
        return read_token_file("proxy.token_file", self.token_file)


def _way_out(endpoint: ProxyEndpoint | MainServer) -> HttpProxy | None:
    if not endpoint.http_proxy:
        return None
    return parse_http_proxy("http_proxy", endpoint.http_proxy.reveal())


# The `url` of a [socketio] table without a main server.
_UNSET: dict[str, object] = {
    "proxy_id": None,
    "api_key": None,
    "api_key_file": None,
    "path": "/socket.io/",
    "transports": "auto",
    "engine_io": 4,
    "pin": None,
    "ca_file": None,
    "http_proxy": None,
}


class MainServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A main server of the relay service, to which this agent connects with Socket.IO.

    `[exec]` limits the commands that it may run, as for other callers.
    """

    url: str | None = None
    """`https://` or `http://` and the host; a path is the namespace, else that is `/proxy`. Without
    it there is no main server."""

    proxy_id: str | None = None
    """The name by which the main server knows this agent (its `proxyId`)."""

    api_key: Secret | None = None
    """The key that authenticates this agent (the `apiKey`). Give exactly one of `api_key` and
    `api_key_file`.
    """

    api_key_file: Path | None = None
    """A file whose only content is the key; read again for every connection."""

    path: str = "/socket.io/"
    """The path of Socket.IO on that host."""

    transports: Literal["auto", "polling", "websocket"] = "auto"
    """How to connect: `auto` begins with polling and upgrades to a WebSocket where one passes."""

    engine_io: int = 4
    """The version of Engine.IO: 4 for servers of Socket.IO 3 and 4, 3 for those of Socket.IO 2. The
    latter cannot ask this agent to confirm that it starts a command."""

    pin: str | None = None
    """The SHA-256 of the server's certificate, as for `[proxy]`: accept that one and no other."""

    ca_file: Path | None = None
    """PEM file of the authority that signed the server's certificate; default: the system's."""

    http_proxy: Secret | None = None
    """The HTTP proxy that leads to the main server, as for `[proxy]`."""

    def __post_init__(self) -> None:
        if self.url is None:
            if any(getattr(self, key) != field for key, field in _UNSET.items()):
                raise MissingSetting("url", f'is missing: write it as "{_MAIN_URL_EXAMPLE}"')
            return
        parts = split_url("url", self.url, ("https", "http", "wss", "ws"), _MAIN_URL_EXAMPLE)
        if parts.query or parts.fragment:
            raise InvalidSetting("url", "must not have a query: proxyId and apiKey are added to it")
        if not _SOCKETIO_PATH.fullmatch(self.path):
            raise InvalidSetting("path", 'is not a path: write it like "/socket.io/"')
        if self.engine_io not in (3, 4):
            raise InvalidSetting("engine_io", f"is {self.engine_io}: it must be 4 or 3")
        self._check_login()
        if self.pin is not None:
            # The struct is frozen; only its construction may still set fields.
            msgspec.structs.force_setattr(self, "pin", parse_pin("pin", self.pin))
            if not self.is_encrypted:
                raise InvalidSetting("pin", "is of no use without TLS: use https:// in url")
        _way_out(self)  # refuses one that is none

    def _check_login(self) -> None:
        if self.proxy_id is None:
            raise MissingSetting("proxy_id", "is missing: add it under [socketio]")
        if not self.proxy_id or not self.proxy_id.isprintable() or len(self.proxy_id) > 128:
            raise InvalidSetting("proxy_id", "must be 1 to 128 printable characters")
        if self.api_key is None and self.api_key_file is None:
            raise MissingSetting("api_key_file", "is missing: add it, or api_key, under [socketio]")
        if self.api_key is not None and self.api_key_file is not None:
            raise InvalidSetting("api_key", "and api_key_file are both there: keep one of them")
        if self.api_key is not None:
            check_api_key("api_key", self.api_key.reveal())

    @property
    def way_out(self) -> HttpProxy | None:
        """The HTTP proxy to go through, or None."""
        return _way_out(self)

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection to the main server uses TLS."""
        return self.url is not None and self.url.startswith(("https:", "wss:"))

    def read_api_key(self) -> Secret:
        """The key to send; reads `api_key_file` when that is the source. Raises ConfigError."""
        if self.api_key is not None:
            return self.api_key
        assert self.api_key_file is not None  # one of the two is set, see __post_init__
        return read_token_file("socketio.api_key_file", self.api_key_file, check_api_key)


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The device that this agent runs on."""

    name: str
    """The device's name, as the proxy's `[[devices]]` has it."""

    serial: str = ""
    """Its serial number; people can find the device by it too. Give at most one of `serial`,
    `serial_file` and `serial_command`.
    """

    serial_file: Path | None = None
    """A file whose content is the serial number, like `"/sys/class/dmi/id/product_serial"`."""

    serial_command: list[str] = []
    """A program with its arguments that prints the serial number within 5 s."""

    state_dir: Path | None = None
    """The folder for the credentials that joining gives; default: the user's state directory."""

    def __post_init__(self) -> None:
        check_label("name", self.name)
        given = [bool(self.serial), self.serial_file is not None, bool(self.serial_command)]
        if sum(given) > 1:
            raise InvalidSetting(
                "serial", "must be the only one of serial, serial_file and serial_command"
            )
        if self.serial and (len(self.serial) > 128 or not self.serial.isprintable()):
            raise InvalidSetting("serial", "must be 1 to 128 printable characters")


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One local target that visitors may reach. Targets that are not declared cannot be reached."""

    name: str
    """Its name: the label before `--` in host names, and the `service` of a TCP ingress."""

    target: str
    """`http://host:port`, `https://host:port`, `tcp://host:port`, `unix:/path` (HTTP at a Unix
    socket) or `tcp+unix:/path`, as seen from this device. A port alone, `"8000"`, means a web
    server at 127.0.0.1.
    """

    host: str | None = None
    """The Host field the target sees instead of the visitor's, for targets that check it."""

    rewrite: bool = True
    """Whether other fields are rewritten to match `host` and the scheme of an `https://` target: in
    requests the visitor's site becomes the target's (`Origin`, `Referer`, `Destination`, `If`, the
    hosts of `X-Forwarded-Host` and `Forwarded`), and in answers the target's becomes the visitor's
    (`Location`, `Content-Location`, `Link`, `Refresh`, domains of `Set-Cookie`).
    """

    verify: bool = True
    """Whether the certificate of an `https://` target is checked. False accepts any certificate,
    and old versions of TLS and weak keys: anyone on the path to the target can then read the
    traffic.
    """

    ca_file: Path | None = None
    """PEM file of the authority that signed the certificate of an `https://` target; default: the
    system's."""

    server_name: str | None = None
    """The name in an `https://` target's certificate, also sent as SNI;
    default: the host in `target`."""

    response_timeout: float | None = None
    """Seconds that the target may take to begin an answer, at most 3600; without it
    `response_timeout` of `[limits]`. The agent reads each request to such a service, which costs
    more processor time."""

    default: bool = False
    """True for the service that `dev1.localhost` leads to; else the first http service is it."""

    lease_only: bool = False
    """Whether it can be reached during leases only, see `[assist]`. The agent itself enforces this,
    and refuses the service at all other times.
    """

    check: str | None = None
    """How the agent checks the target's health: a path such as `/healthz`, for which GET must
    answer 200 to 399, or `tcp`, a connection. While the target is down, visitors get 502 with the
    reason at once. Without this key there is no check.
    """

    check_interval: float = 10.0
    """Seconds between two checks."""

    check_timeout: float = 3.0
    """Seconds that one may take, no longer than the interval."""

    check_failures: int = 2
    """Checks that must fail in a row before the target counts as down; the first success ends that.
    """

    def __post_init__(self) -> None:
        check_label("name", self.name)
        where = parse_target("target", self.target)
        self._check_checks(where)
        if self.host is not None:
            if where.protocol != "http":
                raise InvalidSetting(
                    "host", "is for targets that speak HTTP: leave it out for tcp://"
                )
            if not _HOST_FIELD.fullmatch(self.host):
                raise InvalidSetting("host", 'is not a host: write it like "localhost:8000"')
        elif not self.rewrite and not where.is_encrypted:
            raise InvalidSetting("rewrite", "is of no use without host: leave it out")
        self._check_response_timeout(where)
        if not where.is_encrypted:
            for key, unset in (("verify", True), ("ca_file", None), ("server_name", None)):
                if getattr(self, key) != unset:
                    raise InvalidSetting(key, "is for https:// targets: leave it out for others")
        if not self.verify and self.ca_file is not None:
            raise InvalidSetting("ca_file", "is of no use with verify = false: leave out one")
        if self.server_name is not None and not _HOST_NAME.fullmatch(self.server_name):
            raise InvalidSetting("server_name", 'is not a name: write it like "router.lan"')

    def _check_checks(self, where: Target) -> None:
        if self.check is None:
            return
        if self.check != "tcp" and not _CHECK_PATH.fullmatch(self.check):
            raise InvalidSetting("check", 'is neither "tcp" nor a path: write it like "/healthz"')
        if self.check != "tcp" and where.protocol != "http":
            raise InvalidSetting("check", 'is a path, for a target without HTTP: write "tcp"')
        if not 1 <= self.check_interval <= _LONGEST_INTERVAL:
            raise InvalidSetting(
                "check_interval", f"{self.check_interval:g} is not from 1 to {_LONGEST_INTERVAL}"
            )
        if not 0 < self.check_timeout <= self.check_interval:
            raise InvalidSetting(
                "check_timeout",
                f"{self.check_timeout:g} is not above 0 and at most check_interval "
                f"({self.check_interval:g}): set check_timeout too",
            )
        if not 1 <= self.check_failures <= _MOST_FAILURES:
            raise InvalidSetting(
                "check_failures", f"{self.check_failures} is not from 1 to {_MOST_FAILURES}"
            )

    def _check_response_timeout(self, where: Target) -> None:
        seconds = self.response_timeout
        if seconds is None:
            return
        if where.protocol != "http":
            raise InvalidSetting(
                "response_timeout", "is for targets that speak HTTP: leave it out for tcp://"
            )
        if not 0 < seconds <= LONGEST_TIMEOUT:
            raise InvalidSetting(
                "response_timeout", f"{seconds:g} is not above 0 and at most {LONGEST_TIMEOUT}"
            )

    @property
    def where(self) -> Target:
        """The target: its address and protocol."""
        return parse_target("target", self.target)

    @property
    def scheme(self) -> Literal["http", "tcp"]:
        """The protocol that visitors speak with the target."""
        return self.where.protocol

    @property
    def address(self) -> Address | None:
        """Where the target listens; None for one at a Unix socket."""
        return self.where.address


class BackoffConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the agent waits before it dials again. Seconds, with full jitter."""

    minimum: float = 0.5
    """The first wait is up to this; it doubles with every failure."""

    early: float = 2.0
    """The first ten waits are no longer than this, so that the devices of a proxy that was merely
    restarted are back at once."""

    maximum: float = 30.0
    """The longest wait; ten times that while another session serves."""

    replaced: float = 30.0
    """The wait, at least half of it, after another agent has replaced this one. It doubles up to
    ten times this while that goes on, so that two machines with one token do not replace each other
    all the time.
    """

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= self.maximum <= 3600:
            raise InvalidSetting(
                "minimum", "must be above 0 and at most maximum, which is at most 3600 seconds"
            )
        if not 0 < self.early <= 3600:
            raise InvalidSetting("early", "must be above 0 and at most 3600 seconds")
        if not 0 < self.replaced <= 3600:
            raise InvalidSetting("replaced", "must be above 0 and at most 3600 seconds")


class AgentMetrics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where monitoring reads this agent's state: `GET /metrics` for Prometheus, `GET /healthz` for
    other tools. Without this table there is no such listener.
    """

    listen: str = "127.0.0.1:3803"
    """`host:port` on this machine. It asks for no credential. A monitor on another machine reaches
    it through the tunnel, as a service with this target.
    """

    def __post_init__(self) -> None:
        if not is_loopback(parse_address("listen", self.listen).host):
            raise InvalidSetting(
                "listen",
                f'"{self.listen}" can be reached from other machines, and needs no credential '
                "there: listen on 127.0.0.1, and declare a service for a monitor elsewhere",
            )

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return parse_address("listen", self.listen)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of agent.toml."""

    proxy: ProxyEndpoint | None = None
    socketio: MainServer | None = None
    device: Device
    services: list[ServiceConfig] = []
    backoff: BackoffConfig = BackoffConfig()
    limits: AgentLimitsConfig = AgentLimitsConfig()
    exec: ExecConfig = ExecConfig()
    assist: AssistConfig = AssistConfig()
    shell: ShellConfig = ShellConfig()
    audit: AuditConfig = AuditConfig()
    metrics: AgentMetrics | None = None
    drain: DrainConfig = DrainConfig()
    log: AgentLogConfig = AgentLogConfig()
    otel: OtelConfig = OtelConfig()

    def __post_init__(self) -> None:
        if self.socketio is not None and self.socketio.url is None:
            # An empty table. The struct is frozen; only its construction may still set fields.
            msgspec.structs.force_setattr(self, "socketio", None)
        if self.proxy is None and self.socketio is None:
            raise MissingSetting(
                "proxy.url",
                f'is missing: write it as "{_URL_EXAMPLE}" under [proxy], or name a main server '
                "under [socketio]",
            )
        if not self.offered and self.socketio is None:
            raise MissingSetting(
                "services", "there is none, so nothing could be reached: add a [[services]] table"
            )
        check_unique("services.name", [service.name for service in self.services])
        self._check_shell()
        defaults = [service.name for service in self.services if service.default]
        if len(defaults) > 1:
            raise InvalidSetting(
                "services.default", f"only one can be the default, not {' and '.join(defaults)}"
            )
        for index, service in enumerate(self.services):
            label = f"{service.name}--{self.device.name}"
            if len(label) > 63:
                raise InvalidSetting(
                    f"services[{index}].name",
                    f'"{label}" is {len(label)} long and a host name\'s label holds 63: shorten '
                    "the service's or the device's name",
                )

        unknown = set(self.assist.services) - {service.name for service in self.offered}
        if unknown:
            raise InvalidSetting(
                "assist.services", f'there is no service "{min(unknown)}" under [[services]]'
            )

    def _check_shell(self) -> None:
        name = self.shell.service
        if not self.shell.enabled:
            return
        if name in {service.name for service in self.services}:
            raise InvalidSetting(
                "shell.service",
                f'"{name}" is under [[services]] too: name one of the two otherwise, or leave out '
                "[shell] where that is an sshd",
            )
        if len(f"{name}--{self.device.name}") > 63:
            raise InvalidSetting(
                "shell.service", f"{name}--{self.device.name} is longer than 63: shorten one"
            )

    @property
    def offered(self) -> list[ServiceConfig]:
        """All that can be reached on this device: the declared services, and the agent's shell."""
        if not self.shell.enabled:
            return self.services
        return [
            *self.services,
            ServiceConfig(
                name=self.shell.service, target=OWN_SHELL, lease_only=self.shell.lease_only
            ),
        ]

    @property
    def default_service(self) -> ServiceConfig | None:
        """The one marked as default, else the first http service, else the first."""
        marked = [service for service in self.services if service.default]
        http = [service for service in self.services if service.scheme == "http"]
        return next(iter(marked or http or self.services), None)
