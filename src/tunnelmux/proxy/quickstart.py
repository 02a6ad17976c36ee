"""A proxy without a configuration file: it makes its own keys, and devices join by invitation."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from tunnelmux.config import (
    HttpIngress,
    InternalListener,
    JoinInvitation,
    ProxyConfig,
    encode_join,
)
from tunnelmux.config.private_file import write_private
from tunnelmux.config.quickstart_state import INTERNAL_SECRET, QuickstartState
from tunnelmux.config.rules import Address, InvalidSetting
from tunnelmux.errors import ConfigError
from tunnelmux.proxy.app import DrainReport, ReloadReport, RunningProxy, run_proxy
from tunnelmux.proxy.tunnels.certificate import make_certificate, pin_of
from tunnelmux.proxy.tunnels.enrolment import Enrolment
from tunnelmux.proxy.tunnels.invitations import INVITATION_LIFETIME, Invitations

__all__ = [
    "Invitation",
    "Listening",
    "Quickstart",
    "invite",
    "own_address",
    "reload_quickstart",
    "run_quickstart",
]

_HTTP_LISTEN = "127.0.0.1:8080"
_PUBLIC_LISTEN = "0.0.0.0:8080"
# Only for visitors on this machine: opening a device's web page to the network takes an option.

_INTERNAL_LISTEN = "127.0.0.1:0"
# Any free port: `tunnelmux` reads it from the state directory.

_PROBE = ("192.0.2.1", 9)  # RFC 5737 documentation address; nothing is ever sent there


_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - compared with, not bound

_NAMES_SHOWN = 10
# Devices that a later start lists by name; a fleet has too many for one line.


class Invitation(NamedTuple):
    """An invitation as the operator sees it. Both texts hold a secret: print them, never
    log them."""

    join: str
    """The join string by itself."""
    command: str
    """One line to paste on the device."""
    device: str
    """The name in that line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a proxy listens, with the ports that the system chose for 0."""

    tunnel: Address
    http: Address
    internal: Address | None

    @classmethod
    def of(cls, proxy: RunningProxy) -> Listening:
        """Where this proxy of one process does."""
        assert proxy.http_address is not None  # `Quickstart` has one configured
        return cls(
            tunnel=proxy.tunnel_address, http=proxy.http_address, internal=proxy.internal_address
        )


class Quickstart:
    """What a proxy without a file keeps in its state directory, and tells its operator.

    *public_host* is how devices reach this machine (default: what was given before, else the
    address it listens at, or its own when that is every one). With *public*, visitors come in from
    all machines at port 8080, else those of this one at 127.0.0.1:8080, where the configuration has
    no HTTP ingress. *clock* answers seconds since the epoch.
    """

    def __init__(
        self,
        state_dir: Path,
        public_host: str | None = None,
        *,
        public: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state_dir = state_dir
        self.enrolment = Enrolment(state_dir, clock=clock)
        self._public_host = public_host
        self._public = public
        self._clock = clock
        self._secret_before: bytes | None = None
        self._has_told = False

    def complete(self, config: ProxyConfig) -> ProxyConfig:
        """The configuration with all that it does not say itself. The first time, a certificate is
        made. Raises ConfigError when the state directory cannot be used."""
        host = _reached_at(config, self._host())
        return _complete(config, self.state_dir, host, self._clock, public=self._public)

    def renew_secret(self, config: ProxyConfig) -> None:
        """Write a new secret for the internal API, if the configuration has none of its own: before
        the proxy starts. One left by a process that was killed must not stay valid. Raises
        ConfigError."""
        if _has_own_internal(config, self.state_dir):
            with contextlib.suppress(OSError):  # there is none yet
                self._secret_before = (self.state_dir / INTERNAL_SECRET).read_bytes()
            _write_secret(self.state_dir, secrets.token_hex(32).encode("ascii"))

    def tell(self, config: ProxyConfig, listening: Listening) -> None:
        """Write the state file for other programs on this machine. *config* is complete."""
        self._tell(config, listening)

    def welcome(self, config: ProxyConfig, listening: Listening) -> str:
        """Do the same, and answer the text for the operator; as long as no device is known, with a
        new invitation, the line to paste on a device."""
        host = self._tell(config, listening)
        names = {device.name for device in config.devices}
        names |= {device.name for device in self.enrolment.load()}
        if names:
            return _welcome_back(config, listening, host, sorted(names))
        return _welcome(config, listening, host, invite(self.state_dir, clock=self._clock))

    def forget(self) -> None:
        """The proxy has ended: other programs are not to call its internal API.

        If it never listened, another one of this state directory may, as when this was started
        twice by mistake; what programs need to call that stays.
        """
        if self._has_told:
            _forget_internal_url(self.state_dir)
        elif self._secret_before is not None:
            _write_secret(self.state_dir, self._secret_before)

    def _host(self) -> str | None:
        return self._public_host or _remembered_host(self.state_dir)

    def _tell(self, config: ProxyConfig, listening: Listening) -> str:
        """Returns the host by which devices reach the proxy."""
        public_host = self._host()
        host = _reached_at(config, public_host)
        self._has_told = True
        _write_state(config, listening, self.state_dir, host, public_host)
        return host


async def run_quickstart(
    state_dir: Path,
    public_host: str | None = None,
    *,
    config: ProxyConfig | None = None,
    public: bool = False,
    announce: Callable[[str], None] = print,
    clock: Callable[[], float] = time.time,
    task_status: trio.TaskStatus[RunningProxy] = trio.TASK_STATUS_IGNORED,
) -> DrainReport:
    """Run a proxy that keeps all it needs in `state_dir`, until it was drained or is cancelled; the
    options are those of `Quickstart`.

    Once the proxy listens, `announce` gets the text for the operator. `config` may set other
    things, a certificate of its own included; it then says who may visit. Without an internal API
    in it, there is one for programs of this user, which find it in the state directory.

    Raises ConfigError when the state directory cannot be used or an address cannot be listened on.
    """
    quickstart = Quickstart(state_dir, public_host, public=public, clock=clock)
    config = quickstart.complete(config or ProxyConfig())
    quickstart.renew_secret(config)

    def welcome(proxy: RunningProxy) -> None:
        announce(quickstart.welcome(proxy.config, Listening.of(proxy)))

    try:
        return await run_proxy(
            config,
            enrolment=quickstart.enrolment,
            state_dir=state_dir,
            announce=welcome,
            task_status=task_status,
        )
    finally:
        quickstart.forget()


async def reload_quickstart(
    proxy: RunningProxy,
    state_dir: Path,
    public_host: str | None = None,
    *,
    config: ProxyConfig,
    public: bool = False,
    clock: Callable[[], float] = time.time,
) -> ReloadReport:
    """Give a proxy that `run_quickstart` started a new configuration, and the devices that
    devices.json has now. Its certificate stays. Raises ConfigError, with nothing changed.
    """
    quickstart = Quickstart(state_dir, public_host, public=public, clock=clock)
    report = await proxy.reload(quickstart.complete(config))
    quickstart.tell(proxy.config, Listening.of(proxy))
    return report


def _reached_at(config: ProxyConfig, public_host: str | None) -> str:
    listens_at = config.tunnel.address.host
    return public_host or (own_address() if listens_at in _EVERYWHERE else listens_at)


def _remembered_host(state_dir: Path) -> str | None:
    try:
        return QuickstartState.read(state_dir).public_host
    except ConfigError:
        return None  # the first start


def _url(config: ProxyConfig, listening: Listening, host: str) -> str:
    """The URL for devices."""
    return f"wss://{Address(host, listening.tunnel.port)}{config.tunnel.path}"


def _write_state(
    config: ProxyConfig, listening: Listening, state_dir: Path, host: str, public_host: str | None
) -> None:
    """Write the state file for other programs on this machine."""
    certificate = config.tunnel.tls_certificate
    assert certificate is not None  # _complete set it
    is_own = _has_own_internal(config, state_dir)
    state = QuickstartState(
        url=_url(config, listening, host),
        certificate=str(certificate.absolute()),
        configured=[device.name for device in config.devices],
        public_host=public_host,
        internal_url=f"http://{listening.internal}" if is_own else None,
    )
    state.write(state_dir)


def _has_own_internal(config: ProxyConfig, state_dir: Path) -> bool:
    """Whether the internal API is the one that `_complete` added."""
    internal = config.internal
    return internal is not None and internal.secret_file == state_dir / INTERNAL_SECRET


def _write_secret(state_dir: Path, secret: bytes) -> None:
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(state_dir / INTERNAL_SECRET, secret)
    except OSError as error:
        raise _unusable(state_dir, error) from error


def _forget_internal_url(state_dir: Path) -> None:
    """Remove the internal API's URL: another program may listen on that port later."""
    with contextlib.suppress(ConfigError, OSError):  # the start failed before the file was written
        state = QuickstartState.read(state_dir)
        msgspec.structs.replace(state, internal_url=None).write(state_dir)


def invite(
    state_dir: Path, *, replace: str | None = None, clock: Callable[[], float] = time.time
) -> Invitation:
    """A new invitation for the quickstart proxy of this state directory, which may be running.

    It is for a device of a new name, or with `replace` for the enrolled one of that name, which
    then loses its place. Raises ConfigError when no proxy was started there, the directory cannot
    be used, or there is nothing to replace.
    """
    state = QuickstartState.read(state_dir)
    enrolled = [device.name for device in Enrolment(state_dir).load()]
    invitations = Invitations(state_dir, clock=clock)
    if replace is not None:
        _check_replaced(replace, enrolled, state.configured)
    name = replace or _free_name({*enrolled, *state.configured, *invitations.suggested()})
    token = invitations.create(replaces=replace, suggests=name)
    join = encode_join(
        JoinInvitation(url=state.url, token=token, pin=pin_of(Path(state.certificate)))
    )
    command = f"tunnelmux-agent --join {join} --name {name} --service web=8000"
    return Invitation(join, command, name)


def _check_replaced(name: str, enrolled: list[str], configured: list[str]) -> None:
    if name in configured:
        raise ConfigError(
            f'--replace: the device "{name}" is in proxy.toml, and its token is changed there'
        )
    if name not in enrolled:
        known = f"these have: {', '.join(sorted(enrolled))}" if enrolled else "none has so far"
        raise ConfigError(f'--replace: no device "{name}" has joined ({known})')


def _free_name(taken: set[str]) -> str:
    """A name that no device has and no open invitation suggests, so that pasting the line unchanged
    never replaces a device.
    """
    return next(name for n in itertools.count(1) if (name := f"dev{n}") not in taken)


def own_address() -> str:
    """The address from which this machine reaches the Internet, or its name without a network.

    Behind NAT that is not how the Internet reaches this machine; only its operator knows that.
    """
    try:
        # Connecting a UDP socket sends nothing: it only asks the routing table.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_PROBE)
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def _complete(
    config: ProxyConfig,
    state_dir: Path,
    host: str,
    clock: Callable[[], float],
    *,
    public: bool,
) -> ProxyConfig:
    """The configuration with a certificate, an HTTP ingress and an internal API where it names
    none."""
    tunnel = config.tunnel
    if tunnel.tls_certificate is None:
        certificate, key = state_dir / "tunnel.crt", state_dir / "tunnel.key"
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_certificate(certificate, key, host, datetime.fromtimestamp(clock(), UTC))
        except ValueError as error:
            raise ConfigError(
                f'public_host: no certificate can be made for "{host}" ({error}): give a host '
                "name or an IP address, without scheme and port"
            ) from error
        except OSError as error:
            raise _unusable(state_dir, error) from error
        tunnel = msgspec.structs.replace(tunnel, tls_certificate=certificate, tls_key=key)
    ingress = config.ingress
    if ingress.http is None:
        http = HttpIngress(listen=_PUBLIC_LISTEN if public else _HTTP_LISTEN)
        if public and _is_domain(host):
            http = msgspec.structs.replace(http, domain=host)
        ingress = msgspec.structs.replace(ingress, http=http)
    internal = config.internal or InternalListener(
        listen=_INTERNAL_LISTEN, secret_file=state_dir / INTERNAL_SECRET
    )
    return msgspec.structs.replace(config, tunnel=tunnel, ingress=ingress, internal=internal)


def _unusable(state_dir: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"no keys can be stored in {state_dir} ({error.strerror}): name a directory this user may "
        "write to with --state-dir"
    )


def _is_domain(host: str) -> bool:
    """Whether this is a domain name, below which devices can have names."""
    try:
        HttpIngress(listen=_HTTP_LISTEN, domain=host)
    except InvalidSetting:
        return False
    return not host.rpartition(".")[2].isdigit()  # an address is not a domain


def _visited_at(config: ProxyConfig, listening: Listening, host: str) -> str:
    """The URL for visitors on other machines."""
    http, address = config.ingress.http, listening.http
    assert http is not None  # _complete set it
    scheme = "https" if http.tls_certificate is not None else "http"
    if address.host not in _EVERYWHERE:
        return f"{scheme}://{address}"
    if http.domain != "localhost":
        return f"{scheme}://DEVICE.{http.domain}:{address.port} (*.{http.domain} must lead here)"
    return f"{scheme}://{Address(host, address.port)}"


def _own_url(listening: Listening) -> str:
    """The URL for visitors on this machine."""
    address = listening.http
    return (
        f"http://127.0.0.1:{address.port}" if address.host in _EVERYWHERE else f"http://{address}"
    )


def _welcome(config: ProxyConfig, listening: Listening, host: str, invitation: Invitation) -> str:
    minutes = round(INVITATION_LIFETIME / 60)
    return f"""\
Devices connect to {_url(config, listening, host)}
Visitors come in at {_visited_at(config, listening, host)}

Paste this line on a device, with the service it is to offer. It works once, within
{minutes} minutes; "tunnelmux-proxy invite" makes another.

{invitation.command}

Then, on this machine: curl {_own_url(listening)}/ -H "Tunnelmux-Device: {invitation.device}"
Commands that name devices, such as tunnelmux ls: tunnelmux --help
"""


def _welcome_back(config: ProxyConfig, listening: Listening, host: str, names: list[str]) -> str:
    some = ", ".join(names[:_NAMES_SHOWN])
    others = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"""\
Devices connect to {_url(config, listening, host)}
Visitors come in at {_visited_at(config, listening, host)}

These may connect: {some}{others}.
"tunnelmux-proxy invite" prints the line for another.
"""
