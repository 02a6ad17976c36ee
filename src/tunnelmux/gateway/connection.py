"""One SSH connection: the log-in, and the sessions and forwards that the person opens on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import asyncssh
from asyncssh import OPEN_ADMINISTRATIVELY_PROHIBITED as PROHIBITED
from asyncssh import OPEN_CONNECT_FAILED as FAILED
from asyncssh import OPEN_RESOURCE_SHORTAGE as SHORTAGE
from asyncssh import ChannelOpenError

from tunnelmux.errors import RegistryError
from tunnelmux.gateway.authority import Access, AccessDenied, Person
from tunnelmux.gateway.certificates import Identity
from tunnelmux.gateway.deadline import LEASE_OVER, Deadline
from tunnelmux.gateway.devices import DeviceAway
from tunnelmux.gateway.forwarding import Forward
from tunnelmux.gateway.guest import Lane
from tunnelmux.gateway.identity import Proof
from tunnelmux.gateway.relay import Opened, PersonSession
from tunnelmux.gateway.reverse import DeviceTunnel
from tunnelmux.gateway.side_channels import (
    PersonAgent,
    SideChannel,
    carry_back,
    take_requests,
)
from tunnelmux.gateway.upstream import SshdRefused, log_in
from tunnelmux.gateway.windows import WINDOW
from tunnelmux.registry import SshDevice
from tunnelmux.ssh.back_pressure import BackPressure
from tunnelmux.ssh.session_channel import channel_count, new_session_channel
from tunnelmux.transports.admission import source_of

if TYPE_CHECKING:
    from tunnelmux.gateway.app import Gateway

__all__ = ["TAKEN_BACK", "PersonConnection"]

_OF_TICKET = "."
# Stands for the device of the person's ticket. No device can have this name.

TAKEN_BACK = "your access was taken back"

_SLACK = 2.0
# Seconds by which another machine's clock may be ahead, so that it ends a lease first.

_UNSENT_BEFORE_LOGIN = 65_536
_UNSENT = 16 * WINDOW
# Bytes that a peer may leave unread, of which all but a little is the windows of its channels.

_CHANNELS = 2
# Channels of a connection for each session that it may have: those that are just being closed, and
# those that only the gateway uses. The other end must confirm the end of each.

_AGENT_TIMEOUT = 5.0
# Seconds that a person's own SSH agent has to list its keys.


_Use = PersonSession | Forward | SideChannel

_DeviceKey = tuple[str, str, str, bool, bool]
# Account, device, lease; whether sshd may forward the agent, and X11.


class PersonConnection(asyncssh.SSHServer):
    """asyncssh calls this about one connection, in asyncio."""

    def __init__(self, gateway: Gateway, address: str) -> None:
        self.address = address
        self.uses: dict[_Use, tuple[Access, Deadline]] = {}
        """The sessions and forwards that are open, with the access that allows each."""
        self._gateway = gateway
        self._bridge = gateway.bridge
        self._connection: Any = None
        self._pressure: BackPressure | None = None
        self._proof: Proof | None = None
        self._open: set[object] = set()
        self._is_lost = False
        self._leases: set[str] = {""}
        self._devices: dict[_DeviceKey, asyncio.Task[Any]] = {}
        self._has_logged_in = False
        self._tunnel: DeviceTunnel | None = None

    @property
    def person(self) -> Person:
        """The person; only after the log-in."""
        assert self._proof is not None
        assert self._proof.person is not None
        return self._proof.person

    @property
    def lane(self) -> Lane:
        """For calls of the registry; only after the log-in."""
        return self._bridge.lane(self.peer)

    @property
    def peer(self) -> str:
        """Whose turns its packets take: those of a person, or of a device."""
        assert self._proof is not None
        if self._proof.device is not None:
            return self._proof.device.key.device_id
        return self.person.user_id or self.person.lease_id

    # -- who ------------------------------------------------------------------------------------

    def connection_made(self, conn: Any) -> None:
        self._connection = conn
        limits = self._gateway.config.limits
        self._proof = Proof(
            self._bridge,
            self._gateway.authority,
            self._gateway.confirmations,
            self._gateway.lines,
            conn.validate_public_key,
            self.address,
            limits.max_tries,
            takes_devices=self._gateway.config.tunnels.url is not None,
        )
        conn.validate_public_key = self._proof.check
        self._pressure = BackPressure(
            conn, self._bridge.loop, _UNSENT_BEFORE_LOGIN, source_of(self.address)
        )

    def begin_auth(self, username: str) -> bool:
        assert self._proof is not None
        self._proof.begin(username)
        return True

    def public_key_auth_supported(self) -> bool:
        # Asked at each refusal, so that those who show nothing are counted too.
        if self._proof is not None:
            self._proof.count_refusal()
        self._end_if_spent()
        return True

    def validate_ca_key(self, _user: str, _key: Any) -> bool:
        return True  # `Proof.check` has judged the authority

    def validate_public_key(self, _user: str, _key: Any) -> bool:
        return True  # `Proof.check` has judged the key; asyncssh checks the signature

    def kbdint_auth_supported(self) -> bool:
        # Offered for tickets, and to tell people with an unknown key what to do.
        assert self._proof is not None
        proof = self._proof
        has_ticket = proof.login is not None and proof.login.ticket is not None
        return has_ticket or bool(proof.unknown) or proof.is_away or proof.login is None

    async def get_kbdint_challenge(self, _user: str, _lang: str, _submethods: str) -> Any:
        assert self._proof is not None
        if await self._proof.redeem():
            return True
        console = self._gateway.config.gateway.console_url
        code = await self._proof.ask() if console is not None else None
        if code is None:
            return ("", self._advice(), "", [])
        assert console is not None
        page = f"{console.rstrip('/')}/terminal?{urlencode({'code': code})}"
        advice = (
            f"tunnelmux: the key {self._proof.unknown} is not known yet.\n"
            f"Open {page}\n"
            "and confirm there that it is you. It is registered when you log in again."
        )
        return ("", advice, "", [("Then press Enter: ", True)])

    async def validate_kbdint_response(self, _user: str, _responses: Any) -> bool:
        assert self._proof is not None
        return await self._proof.wait_confirmed()

    def _advice(self) -> str:
        assert self._proof is not None
        proof = self._proof
        if proof.is_away:
            return "tunnelmux: who you are cannot be looked up now: try again in a moment"
        if proof.login is None:
            return "tunnelmux: write ssh ACCOUNT@DEVICE@GATEWAY, or ssh -J GATEWAY ACCOUNT@DEVICE"
        if proof.login.ticket is not None:
            return "tunnelmux: this ticket is not valid, or was used before: ask for a new one"
        where = self._gateway.config.gateway.console_url or "the console"
        return f"tunnelmux: the key {proof.unknown} is not known: register it at {where}"

    def _end_if_spent(self) -> None:
        if self._proof is not None and self._proof.is_spent:
            self._bridge.loop.call_soon(
                self._connection.disconnect,
                asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE,
                "too many attempts",
            )

    def auth_completed(self) -> None:
        self._has_logged_in = True
        assert self._pressure is not None
        self._pressure.most_unsent = _UNSENT
        self._pressure.belongs_to(self.peer)
        self._gateway.logged_in(self)
        if self._proof is not None and self._proof.device is not None:
            self._begin_device(self._proof.device)
            return
        name = self.person.name
        self._gateway.lines.write("ssh login", name, person=name, address=self.address)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._is_lost = True
        if self._tunnel is not None:
            self._tunnel.lost()
        for task in self._devices.values():
            task.cancel()
            task.add_done_callback(_close_connection)
        # From here on it counts: the key exchange is most of the work of a log-in.
        has_keys = self._connection.get_extra_info("send_cipher") is not None
        self._gateway.left(self, failed=has_keys and not self._has_logged_in)

    # -- devices --------------------------------------------------------------------------------

    @property
    def tunnel(self) -> DeviceTunnel | None:
        """The tunnel of the device that has logged in; None for a person."""
        return self._tunnel

    def _begin_device(self, device: SshDevice) -> None:
        self._tunnel = DeviceTunnel(
            self._bridge,
            self._gateway.lines,
            self._gateway.registry,
            self._gateway.config.tunnels,
            self._connection,
            device,
            self.address,
            self._gateway.config.limits.max_sessions,
        )
        self._tunnel.begin()

    def server_requested(self, listen_host: str, listen_port: int) -> Any:
        if self._tunnel is None:
            return False
        return self._tunnel.forward_requested(listen_host, listen_port)

    # -- sessions -------------------------------------------------------------------------------

    def session_requested(self) -> Any:
        self._need_room()
        if self._tunnel is not None:
            return self._new_session_channel(), self._tunnel.session_requested()
        login = self._proof.login if self._proof is not None else None
        assert login is not None
        device = login.device
        if not device and self.person.device_id:
            device = _OF_TICKET
        session = PersonSession(self, device, self._bridge.start)
        self._open.add(session)
        channel = self._new_session_channel()
        take_requests(channel, session)
        return channel, session

    def _window(self) -> int:
        return self._gateway.window_for(self.peer)

    def _new_session_channel(self) -> Any:
        return new_session_channel(self._connection, self._window())

    def carriers(self) -> Iterator[Any]:
        """The connections of asyncssh that carry this one's channels: its own, and those to
        devices."""
        yield self._connection
        for task in self._devices.values():
            if task.done() and not _is_gone(task):
                yield task.result()

    async def list_devices(self) -> list[str]:
        """Labels of the devices that the person may use now."""
        try:
            found = await self.lane.in_trio(
                self._gateway.authority.reachable, self.person, self.address
            )
        except RegistryError:
            return []
        return [access.device.label for access in found]

    async def open_device(self, session: PersonSession, device: str) -> Opened:
        """See SessionOwner."""
        gateway = self._gateway
        assert self._proof is not None
        assert self._proof.login is not None
        account = self._proof.login.account
        looks = gateway.looks
        access = await self._judge(device)
        access.need(session.request.kind)  # type: ignore[arg-type]
        if not access.recorded:
            raise AccessDenied(
                f"this lease is for sealed sessions: ssh -J GATEWAY {account}@{access.device.name}"
            )
        if gateway.config.access.ssh_service not in access.services:
            raise AccessDenied(f'"{access.device.name}" offers you no SSH')
        if not account:
            raise AccessDenied("say which account: ssh TICKET@ACCOUNT@GATEWAY")
        allowed = gateway.config.access.accounts
        if allowed and account not in allowed:
            raise AccessDenied(f'the account "{account}" is not one of {", ".join(allowed)}')
        details: dict[str, object] = {
            "what": session.request.kind,
            "account": account,
            "text": session.request.text,
        }
        rules = await gateway.ssh_rules_of(self, access)
        await self._use(access, details)
        carried = self._carried(session, access)
        connection = await self._device_connection(account, access, *carried)
        recording = await gateway.new_recording(self, access, account, session, rules)
        files = None
        if session.request.kind == "sftp":
            files = gateway.new_file_record(self, access, recording)
        self._watch(session, access)
        if looks != gateway.looks:
            await self._judge_again(access)
        gateway.lines.write(
            "ssh session begins",
            self.person.name,
            person=self.person.name,
            device=access.device.label,
            account=account,
            kind=session.request.kind,
            lease=access.lease_id,
        )
        return Opened(
            access,
            connection,
            recording,
            {
                b"TUNNELMUX_ACTOR": self.person.name.encode("utf-8"),
                b"TUNNELMUX_LEASE": access.lease_id.encode("ascii"),
            },
            gateway.config.limits.connect_timeout,
            session.request.x11 if carried[1] else None,
            files,
            records_input=rules.record_input and session.request.has_terminal,
            window=self._window(),
        )

    def session_over(self, session: PersonSession) -> None:
        """See SessionOwner."""
        self._open.discard(session)
        use = self.uses.pop(session, None)
        if use is not None:
            access, deadline = use
            deadline.cancel()
            self._gateway.session_over(self, session, access)

    async def why_lost(self, session: PersonSession) -> str:
        """See SessionOwner."""
        use = self.uses.get(session)
        if use is None:
            return "the device's connection ended"
        access = use[0]
        if access.ends is not None and (access.ends - datetime.now(UTC)).total_seconds() < _SLACK:
            return LEASE_OVER
        try:
            again = await self.lane.in_trio(self._gateway.authority.again, access, self.address)
        except RegistryError:
            again = access
        return TAKEN_BACK if again is None else "the device's connection ended"

    async def _judge(self, device: str) -> Access:
        try:
            return await self.lane.in_trio(
                self._gateway.authority.access,
                self.person,
                "" if device == _OF_TICKET else device,
                self.address,
            )
        except RegistryError as exc:
            raise AccessDenied("what you may cannot be looked up now: try again") from exc

    async def _use(self, access: Access, details: dict[str, object]) -> None:
        """Count one use of a lease by this connection."""
        if access.lease_id in self._leases:
            return
        try:
            await self.lane.in_trio(self._gateway.authority.use, access, self.address, details)
        except RegistryError as exc:
            raise AccessDenied("your use of the lease cannot be written down now") from exc
        self._leases.add(access.lease_id)

    def _carried(self, session: PersonSession, access: Access) -> tuple[bool, bool]:
        """Whether the person's agent and display are forwarded to the device: they must ask for it
        and have the right."""
        asked = {"agent": session.request.wants_agent, "x11": session.request.x11 is not None}
        if not self._has_certificates(access):
            asked["agent"] = False  # the gateway itself uses the agent, and does not forward it
        for right, name in (("agent", "your SSH agent"), ("x11", "X11")):
            if asked[right] and right not in access.rights:
                session.tell(f"{name} is not forwarded: that needs the right {right} in a lease")
                asked[right] = False
        return asked["agent"], asked["x11"]

    def _has_certificates(self, access: Access) -> bool:
        """Whether the gateway logs in by a certificate. A device that made a code has agreed to the
        code's key only, which is in the person's agent."""
        return self._gateway.authorities is not None and not access.person.lease_id

    async def _device_connection(self, account: str, access: Access, agent: bool, x11: bool) -> Any:
        """The connection to the device's sshd: one for all sessions that ask for the same."""
        key = (account, access.device.id, access.lease_id, agent, x11)
        task = self._devices.get(key)
        if task is not None and task.done() and not _is_gone(task) and self._is_silent(task):
            task.result().abort()
            task = None
        if task is None or (task.done() and _is_gone(task)):
            task = self._bridge.loop.create_task(self._connect(account, access, agent, x11))
            self._devices[key] = task
        return await asyncio.shield(task)

    def _is_silent(self, task: asyncio.Task[Any]) -> bool:
        """Whether the device's sshd leaves more channels without an answer than it has good ones:
        asyncssh keeps each until the end of the connection."""
        return channel_count(task.result()) >= _CHANNELS * self._gateway.config.limits.max_sessions

    async def _connect(self, account: str, access: Access, agent: bool, x11: bool) -> Any:
        connection = await self._log_in(account, access, agent, x11)
        carry_back(
            connection,
            self._connection,
            lambda kind: self._begin_side_channel(kind, access),
            lambda session: session.x11_failed(),
            self._window,
            agent=agent,
            x11=x11,
        )
        return connection

    def _begin_side_channel(self, kind: str, access: Access) -> SideChannel:
        self._need_room()

        def over(channel: SideChannel) -> None:
            self._open.discard(channel)
            use = self.uses.pop(channel, None)
            if use is not None:
                use[1].cancel()
                self._gateway.side_channel_over(self, channel, use[0])

        channel = SideChannel(kind, over)
        self._open.add(channel)
        self._watch(channel, access)
        self._bridge.start(self._judge_again(access))  # as old as the device's connection
        return channel

    async def _log_in(self, account: str, access: Access, agent: bool, x11: bool) -> Any:
        gateway = self._gateway
        own_agent: Any = None
        if gateway.authorities is not None and self._has_certificates(access):
            identity = Identity(self.person.name, access.lease_id)
            pair = gateway.authorities.certify(
                access.tenant_id, account, identity, datetime.now(UTC), agent=agent, x11=x11
            )
            keys: list[Any] = [pair]
        else:
            access.need("agent")
            own_agent, keys = await self._agent_keys()
        try:
            device_socket = await self._bridge.in_trio(
                gateway.devices.connect,
                access.device.label,
                gateway.config.access.ssh_service,
                access.lease_id,
            )
            return await log_in(
                self.lane,
                device_socket,
                account,
                keys,
                gateway.devices_of(access),
                access.device,
                self.peer,
                timeout=gateway.config.limits.connect_timeout,
            )
        except DeviceAway as exc:
            raise SshdRefused(f'"{access.device.name}": {exc}') from exc
        finally:
            if own_agent is not None:
                own_agent.close()  # otherwise the person's ssh would never end

    async def _agent_keys(self) -> tuple[Any, list[Any]]:
        agent: Any = None
        keys: list[Any] = []
        try:
            connecting = asyncssh.connect_agent(PersonAgent(self._connection))
            agent = await asyncio.wait_for(connecting, _AGENT_TIMEOUT)
            keys = list(await asyncio.wait_for(agent.get_keys(), _AGENT_TIMEOUT))
        except (OSError, asyncssh.Error, TimeoutError):
            pass  # treated like an agent without keys
        if not keys:
            raise SshdRefused(
                "the gateway logs in to the device with your own SSH agent: use ssh -A"
            )
        return agent, keys

    # -- forwards -------------------------------------------------------------------------------

    def connection_requested(
        self, dest_host: str, dest_port: int, _orig_host: str, _orig_port: int
    ) -> Any:
        if self._tunnel is not None:
            raise ChannelOpenError(PROHIBITED, "a device offers services, and reaches none")
        self._need_room()
        channel = self._connection.create_tcp_channel(None, "strict", self._window())
        self._open.add(channel)
        return channel, self._open_forward(channel, dest_host, dest_port)

    async def _open_forward(self, channel: object, host: str, port: int) -> Forward:
        try:
            return await self._forward(channel, host, port)
        except AccessDenied as exc:
            self._open.discard(channel)
            raise ChannelOpenError(PROHIBITED, str(exc)) from exc
        except DeviceAway as exc:
            self._open.discard(channel)
            raise ChannelOpenError(FAILED, str(exc)) from exc

    async def _forward(self, channel: object, host: str, port: int) -> Forward:
        gateway = self._gateway
        looks = gateway.looks
        try:
            access, service = await self.lane.in_trio(
                gateway.authority.forward, self.person, host, port, self.address
            )
        except RegistryError as exc:
            raise AccessDenied("what you may cannot be looked up now: try again") from exc
        access.need("forward")
        if service == gateway.config.access.ssh_service and not access.sealed:
            raise AccessDenied(f"this lease is for recorded sessions: ssh ACCOUNT@{host}@GATEWAY")
        await self._use(access, {"what": "forward", "service": service})
        device_socket = await self._bridge.in_trio(
            gateway.devices.connect, access.device.label, service, access.lease_id
        )
        began = self._bridge.loop.time()

        def over(forward: Forward) -> None:
            self._open.discard(channel)
            use = self.uses.pop(forward, None)
            if use is not None:
                use[1].cancel()
            seconds = self._bridge.loop.time() - began
            gateway.forward_over(self, forward, access, service, seconds)

        forward = Forward(over)
        await device_socket.create_connection(lambda: forward.service)
        self._watch(forward, access)
        if looks != gateway.looks:
            await self._judge_again(access)
        if self._is_lost:  # asyncssh never asks for this one
            forward.connection_lost(None)
            raise DeviceAway("the connection is over")
        return forward

    # -- ends -----------------------------------------------------------------------------------

    def _need_room(self) -> None:
        most = self._gateway.config.limits.max_sessions
        if len(self._open) >= most:
            raise ChannelOpenError(SHORTAGE, f"{most} sessions and forwards are open here")
        if channel_count(self._connection) >= _CHANNELS * most:
            raise ChannelOpenError(SHORTAGE, "you leave the ends of channels without an answer")
        if self.lane.is_full:
            # What was given up before it began is still looked up: it has no place here any more.
            raise ChannelOpenError(SHORTAGE, "too many of your sessions are just being begun")

    def _watch(self, use: _Use, access: Access) -> None:
        deadline = Deadline(
            self._bridge.loop, partial(use.cut, LEASE_OVER), getattr(use, "tell", None)
        )
        deadline.set(access.ends)
        self.uses[use] = (access, deadline)

    async def _judge_again(self, access: Access) -> None:
        """Judge this access anew, with all that rests on it now. Their order is that in which they
        were begun: a session, which is told why it ends, comes before its side channels."""
        try:
            again = await self.lane.in_trio(self._gateway.authority.again, access, self.address)
        except RegistryError:
            for use in self._resting_on(access):
                use.cut("what you may cannot be looked up now: try again")
            return
        for use in self._resting_on(access):
            self.rejudged(use, again)

    def _resting_on(self, access: Access) -> list[_Use]:
        mine = (access.device.id, access.lease_id)
        return [
            use
            for use, (other, _) in self.uses.items()
            if (other.device.id, other.lease_id) == mine
        ]

    def rejudged(self, use: _Use, access: Access | None) -> None:
        """Take the new access of a session or forward; without one it ends."""
        if use not in self.uses:
            return
        if access is None:
            use.cut(TAKEN_BACK)
            return
        deadline = self.uses[use][1]
        deadline.set(access.ends)
        self.uses[use] = (access, deadline)

    def end(self, reason: str) -> None:
        """End all, and say why."""
        for use in list(self.uses):
            use.cut(reason)
        if self._tunnel is not None:
            self._tunnel.end(reason)
            return
        self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, reason)


def _is_gone(task: asyncio.Task[Any]) -> bool:
    if task.cancelled() or task.exception() is not None:
        return True
    return bool(task.result().is_closed())


def _close_connection(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
