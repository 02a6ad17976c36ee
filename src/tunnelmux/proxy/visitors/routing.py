"""Find the device and service of a request, and open a stream to it."""

from __future__ import annotations

import ipaddress
import math
import re
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from email.utils import format_datetime

import trio

from tunnelmux.errors import SessionClosed, SessionDraining, SessionError
from tunnelmux.http import RequestHead
from tunnelmux.http.fields import TrustedProxies
from tunnelmux.http.head import host_name
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session, Stream
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.proxy.visitors.groups import Groups, Wish
from tunnelmux.proxy.visitors.names import Destination, KnownNames
from tunnelmux.proxy.visitors.visit import IN_THE_PUMP, PATIENCE, Visit
from tunnelmux.relay import abort
from tunnelmux.sessions import DeviceStore, LocalHandle, SessionHandle
from tunnelmux.transports.admission import source_of
from tunnelmux.wire import DEVICE_FIELD, SERVICE_FIELD

__all__ = [
    "Destination",
    "IngressSettings",
    "Router",
    "crowd_refusal",
    "destination_of",
    "find_destination",
    "is_name",
    "stream_id",
]

OFFLINE_RETRY_AFTER = 10
"""Retry-After for an offline device, in seconds: the middle of an agent's back-off."""

BUSY_RETRY_AFTER = 1
"""Retry-After for a connected device that can take no stream now, in seconds."""

_LABEL = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_DEVICE = re.compile(rf"{_LABEL.pattern}(?:--{_LABEL.pattern})?")
_SERVICE = SERVICE_FIELD.decode("ascii")
_LONGEST_LABEL = 63  # bytes, RFC 1035 2.3.4
_ATTEMPTS = 3

_LOOK_AGAIN = 5.0
# Seconds until a device of a group, which was not found on another node, is looked for again.


def find_destination(
    request: RequestHead, domain: str, is_tenant: Callable[[str], bool] = lambda _: False
) -> Destination:
    """The destination that the request's head names. Raises Refused.

    The host `dev1.DOMAIN` leads to the device's default service and `web--dev1.DOMAIN` to that
    service. Devices of a tenant are `dev1--acme.DOMAIN` and `web--dev1--acme.DOMAIN`: `is_tenant`
    tells which of the two a single `--` means, and no name is both. Only such a host decides, so
    that rules about hosts in front of the proxy apply: a head whose `Tunnelmux-Device` or
    `Tunnelmux-Service` says anything else is refused.

    The two fields decide where the host names no device: when it is an IP address, a name without a
    dot such as `localhost`, DOMAIN itself, or missing. They do not count under other hosts: a page
    of `evil.example` can make that name resolve to this machine ("DNS rebinding") and send any
    fields, but no other host. `Tunnelmux-Service` without `Tunnelmux-Device` is ignored there.
    """
    device = _one_name(request, DEVICE_FIELD.decode("ascii"), _DEVICE)
    service = _one_name(request, _SERVICE, _LABEL)
    by_host = _by_host(request.host, domain, is_tenant)
    if by_host is not None:
        if device not in (None, by_host.device) or service not in (None, by_host.service):
            message = (
                f"The host names the {by_host}, and it alone decides: leave out the fields "
                f"Tunnelmux-Device and {_SERVICE}."
            )
            raise Refused(Refusal(400, "bad-request", message))
        return by_host
    host = request.host.decode("ascii", "backslashreplace") or "no host"
    names = f"use the host DEVICE.{domain} or SERVICE--DEVICE.{domain}"
    if device is None:
        message = f"{host} names no device: {names}, or the field Tunnelmux-Device."
        raise Refused(Refusal(404, "unknown-device", message))
    if not _is_neutral(request.host, domain):
        message = (
            "Tunnelmux-Device counts only where the host is an IP address, a name without a dot "
            f"or {domain}, which {host} is not: {names}."
        )
        raise Refused(Refusal(403, "forbidden", message))
    return Destination(device, service)


def destination_of(
    said: tuple[bytes, bytes, bytes],
    domain: str,
    is_tenant: Callable[[str], bool],
) -> Destination | None:
    """Like `find_destination`, from the Host, `Tunnelmux-Device` and `Tunnelmux-Service` of a
    request; absent fields are empty. None when it is refused, or to be judged by its whole head.
    """
    if not said[0].isascii():
        return (
            None  # not looked at yet: first bytes, or the name that TLS is given, may be anything
        )
    names = (b"host", DEVICE_FIELD.lower(), SERVICE_FIELD.lower())
    fields = [pair for pair in zip(names, said, strict=True) if pair[1]]
    try:
        return find_destination(RequestHead(b"GET", b"/", b"1.1", fields), domain, is_tenant)
    except Refused:
        return None


def _is_neutral(host: bytes, domain: str) -> bool:
    """Whether no attacker can make this host name resolve to the proxy. A name without a dot is
    local to the visitor's network: registries do not sell these (RFC 7085).
    """
    name = host_name(host)
    if "." not in name or name == domain.lower():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _by_host(host: bytes, domain: str, is_tenant: Callable[[str], bool]) -> Destination | None:
    label, dot, rest = host_name(host).partition(".")
    if not dot or rest != domain.lower():
        return None
    parts = label.split("--")
    if not all(_LABEL.fullmatch(part) for part in parts):
        return None
    match parts:
        case [device]:
            return Destination(device)
        case [device, tenant] if is_tenant(tenant):
            return Destination(label)
        case [service, device]:
            return Destination(device, service)
        case [service, device, tenant]:
            return Destination(f"{device}--{tenant}", service)
    return None


def _one_name(request: RequestHead, name: str, pattern: re.Pattern[str]) -> str | None:
    key = name.lower().encode("ascii")
    values = [value for field, value in request.headers if field.lower() == key]
    if not values:
        return None
    text = values[0].decode("latin-1").lower()
    if len(values) > 1 or not pattern.fullmatch(text):
        message = f"{name} must be one name of letters, digits and single dashes, sent once."
        raise Refused(Refusal(400, "bad-request", message))
    return text


def is_name(text: str) -> bool:
    """Whether this can be the name of a device or a service."""
    return len(text) <= _LONGEST_LABEL and _LABEL.fullmatch(text) is not None


def crowd_refusal(visit: Visit, limits: IngressLimits) -> Refusal | None:
    """The refusal when too many visits from its address use the device; else None."""
    most = limits.max_streams_per_visitor
    if not visit.is_counted or visit.crowd(most) <= most:
        return None
    message = (
        f"More than {most} streams to device {visit.device} are open for "
        f"{source_of(visit.counts_as)} "
        "(limits.max_streams_per_visitor). Try again in a moment."
    )
    return Refusal(503, "too-many-visitors", message, retry_after=BUSY_RETRY_AFTER)


def stream_id(stream: trio.abc.AsyncResource | None) -> int | None:
    """The id of a stream on its session, for logs; None where this process has no such id."""
    return stream.id if isinstance(stream, Stream) else None


class Router:
    """Opens streams to devices. Failures are raised as Refused, ready to be sent to the visitor."""

    def __init__(
        self, store: DeviceStore, devices: DeviceRegister, groups: Groups | None = None
    ) -> None:
        self.reserved_streams = IngressLimits().reserved_streams
        """Streams of each session that are reserved: visitors leave them free."""
        self.groups = groups or Groups(lambda _: 0)
        """Names that stand for several devices."""
        self._looked: dict[str, float] = {}  # when devices of groups were looked for elsewhere
        self._store = store
        self._devices = devices

    # -- groups -----------------------------------------------------------------------------------

    def place_now(self, named: Destination, wish: Wish) -> Destination | None:
        """The destination, with one of its devices in the place of a group. None where `place` has
        to decide: no device can be reached, some may be on other nodes, or the answer has to bring
        the browser a cookie.
        """
        group = self.groups.find(named.device)
        if group is None:
            return named
        reachable = [device for device in group.devices if self._is_there(device)]
        if not reachable or any(self._may_be_elsewhere(device) for device in group.devices):
            return None
        device = self.groups.choose(group, named.service, reachable, wish)
        if group.needs_cookie and not group.has_cookie_of(device, wish.cookie):
            return None
        return Destination(device, named.service)

    async def place(
        self, named: Destination, wish: Wish, without: Collection[str] = ()
    ) -> Destination | None:
        """The same, after a search for devices on other nodes, and without some devices of a group.
        Where none can be reached, it is the one that was lost last, which may come back at once;
        None where none is left. A group that has no device at all stays, and is refused later.
        """
        group = self.groups.find(named.device)
        if group is None or not (group.devices or without):
            return named
        devices = [device for device in group.devices if device not in without]
        async with trio.open_nursery() as nursery:
            for device in filter(self._may_be_elsewhere, devices):
                self._looked[device] = trio.current_time()
                nursery.start_soon(self.look_for, device)
        reachable = [device for device in devices if self._is_there(device)]
        if reachable:
            return Destination(
                self.groups.choose(group, named.service, reachable, wish), named.service
            )
        lost = max(devices, key=lambda name: self._store.lost_at(name) or -math.inf, default=None)
        return Destination(lost, named.service) if lost is not None else None

    def _is_there(self, device: str) -> bool:
        if self.handle_now(device) is not None:
            return True
        return self.reaches_others and self.there_now(device) is not None

    def _may_be_elsewhere(self, device: str) -> bool:
        if not self.reaches_others or self._is_there(device):
            return False
        return trio.current_time() >= self._looked.get(device, -math.inf) + _LOOK_AGAIN

    # -- streams ----------------------------------------------------------------------------------

    async def open_stream(
        self, device: str, limits: IngressLimits, visit: Visit | None = None
    ) -> trio.abc.HalfCloseableStream:
        """A new stream to the device, which is recorded in `visit`.

        Waits up to `limits.reconnect_wait` seconds for a device that was lost less than that ago,
        and up to `limits.connect_timeout` for one that does not take streams. Raises Refused, also
        when the visit is cut meanwhile.
        """
        if visit is None:
            return await self._open_stream(device, limits, None)
        visit.wait_for("device", limits)
        stream = None
        with trio.CancelScope() as waiting:
            visit.on_cut = waiting.cancel
            stream = await self._open_stream(device, limits, visit)
        visit.on_cut = None
        if stream is None or visit.cut_reason is not None:
            if stream is not None:
                await abort(stream)
            raise _busy(device, "device-offline", f"cannot be reached any more: {visit.cut_reason}")
        visit.hold(stream)
        return stream

    async def _open_stream(
        self, device: str, limits: IngressLimits, visit: Visit | None
    ) -> trio.abc.HalfCloseableStream:
        for _ in range(_ATTEMPTS):
            handle = await self._find(device, limits)
            self._require_room(handle, limits, visit)
            try:
                with trio.fail_after(limits.connect_timeout):
                    if visit is not None and not visit.is_from_outside:
                        return await handle.open_reserved_stream()
                    return await handle.open_stream()
            except SessionClosed:
                continue  # lost between look-up and opening: it may come back
            except SessionDraining:
                raise _busy(device, "device-draining", "is about to restart") from None
            except SessionError as exc:
                raise _busy(device, "device-busy", f"can take no stream now: {exc}") from None
            except trio.TooSlowError:
                message = f"Device {device} took no stream within {limits.connect_timeout:g} s."
                raise Refused(Refusal(504, "target-timeout", message)) from None
        raise self._offline(device)

    def _require_room(
        self, handle: SessionHandle, limits: IngressLimits, visit: Visit | None
    ) -> None:
        if visit is not None and not visit.is_from_outside:
            return
        if isinstance(handle, LocalHandle) and not handle.has_room(self.reserved_streams):
            raise _busy(
                handle.device,
                "device-busy",
                "has no stream left for visitors (limits.max_streams and reserved_streams)",
            )
        if visit is None or visit.way == "http":
            return  # `HttpVisit.admit` has checked each of its requests
        if (refusal := crowd_refusal(visit, limits)) is not None:
            raise Refused(refusal)

    def is_tenant(self, name: str) -> bool:
        """Whether `name` is a tenant, so that host names ending in `--name` are its devices'."""
        return self._devices.is_tenant(name)

    def named(self, label: str) -> str:
        """The name of the device for a label of a host name, which may be its serial number."""
        return self._devices.named(label)

    @property
    def reaches_others(self) -> bool:
        """Whether devices may be on other nodes."""
        return self._store.reaches_others

    async def look_for(self, device: str) -> None:
        """Look up a device that may be on another node, so that calls that do not wait know it."""
        if self._devices.find(device) is not None:
            await self._store.find_device(device)

    def elsewhere(self, device: str) -> str | None:
        """The name of the other node that has the device's session. Empty where this node is as
        good as any, None where that is not known: `look_for` would tell.
        """
        if not self._store.reaches_others:
            return ""
        known = self._devices.find(device)
        if known is None or not known.enabled:
            return ""
        handle = self._store.live_device(device)
        return handle.elsewhere if handle is not None else None

    def is_own(self, device: str, session: Session) -> bool:
        """Whether this is the device's own session, and not one with the node that has it."""
        handle = self._store.live_device(device)
        return isinstance(handle, LocalHandle) and handle.session is session

    def session_now(self, device: str) -> Session | None:
        """The device's session, if it may be reached, is on this node, and has a free stream for a
        visitor; without waiting.
        """
        handle = self.handle_now(device)
        return handle.session if handle is not None else None

    def response_timeout(self, device: str, service: str | None) -> float | None:
        """Seconds in which the service's target must begin an answer, where the agent sets its own
        for the service.
        """
        handle = self._store.live_device(device)
        return handle.timeouts.get(service) if handle is not None else None

    def handle_now(self, device: str) -> LocalHandle | None:
        """The same session as the store's handle."""
        known = self._devices.find(device)
        if known is None or not known.enabled:
            return None
        handle = self._store.live_device(device)
        if not isinstance(handle, LocalHandle) or not handle.has_room(self.reserved_streams):
            return None
        return handle

    def there_now(self, device: str) -> SessionHandle | None:
        """The device's session on another node, if it is known and may be reached."""
        known = self._devices.find(device)
        if known is None or not known.enabled:
            return None
        handle = self._store.live_device(device)
        return None if isinstance(handle, LocalHandle) else handle

    async def _find(self, device: str, limits: IngressLimits) -> SessionHandle:
        known = self._devices.find(device)
        if known is None and self.groups.find(device) is not None:
            message = "No device has its label."
            retry_after = OFFLINE_RETRY_AFTER
            raise Refused(Refusal(503, "device-offline", message, retry_after=retry_after))
        if known is None:
            message = f"There is no device {device} here."
            raise Refused(Refusal(404, "unknown-device", message))
        if not known.enabled:
            message = f"Device {device} is disabled in the proxy's configuration."
            if known.registration is not None:
                message = f"Device {device} may not be reached: {known.registration.refused}."
            raise Refused(Refusal(403, "device-disabled", message))
        handle = await self._store.find_device(device)
        if handle is None and (lost_at := self._store.lost_at(device)) is not None:
            handle = await self._store.wait_for_device(device, lost_at + limits.reconnect_wait)
        if handle is None:
            raise self._offline(device)
        return handle

    def _offline(self, device: str) -> Refused:
        seen = self._store.last_seen(device)
        when = "it has not connected since the proxy started"
        if self._store.reaches_others:  # and one of them may have had it
            when = "it is not connected, and it is not known when it was"
        if seen is not None:
            when = f"it was last seen on {format_datetime(seen, usegmt=True)}"
            if reason := self._store.offline_reason(device):
                when += f" ({reason})"
        message = f"Device {device} is offline: {when}. Check its power, network and agent."
        return Refused(Refusal(503, "device-offline", message, retry_after=OFFLINE_RETRY_AFTER))


@dataclass(frozen=True, slots=True)
class IngressSettings:
    """The settings of a visitor's connection; a reload makes new ones."""

    domain: str = "localhost"
    trusted: TrustedProxies = field(default_factory=TrustedProxies)
    limits: IngressLimits = field(default_factory=IngressLimits)
    tls: ssl.SSLContext | None = None
    parent_cookies: bool = False
    names: KnownNames = field(default_factory=KnownNames)
    """The cache of destinations under this domain."""

    least_patience: float = field(init=False)
    """The shortest of the times that a visit in the pump may wait, in seconds."""

    def __post_init__(self) -> None:
        least = min(PATIENCE[what](self.limits) for what in IN_THE_PUMP)
        object.__setattr__(self, "least_patience", least)

    @property
    def scheme(self) -> str:
        """The scheme of visitors' URLs."""
        return "http" if self.tls is None else "https"


def _busy(device: str, reason: str, why: str) -> Refused:
    message = f"Device {device} {why}. Try again in a moment."
    return Refused(Refusal(503, reason, message, retry_after=BUSY_RETRY_AFTER))
