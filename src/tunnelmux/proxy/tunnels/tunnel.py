"""The listener for agents: the handshake, and each session from its start to its end."""

from __future__ import annotations

import hashlib
import math
import secrets
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

import trio

from tunnelmux.config import InvalidSetting, Secret
from tunnelmux.config.rules import check_label
from tunnelmux.errors import ConnectError, ProtocolError, RegistryError
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import IngressLimits, Limits
from tunnelmux.mux import Session
from tunnelmux.observability import BoundedLines, RepeatedLines, get_logger
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.proxy.tunnels.enrolment import Enrolled, Enrolment, EnrolmentBusy
from tunnelmux.proxy.tunnels.figures import TunnelFigures
from tunnelmux.proxy.tunnels.invitations import InvitationRefused, NameRefused
from tunnelmux.proxy.tunnels.measuring import Measurements
from tunnelmux.proxy.tunnels.neighbours import (
    Neighbours,
    instance_of,
    refuse_double,
    tell_of_nodes,
)
from tunnelmux.proxy.tunnels.registered import RegisteredDevices
from tunnelmux.proxy.tunnels.rivals import Rivals
from tunnelmux.proxy.tunnels.said import Said, read_said
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.relay import abort
from tunnelmux.sessions import DeviceStore, LocalHandle
from tunnelmux.transports import (
    UpgradeRequest,
    WebSocketStream,
    accept_websocket,
    read_upgrade,
    start_server_tls,
)
from tunnelmux.transports.admission import Admission, Place
from tunnelmux.transports.handshake import Headers
from tunnelmux.transports.tcp import configure_socket, has_hung_up
from tunnelmux.transports.turns import Turns
from tunnelmux.wire import (
    CLOSE_REPLACED,
    DEVICE_FIELD,
    INSTANCE_FIELD,
    MEASURE_PATH,
    NODES_FIELD,
    PROVE_FIELD,
    PROVED,
    REPLACED_FIELD,
    RIVAL_FIELD,
    TOKEN_FIELD,
    TUNNEL_PATH,
    list_nodes,
)

__all__ = ["TunnelServer", "TunnelSettings"]

_log = get_logger("proxy.tunnel")

_SESSION_TOKEN_BYTES = 32

_LONGEST_ADDRESS = 120
# Bytes of a Close frame's reason, of at most 123 (RFC 6455 section 5.5).

_NO_HANDSHAKE = "no-handshake"
# Counted beside the reasons of refusals.

_DEVICE = DEVICE_FIELD.decode("ascii")
_PROVE = PROVE_FIELD.decode("ascii")

_REGISTRY_RETRY_AFTER = 2
# Retry-After for an agent while the registry cannot be asked about its token.

_LONGEST_CLAIM = 63
# Characters of a refused agent's name in the log: a device's name is not longer.

_DRAIN_RETRY_AFTER = 1
# Retry-After while this process shuts down: about the time of a restart.


@dataclass(frozen=True, kw_only=True)
class TunnelSettings:
    """The settings of handshakes and sessions; a reload replaces them."""

    path: str = TUNNEL_PATH
    tls: ssl.SSLContext | None = None
    limits: Limits = field(default_factory=Limits)
    ingress: IngressLimits = field(default_factory=IngressLimits)
    node: str = ""
    """The name of this node in its cluster, if it has one."""
    internal_url: str = ""
    """The URL of its internal API."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Admitted:
    device: KnownDevice
    token: Secret
    enrolled: bool = False
    replaced: bool = False
    said: Said = field(default_factory=Said)
    instance: str = ""
    """The name of the agent's process, if it keeps several sessions."""
    rival: str = ""
    """The address of another agent with this credential, if the two replace each other."""
    only_measures: bool = False
    """Whether it wants no session: the way is to be measured."""


class TunnelServer:
    """Admits agents and owns their sessions. `handle` serves one connection; the listener must
    first get a place for it from `admission`. `settings` and the admission's limits may be replaced
    at any time.
    """

    def __init__(
        self,
        *,
        devices: DeviceRegister,
        store: DeviceStore,
        settings: TunnelSettings,
        admission: Admission,
        enrolment: Enrolment | None = None,
        registered: RegisteredDevices | None = None,
    ) -> None:
        self.settings = settings
        self.admission = admission
        self.is_draining = False
        self.pump: DataPump | None = None
        """The pump for new sessions, where there is one."""
        self.neighbours: Neighbours | None = None
        """This proxy as a node of its cluster, if it is one."""
        self._devices = devices
        self._store = store
        self._enrolment = enrolment
        self.tell_enrolled: Callable[[], Awaitable[None]] | None = None
        """Tells the other processes of this proxy that a device has enrolled."""
        self.tell_left: Callable[[], None] | None = None
        """Called for each connection that has ended before its session began."""
        self._registered = registered
        self._live: set[LocalHandle] = set()
        self._rivals, self._measurements, self._turns = Rivals(), Measurements(), Turns()
        self._refusals = RepeatedLines("tunnel refused")
        self._failures = RepeatedLines("tunnel handshake failed")
        self._lines = BoundedLines("proxy.tunnel")
        # Without a bound for all of them: a fleet may connect within a minute.
        self._told = RepeatedLines("session started", in_all=math.inf)
        self.figures = TunnelFigures()
        """Counters of finished connections."""

    def figures_now(self) -> TunnelFigures:
        """The counters including live sessions."""
        return self.figures.with_live(self.sessions)

    @property
    def sessions(self) -> list[LocalHandle]:
        """The sessions whose connection has not ended, including replaced ones."""
        return list(self._live)

    async def handle(self, stream: trio.abc.Stream, remote: str, place: Place) -> None:
        """Serve one connection of an agent until it ends. Failures are logged, not raised."""
        had_session = False
        try:
            had_session = await self._serve(stream, remote, place)
        except ConnectError as error:
            self.figures.refused[_NO_HANDSHAKE] += 1
            if self._failures.may_write(place.source):
                _log.info("tunnel handshake failed", remote=remote, cause=str(error))
        finally:
            place.leave()
            if self.tell_left is not None and not had_session:
                self.tell_left()

    async def _serve(self, stream: trio.abc.Stream, remote: str, place: Place) -> bool:
        """Whether there was a session."""
        opening = None
        with trio.CancelScope() as handshake:
            place.on_give_way = handshake.cancel
            if not place.is_held:
                handshake.cancel(reason="it lost its place to others before its handshake")
            opening = await self._shake_hands(stream, remote, place)
        # The device is authenticated; only a few bytes are left to send.
        place.leave()
        if handshake.cancelled_caught:
            await abort(stream)
        if opening is None:
            return False
        admitted, accepted = opening
        if admitted.only_measures:
            await self._measurements.serve(
                admitted.device.name, accepted, self.settings.ingress, self.settings.limits
            )
            name = admitted.device.name
            self._lines.write("way measured", name, device=name, remote=remote)
            return False
        await self._store.expect(admitted.device.name)
        async with accepted as websocket:
            session = Session(
                websocket,
                is_client=False,
                limits=self.settings.limits,
                pump=self.pump,
                takes_streams=False,  # the proxy takes no streams from agents
            )

            def farewell(address: str) -> None:
                websocket.goodbye = (CLOSE_REPLACED, address[:_LONGEST_ADDRESS])

            return await self._hold(session, websocket, admitted, remote, farewell)

    async def _shake_hands(
        self, stream: trio.abc.Stream, remote: str, place: Place
    ) -> tuple[_Admitted, AbstractAsyncContextManager[WebSocketStream]] | None:
        """Do the handshake. Returns the device and a function that completes the connection; None
        when the agent was refused. Separate from the session so that the request's memory is freed.
        """
        settings = self.settings
        deadline = place.since + settings.ingress.handshake_timeout
        if isinstance(stream, trio.SocketStream):
            await self._hear(stream, place, settings.ingress.first_byte_timeout)
            self._turns.pace(stream, place)

        def time_left() -> float:
            return max(deadline - trio.current_time(), 0.0)

        if settings.tls is not None and isinstance(stream, trio.SocketStream):
            try:
                stream = await start_server_tls(stream, settings.tls, timeout=time_left())
            except ConnectError:
                self.figures.tls_failures += 1
                raise
        request = await read_upgrade(
            stream,
            path=settings.path,
            more_paths=[settings.path + MEASURE_PATH],
            timeout=time_left(),
        )
        try:
            admitted = await self._admit(request, remote)
        except Refused as refused:
            if refused.refusal.reason != PROVED:
                self.figures.refused[refused.refusal.reason] += 1
            await self._refuse(request, refused.refusal, remote, place)
            return None
        if admitted.only_measures:
            return admitted, accept_websocket(request, handshake_timeout=max(time_left(), 0.1))
        admitted, answer = self._answer(admitted, request, remote)
        return admitted, accept_websocket(
            request, headers=answer, handshake_timeout=max(time_left(), 0.1)
        )

    def _answer(
        self, admitted: _Admitted, request: UpgradeRequest, remote: str
    ) -> tuple[_Admitted, Headers]:
        """What the answer to the handshake says about the device."""
        answer: Headers = ()
        if admitted.enrolled:
            answer = ((TOKEN_FIELD, admitted.token.reveal().encode("ascii")),)
        if admitted.replaced:
            answer = (*answer, (REPLACED_FIELD, b"yes"))
        if rival := self._rival(admitted.device.name, request, remote):
            answer = (*answer, (RIVAL_FIELD, rival.encode("ascii", "replace")))
            admitted = replace(admitted, rival=rival)
        told = self.neighbours.nodes_told() if self.neighbours is not None else []
        if admitted.instance and told:
            answer = (*answer, (NODES_FIELD, list_nodes(told)))
        return admitted, answer

    async def _hear(self, stream: trio.SocketStream, place: Place, patience: float) -> None:
        """Wait for the first byte of a connection. Raises ConnectError where its agent is gone."""
        configure_socket(stream)
        if not await place.hear(stream, patience):
            raise ConnectError(f"it sent nothing within {patience:g} s")
        if has_hung_up(stream):
            # This process did not run for a while. The device is connected elsewhere by now, and a
            # session here would take the place of that one.
            raise ConnectError("it was gone before this proxy came to it")

    async def tell_of_nodes(self) -> None:
        """Tell agents of nodes that join, in a cluster; until cancelled."""
        if self.neighbours is not None:
            await tell_of_nodes(
                self.neighbours, lambda: self.sessions, lambda: self.settings.ingress
            )

    def forget_device(self, name: str) -> None:
        """Drop what is kept of a device that may not connect any more."""
        self._rivals.forget(name)

    def _rival(self, device: str, request: UpgradeRequest, remote: str) -> str | None:
        """The address of another agent with this credential, if the two replace each other in turn;
        logs it.
        """
        rival = self._rivals.connected(
            device,
            request.header(INSTANCE_FIELD.decode("ascii")),
            remote,
            others_live=self._store.live_device(device) is not None,
        )
        if rival is not None:
            self._lines.write(
                "two agents with one credential",
                device,
                level="warning",
                device=device,
                remote=remote,
                rival=rival,
                fix="they replace each other in turn, as after cloning a disk: give each machine a "
                "name and a token of its own",
            )
        return rival

    async def _refuse(
        self, request: UpgradeRequest, refusal: Refusal, remote: str, place: Place
    ) -> None:
        if refusal.reason != PROVED and self._refusals.may_write(place.source):
            # The name is not verified, but shows which machine to look at.
            claimed = (request.header(_DEVICE) or "")[:_LONGEST_CLAIM]
            # An agent that comes by a load balancer cannot know which node it will meet.
            write = _log.info if refusal.reason == "already-here" else _log.warning
            write(
                "tunnel refused",
                remote=remote,
                **({"claimed": claimed} if claimed.isprintable() and claimed else {}),
                status=refusal.status,
                reason=refusal.reason,
                cause=refusal.message,
            )
        headers = list(refusal.headers)
        if refusal.retry_after is not None:
            headers.append((b"Retry-After", b"%d" % refusal.retry_after))
        await request.refuse(refusal.status, refusal.reason, refusal.message, headers=headers)

    async def _admit(self, request: UpgradeRequest, remote: str) -> _Admitted:
        if self.is_draining:
            raise _refused(
                503,
                "proxy-draining",
                "this proxy is shutting down: connect again in a moment",
                retry_after=_DRAIN_RETRY_AFTER,
            )
        token = request.token
        if token is None:
            raise _unauthorized("no token came with the request: set proxy.token in agent.toml")
        device = self._devices.identify(token)
        if device is None and self._registered is not None:
            device = await self._look_up(self._registered, token)
        only_measures = request.path == self.settings.path + MEASURE_PATH
        if device is None:
            if only_measures:
                raise _unknown_token()
            return await self._enrol(request, token, remote)
        if not device.enabled:
            raise _refused(403, "device-disabled", _why_disabled(device))
        if only_measures:
            self._measurements.check_place(device.name, self.settings.ingress.max_measurements)
            return _Admitted(device=device, token=Secret(token), only_measures=True)
        refuse_double(request, self.neighbours)
        if self._registered is not None and device.registration is not None:
            await self._prove(self._registered, device, request, token)
        name = request.header(_DEVICE)
        # An agent does not know its tenant, which `name--tenant` has after the name.
        if name is not None and name not in (device.name, device.name.partition("--")[0]):
            # The token decides. But two devices with one token would replace each other for ever.
            self._lines.write(
                "agent calls itself by another name",
                device.name,
                level="warning",
                device=device.name,
                name=name[:_LONGEST_CLAIM],
            )
        return _Admitted(
            device=device,
            token=Secret(token),
            said=read_said(request),
            instance=instance_of(request),
        )

    async def _look_up(self, registered: RegisteredDevices, token: str) -> KnownDevice | None:
        try:
            return await registered.look_up(token)
        except RegistryError as error:
            # Not 401: the token may be that of a device that was just paired.
            raise _refused(
                503,
                "registry-away",
                f"this token cannot be checked at the moment: {error}",
                retry_after=_REGISTRY_RETRY_AFTER,
            ) from error

    async def _prove(
        self,
        registered: RegisteredDevices,
        device: KnownDevice,
        request: UpgradeRequest,
        token: str,
    ) -> None:
        """Record that the agent has used this token; raises Refused with 200 if it wants no
        session.
        """
        only_that = request.header(_PROVE) is not None
        try:
            await registered.prove(device, token)
        except RegistryError as error:
            if only_that:
                raise _refused(
                    503,
                    "registry-away",
                    f"this could not be stored: {error}",
                    retry_after=_REGISTRY_RETRY_AFTER,
                ) from error
        if only_that:
            raise _refused(200, PROVED, f'the token is valid, for device "{device.name}"')

    async def _enrol(self, request: UpgradeRequest, invitation: str, remote: str) -> _Admitted:
        unknown = _unknown_token()
        if (replaced := self._devices.identify_replaced(invitation)) is not None:
            raise _unauthorized(
                f'another machine joined as "{replaced.name}" in the place of this one (invite '
                "--replace): if that was not meant, look for who made that invitation, and join "
                "again with one of your own",
                reason="device-replaced",
            )
        name = request.header(_DEVICE)
        if self._enrolment is None or name is None:
            raise unknown
        try:
            check_label("device.name", name)
        except InvalidSetting as error:
            raise _refused(400, "bad-request", str(error)) from None
        if self._devices.is_configured(name):
            # Without an invitation a peer must not learn which names exist.
            if not await trio.to_thread.run_sync(self._enrolment.invitations.knows, invitation):
                raise unknown
            raise _refused(
                403,
                "forbidden",
                f'device "{name}" is in proxy.toml: give its token in agent.toml, or set another '
                "device.name",
            )
        enrolled = await self._use_up(self._enrolment, name, invitation)
        if enrolled is None:
            raise unknown
        self._devices.add_enrolled(enrolled.device)
        if self.tell_enrolled is not None:
            await self.tell_enrolled()
        if enrolled.replaced:
            await self._end_replaced(name, remote)
        else:
            _log.info("device enrolled", device=name, remote=remote)
        return _Admitted(
            device=enrolled.device,
            token=enrolled.token,
            enrolled=True,
            replaced=enrolled.replaced,
            said=read_said(request),
            instance=instance_of(request),
        )

    async def _use_up(self, enrolment: Enrolment, name: str, invitation: str) -> Enrolled | None:
        """What `Enrolment.enrol` returns; its failures as refusals."""
        try:
            return await enrolment.enrol(name, invitation)
        except InvitationRefused as error:
            raise _unauthorized(str(error), reason="token-expired") from None
        except NameRefused as error:
            raise _refused(403, "name-taken", str(error)) from None
        except EnrolmentBusy as error:
            raise _refused(
                503,
                "proxy-failed",
                f"the proxy could not store the new device ({error}): end that process; the "
                "invitation is still good, and is tried again",
            ) from error
        except OSError as error:
            raise _refused(
                503,
                "proxy-failed",
                f"the proxy could not store the new device ({error.strerror}): make room in "
                "its state directory, then make another invitation",
            ) from error

    async def take_enrolled(self) -> None:
        """Read the enrolled devices again: another process of this proxy has let one in. Sessions
        that it replaced end."""
        if self._enrolment is not None:
            for name in sorted(self._devices.replace_enrolled(self._enrolment.load())):
                await self._end_replaced(name, "")

    async def _end_replaced(self, name: str, remote: str) -> None:
        """End the session of a device that another one replaced by invitation."""
        before = [handle for handle in self._live if handle.device == name]
        _log.warning(
            "device replaced",
            device=name,
            remote=remote,
            before=before[0].remote_address if before else "",
            effect="the token it had until now is void",
        )
        for handle in before:
            await handle.close("another machine joined in its place (invite --replace)")

    def _handle_of(
        self,
        session: Session,
        admitted: _Admitted,
        remote: str,
        farewell: Callable[[str], None],
    ) -> LocalHandle:
        device = admitted.device
        handle = LocalHandle(
            session,
            # For callers of the internal API, who must not see the device's own token.
            token=secrets.token_urlsafe(_SESSION_TOKEN_BYTES),
            credential=_identity_of(admitted),
            device=device.name,
            user=device.registration.paired_by if device.registration is not None else "",
            remote_address=remote,
            farewell=farewell,
        )
        handle.node, handle.internal_url = self.settings.node, self.settings.internal_url
        if self.neighbours is not None:
            handle.instance = admitted.instance
        said = admitted.said
        handle.agent_version, handle.services = said.version, said.services
        handle.relayed = said.relayed
        handle.timeouts = said.timeouts
        handle.default_service = said.default_service
        return handle

    async def _hold(
        self,
        session: Session,
        websocket: WebSocketStream,
        admitted: _Admitted,
        remote: str,
        farewell: Callable[[str], None],
    ) -> bool:
        """Register the session, run it until it is over, and log it. Whether it was registered."""
        device = admitted.device
        started = trio.current_time()
        handle = self._handle_of(session, admitted, remote, farewell)
        self._live.add(handle)
        is_told = self._told.may_write(device.name)
        is_registered = False
        try:
            if self.is_draining:
                session.go_away()
            elif not self._devices.may_go_on(device):
                # A reload or the registry has changed the device since the token was checked.
                await handle.close("the device was removed or changed by a reload")
            elif has_hung_up(websocket):
                await handle.close("its agent was gone before the session began")
            else:
                await self._store.register(handle.token, handle)
                is_registered = True
                if is_told:
                    _log.info("session started", device=device.name, remote=remote)
                if self._registered is not None:
                    self._registered.session_began(
                        handle,
                        device,
                        agent=admitted.said.version,
                        services=admitted.said.services,
                        rival=admitted.rival,
                        serial=admitted.said.serial,
                        host_keys=admitted.said.host_keys,
                        assists=admitted.said.assists,
                    )
            await session.run()
            return is_registered
        finally:
            self._live.discard(handle)
            self.figures.add(handle)
            if self._registered is not None:
                self._registered.session_ended(handle)
            await self._store.unregister(handle.token, handle)
            if is_told:
                _log_end(handle, trio.current_time() - started)


def _refused(status: int, reason: str, message: str, *, retry_after: int | None = None) -> Refused:
    return Refused(Refusal(status, reason, message, retry_after))


def _identity_of(admitted: _Admitted) -> bytes:
    """Identifies the device over its sessions: a device of the registry may get a new token in
    between.
    """
    if admitted.device.registration is not None:
        return admitted.device.registration.device_id.encode("ascii")
    return hashlib.sha256(admitted.token.reveal().encode()).digest()


def _why_disabled(device: KnownDevice) -> str:
    if device.registration is not None:
        return (
            f'device "{device.name}" may not connect: {device.registration.refused}. Ask an '
            "operator of its tenant"
        )
    return f'device "{device.name}" is disabled: set enabled = true for it in proxy.toml'


def _unknown_token() -> Refused:
    return _unauthorized(
        "no device has this token; compare proxy.token in agent.toml with [[devices]] in proxy.toml"
    )


def _unauthorized(message: str, *, reason: str = "unauthorized") -> Refused:
    # RFC 9110 section 11.6.1: a 401 names how to authenticate.
    return Refused(Refusal(401, reason, message, headers=[(b"WWW-Authenticate", b"Bearer")]))


def _log_end(handle: LocalHandle, duration: float) -> None:
    session = handle.session
    error = session.error
    reason = handle.end_reason or "the agent closed it"
    log = _log.warning if isinstance(error, ProtocolError) else _log.info
    log(
        "session ended",
        device=handle.device,
        remote=handle.remote_address,
        duration=round(duration, 3),
        bytes_to_agent=session.bytes_sent,
        bytes_from_agent=session.bytes_received,
        reason=reason,
        **({"replaced_by": handle.replaced_by} if handle.replaced_by else {}),
    )
