"""The running gateway: its listener, its connections, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import asyncssh
import msgspec
import trio

from tunnelmux.backend.proxies import Proxies
from tunnelmux.config import InvalidSetting
from tunnelmux.config.gateway import GatewayConfig
from tunnelmux.config.private_file import write_private
from tunnelmux.errors import ConfigError, NoSuchRecord, RegistryError
from tunnelmux.gateway.authority import Access, Authority
from tunnelmux.gateway.certificates import Authorities
from tunnelmux.gateway.confirmation import Confirmations
from tunnelmux.gateway.connection import PersonConnection
from tunnelmux.gateway.devices import Devices as DeviceSockets
from tunnelmux.gateway.failures import Failures
from tunnelmux.gateway.file_record import FileRecord
from tunnelmux.gateway.forwarding import Forward
from tunnelmux.gateway.guest import Bridge
from tunnelmux.gateway.recording import Recording, RecordingStopped
from tunnelmux.gateway.recording_space import RecordingSpace, remove_old
from tunnelmux.gateway.relay import PersonSession, Request
from tunnelmux.gateway.side_channels import SideChannel
from tunnelmux.gateway.slow_lane import SlowLane
from tunnelmux.gateway.upstream import CIPHERS, KEY_EXCHANGES
from tunnelmux.gateway.windows import WINDOW, window_among
from tunnelmux.http.fields import TrustedProxies
from tunnelmux.observability import BoundedLines, get_logger
from tunnelmux.printable import said
from tunnelmux.registry import (
    Actor,
    Change,
    Devices,
    Recorded,
    RecordedEnd,
    Recordings,
    RecordLimits,
    Registry,
    Right,
    SshRules,
    open_registry,
)
from tunnelmux.registry.audit_details import shortened
from tunnelmux.registry.ids import format_time, new_id
from tunnelmux.transports.admission import Admission, Place, source_of
from tunnelmux.transports.lobby import Lobby
from tunnelmux.transports.proxy_protocol import BadProxyHead, read_head
from tunnelmux.transports.tcp import listening_socket

__all__ = ["Gateway", "RunningGateway", "read_host_key", "serve_gateway"]

_log = get_logger("gateway")

_LAST_NOTES = 5.0
# Seconds at the end for writing down how the last sessions and recordings ended.

_TIDY = 3600.0
# Seconds between two searches for recordings that are old enough to remove.

_HEAD_TIMEOUT = 10.0
# Seconds for a load balancer's PROXY head, which it sends as soon as it has connected.

_HOST_KEY = "ssh_host_ed25519_key"


class Gateway:
    """The connections, and what all of them share."""

    def __init__(self, config: GatewayConfig, registry: Registry, bridge: Bridge) -> None:
        """Raises ConfigError for an unusable file."""
        self.config = config
        self.bridge = bridge
        self.registry = registry
        self.authority = Authority(registry, cast("list[Right]", config.access.standing_rights))
        self.confirmations = Confirmations(registry)
        self.authorities: Authorities | None = None
        if config.access.authority_file is not None:
            self.authorities = Authorities(config.access.authority_file)
        self.proxies = Proxies(registry, config.proxies)
        self.devices = DeviceSockets(bridge, self.proxies, config.limits.connect_timeout)
        state_dir = config.gateway.state_dir
        self.recordings: Path = config.recording.folder or state_dir / "recordings"
        rules = config.recording
        self._space = RecordingSpace(self.recordings, rules.max_bytes_per_tenant, rules.min_free)
        self.lines = BoundedLines("gateway")
        self.failures = Failures(config.limits.max_failures, config.limits.failure_period)
        self.connections: set[PersonConnection] = set()
        self.looks = 0
        """How often uses were judged again, because the registry had changed. What is just being
        opened is no use yet: it looks for itself if this has grown meanwhile."""
        self.no_connections = trio.Event()
        self._nothing_left()

    # -- called by connections, in asyncio ------------------------------------------------------

    def logged_in(self, connection: PersonConnection) -> None:
        """A person or a device has logged in."""
        self.connections.add(connection)
        self.failures.forgive(connection.address)
        self.bridge.spawn(self._note_login, connection)

    def left(self, connection: PersonConnection, *, failed: bool) -> None:
        """A connection is over."""
        if failed:
            source = source_of(connection.address)
            self.lines.write("ssh login failed", source, address=connection.address)
            self.bridge.soon(self.failures.count, connection.address)
        self.connections.discard(connection)
        if not self.connections:
            self.bridge.soon(self._nothing_left)

    def window_for(self, peer: str) -> int:
        """The window of one more channel of this person or device, in bytes."""
        return window_among(
            one
            for connection in self.connections
            if connection.peer == peer
            for one in connection.carriers()
        )

    async def new_recording(
        self,
        connection: PersonConnection,
        access: Access,
        account: str,
        session: PersonSession,
        tenant: SshRules,
    ) -> Recording:
        """Begin a recording. Raises RecordingStopped."""
        now = datetime.now(UTC)
        request = session.request
        rules = self.config.recording
        recorded = Recorded(
            id=new_id(),
            device_id=access.device.id,
            device_label=access.device.label,
            user_id=connection.person.user_id,
            user_name=connection.person.name,
            account=account,
            address=connection.address,
            lease_id=access.lease_id,
            kind=request.kind,
            command=request.text,
            gateway=socket.gethostname(),
            began=now,
            expires=now + timedelta(seconds=rules.keep),
        )
        path = self.recordings / recorded.file(access.tenant_id)
        about = {
            "person": connection.person.name,
            "user": connection.person.user_id,
            "address": connection.address,
            "tenant": access.tenant_id,
            "device": access.device.label,
            "device_id": access.device.id,
            "account": account,
            "lease": access.lease_id,
            "kind": request.kind,
            "command": request.text,
            "began": format_time(now),
        }

        def stopped(problem: str) -> None:
            if (tenant.on_recording_failure or rules.on_failure) == "stop":
                session.cut(f"this session cannot be recorded any more: {problem}")
            else:
                session.tell(f"this session is not recorded any more: {problem}")

        recording = Recording(path, about, rules.max_bytes, self._space, session.room, stopped)
        self._begin(recording, request, access)
        try:
            await connection.lane.in_trio(self._recordings_of(access).begin, recorded)
        except (RegistryError, NoSuchRecord) as exc:
            await recording.discard()
            raise RecordingStopped("no recording can be listed now: try again") from exc
        return recording

    def _begin(self, recording: Recording, request: Request, access: Access) -> None:
        columns, rows, *_ = request.size
        try:
            recording.begin(columns, rows, request.term)
        except RecordingStopped as exc:
            tenant = access.tenant_id
            self.lines.write(
                "recording refused", tenant, level="error", tenant=tenant, problem=str(exc)
            )
            raise

    def new_file_record(
        self, connection: PersonConnection, access: Access, recording: Recording
    ) -> FileRecord:
        """The record of an sftp session."""

        def write(lines: list[str]) -> None:
            details: dict[str, object] = {"files": lines, "recording": recording.path.stem}
            self._over("ssh files", "files", connection, access, details)

        return FileRecord(recording, self.config.limits.max_file_lines, write)

    def session_over(
        self, connection: PersonConnection, session: PersonSession, access: Access
    ) -> None:
        """A session has ended: finish its recording, and write it down."""
        opened = session.opened
        recording = opened.recording if opened is not None else None
        if opened is not None and opened.files is not None:
            opened.files.end()
        details: dict[str, object] = {
            "kind": session.request.kind,
            "text": session.request.text,
            "to_device": session.sent,
            "from_device": session.received,
        }
        if session.end_reason:
            details["reason"] = session.end_reason
        if recording is not None:
            details["recording"] = recording.path.stem
            self.bridge.start(self._end_recording(connection, recording, access))
        self._over("ssh session over", "session", connection, access, details)

    async def _end_recording(
        self, connection: PersonConnection, recording: Recording, access: Access
    ) -> None:
        ended = datetime.now(UTC)
        await recording.close({"ended": format_time(ended)})
        end = RecordedEnd(
            ended=ended,
            size=recording.size,
            sha256=recording.sha256,
            problem=recording.problem,
        )
        recordings = self._recordings_of(access)
        try:
            await connection.lane.in_trio(recordings.end, recording.path.stem, end)
        except (RegistryError, NoSuchRecord) as exc:
            # The list shows it as still going on; its own .json file says how it ended.
            _log.error("not written down", what="recording", problem=str(exc))

    async def ssh_rules_of(self, connection: PersonConnection, access: Access) -> SshRules:
        """The tenant's rules for SSH sessions; raises RecordingStopped."""
        program = Actor.program("tunnelmux-gateway")
        try:
            return await connection.lane.in_trio(
                self.registry.tenant(access.tenant_id, program).ssh.find
            )
        except RegistryError as exc:
            problem = "how sessions are recorded here cannot be looked up now: try again"
            raise RecordingStopped(problem) from exc

    def devices_of(self, access: Access) -> Devices:
        """The registry's devices of the tenant, which hold the host keys."""
        program = Actor.program("tunnelmux-gateway")
        return self.registry.tenant(access.tenant_id, program).devices

    def _recordings_of(self, access: Access) -> Recordings:
        person = access.person
        actor = Actor(kind="user", id=person.user_id, name=person.name)
        return self.registry.tenant(access.tenant_id, actor).recordings

    def forward_over(
        self,
        connection: PersonConnection,
        forward: Forward,
        access: Access,
        service: str,
        seconds: float,
    ) -> None:
        """A forward has ended: write it down."""
        details: dict[str, object] = {
            "service": service,
            "to_device": forward.sent,
            "from_device": forward.received,
            "seconds": round(seconds, 3),
            "recording": "none: this is sealed",
        }
        self._over("ssh forward over", "forward", connection, access, details)

    def side_channel_over(
        self, connection: PersonConnection, channel: SideChannel, access: Access
    ) -> None:
        """A connection to a person's agent or display has ended: write it down."""
        details: dict[str, object] = {
            "what": channel.kind,
            "to_device": channel.sent,
            "from_device": channel.received,
            "recording": "none: this is not recorded",
        }
        self._over("ssh side channel over", "forward", connection, access, details)

    def _over(
        self,
        event: str,
        what: str,
        connection: PersonConnection,
        access: Access,
        details: dict[str, object],
    ) -> None:
        about: dict[str, Any] = {"person": access.person.name, "device": access.device.label}
        about |= shortened(details)
        if access.lease is None:
            _log.info(event, **about)  # of what an operator does without a lease, nothing else says
        else:
            self.lines.write(event, access.person.name, **about)
        connection.lane.spawn(self.authority.note, access, connection.address, what, details)

    # -- in Trio --------------------------------------------------------------------------------

    def _nothing_left(self) -> None:
        if not self.connections:
            self.no_connections.set()
            self.no_connections = trio.Event()

    async def _note_login(self, connection: PersonConnection) -> None:
        if connection.tunnel is not None:
            return
        try:
            await self.authority.logged_in(connection.person, connection.address)
        except RegistryError as exc:
            _log.warning("not written down", what="login", problem=str(exc))

    async def follow(self) -> NoReturn:
        """Check open sessions and forwards again whenever the registry has changed."""
        number: int | None = None
        async with self.registry.changes.watch() as watch:
            while True:
                try:
                    if number is None:
                        number = await self.registry.changes.latest()
                        await self._judge_again(None)
                    else:
                        changes = await self.registry.changes.after(number)
                        if changes is None:
                            number = None
                            continue
                        if changes:
                            await self._judge_again(changes)
                            number = changes[-1].number
                            continue
                except RegistryError as exc:
                    # Sessions go on meanwhile; each lease still ends by its timer.
                    _log.warning("changes not read", problem=str(exc))
                    await trio.sleep(1)
                await watch.wait()

    async def _judge_again(self, changes: list[Change] | None) -> None:
        touched = None if changes is None else {change.object_id for change in changes}
        self.looks += 1
        for connection in list(self.connections):
            for use, (access, _) in list(connection.uses.items()):
                if touched is None or touched & _objects_of(access):
                    again = await self.authority.again(access, connection.address)
                    connection.rejudged(use, again)
            tunnel = connection.tunnel
            if tunnel is not None and (touched is None or touched & tunnel.rests_on):
                found = await self.registry.ssh_devices.find(tunnel.device.key.fingerprint)
                tunnel.rejudged(found)

    async def tidy(self) -> NoReturn:
        """Remove recordings that are old enough and count the others, at the start and hourly."""
        while True:
            try:
                self._space.count()
                tidied = await trio.to_thread.run_sync(
                    remove_old, self.recordings, self.config.recording.keep
                )
            except OSError as exc:
                _log.warning("old recordings not removed", problem=str(exc.strerror))
            else:
                self._space.counted(tidied.left)
                if tidied.removed:
                    _log.info("old recordings removed", files=tidied.removed)
            await trio.sleep(_TIDY)


def _objects_of(access: Access) -> set[str]:
    lease = {access.lease.id} if access.lease is not None else set()
    return lease | {access.device.id, access.person.user_id, access.tenant_id}


class Listener:
    """Accepts connections and hands them to asyncssh."""

    def __init__(self, gateway: Gateway, options: Any) -> None:
        limits = gateway.config.limits
        self._gateway = gateway
        self._options = options
        self._allowed = gateway.config.gateway.allow
        self._networks = TrustedProxies.parse(self._allowed)
        self._balancers = TrustedProxies.parse(gateway.config.gateway.trusted_proxies)
        self._admission = Admission(
            "gateway.listen",
            limit=limits.max_connections,
            per_address=limits.max_connections_per_address,
            exempt=self._balancers,
        )
        # Until its log-in a connection gives way to newer ones: strangers send some bytes too.
        self._lobby = Lobby(bytes_count=False)
        self._slow_lane = SlowLane()

    async def accept(self, listener: trio.socket.SocketType) -> NoReturn:
        """For as long as the gateway takes connections."""
        async with trio.open_nursery() as nursery:
            # asyncssh takes a millisecond for each connection, so it gets only those that have
            # sent something, or wait for its greeting.
            nursery.start_soon(self._lobby.run)
            nursery.start_soon(self._slow_lane.run)
            await self._accept_all(listener, nursery)
        raise AssertionError("unreachable")

    async def _accept_all(
        self, listener: trio.socket.SocketType, nursery: trio.Nursery
    ) -> NoReturn:
        while True:
            try:
                sock, address = await listener.accept()
            except OSError as exc:
                _log.error("connection not accepted", problem=str(exc.strerror))
                await trio.sleep(0.1)
                continue
            host = address[0].removeprefix("::ffff:")
            if host in self._balancers:
                self._read_head(sock, f"{host}:{address[1]}", nursery)
            else:
                self._take(sock, host)

    def _read_head(
        self, sock: trio.socket.SocketType, balancer: str, nursery: trio.Nursery
    ) -> None:
        """Take a load balancer's connection once its PROXY head says who is behind it."""
        place = self._admission.enter(balancer)
        if place is None:
            sock.close()
            return

        async def read() -> None:
            try:
                with trio.fail_after(_HEAD_TIMEOUT):
                    host = await read_head(sock)
            except trio.ClosedResourceError:
                pass  # another connection got its place
            except (BadProxyHead, OSError, trio.TooSlowError) as exc:
                problem = str(exc) or f"no head came within {_HEAD_TIMEOUT:g} s"
                self._gateway.lines.write(
                    "no PROXY protocol head",
                    balancer.rpartition(":")[0],
                    level="warning",
                    address=balancer,
                    problem=problem,
                )
                sock.close()
            else:
                place.leave()
                self._take(sock, host or balancer.rpartition(":")[0])
            finally:
                place.leave()

        place.on_give_way = sock.close  # which ends `read` too
        nursery.start_soon(read)

    def _take(self, sock: trio.socket.SocketType, host: str) -> None:
        """Take a connection from this address, if there may be one."""
        if self._allowed and host not in self._networks:
            self._gateway.lines.write(
                "ssh connection refused",
                source_of(host),
                address=host,
                reason="not in gateway.allow",
            )
            sock.close()
        elif (place := self._admission.enter(host)) is None:
            sock.close()
        else:
            raw = socket.socket(fileno=sock.detach())
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            begin = partial(self._begin, raw, host, place)
            if self._gateway.failures.are_too_many(host):
                begin = partial(self._slow_lane.enter, raw, place, begin)
            self._lobby.enter(raw, place, begin)

    def _begin(self, sock: socket.socket, host: str, place: Place) -> None:
        task = self._gateway.bridge.start(self._serve(sock, host, place))
        # Never by closing the socket: asyncio would go on with its descriptor, which the next
        # connection gets.
        place.on_give_way = task.cancel
        task.add_done_callback(lambda _: sock.close())

    async def _serve(self, sock: socket.socket, host: str, place: Place) -> None:
        """One connection, in asyncio, until it is over or gives way (cancelled)."""
        connection = PersonConnection(self._gateway, host)
        try:
            with place:
                running = await asyncssh.run_server(
                    sock, options=self._options, server_factory=lambda: connection
                )
                place.has_spoken()
                try:
                    await running.wait_closed()
                finally:
                    running.abort()
                    await running.wait_closed()
        except (OSError, asyncssh.Error, TimeoutError, ValueError) as exc:
            _log.debug("ssh connection failed", address=host, problem=said(str(exc)))
        except Exception as exc:  # noqa: BLE001  one connection's failure is its own
            _log.error("unhandled error in connection", address=host, exc_info=exc)


class RunningGateway:
    """A gateway that takes connections."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        self.gateway = gateway
        self.port = port
        """The port it listens on: the configured one, or what the system chose for 0."""
        self.is_leaving = trio.Event()
        self.has_left = trio.Event()

    async def drain(self, grace: float) -> None:
        """Take no new connection; return when all are over, or cut after `grace` seconds."""
        self.is_leaving.set()
        with trio.move_on_after(grace):
            while self.gateway.connections:
                await self.gateway.no_connections.wait()
        for connection in list(self.gateway.connections):
            connection.end("the gateway is stopped for a moment")
        await self.has_left.wait()


async def serve_gateway(
    config: GatewayConfig,
    loop: asyncio.AbstractEventLoop,
    *,
    task_status: trio.TaskStatus[RunningGateway] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until it is drained. Raises ConfigError, RegistryAway or RegistryFailed."""
    async with _running(config, loop) as running:
        task_status.started(running)
        await running.is_leaving.wait()
        # `drain` gives open connections their grace, and then ends them.
        while running.gateway.connections:
            await running.gateway.no_connections.wait()
        with trio.move_on_after(_LAST_NOTES):
            await running.gateway.bridge.settle()
    running.has_left.set()


@contextlib.asynccontextmanager
async def _running(
    config: GatewayConfig, loop: asyncio.AbstractEventLoop
) -> AsyncIterator[RunningGateway]:
    key = await trio.to_thread.run_sync(read_host_key, config.gateway.state_dir)
    listener = trio.socket.from_stdlib_socket(
        listening_socket("gateway.listen", config.gateway.address)
    )
    async with (
        open_registry(
            config.registry.require_url(),
            migrate=config.registry.migrate,
            limits=RecordLimits(
                audit_per_day=config.registry.audit_per_day,
                audit_per_day_of_tenant=config.registry.audit_per_day_of_tenant,
            ),
            **_pool(config),
        ) as registry,
        trio.open_nursery() as nursery,
    ):
        bridge = Bridge(loop, nursery)
        gateway = Gateway(config, registry, bridge)
        options = await bridge.in_asyncio(_options(config, key))
        accepting = trio.CancelScope()
        async with gateway.proxies.keeping_connections():
            nursery.start_soon(gateway.follow)
            nursery.start_soon(gateway.tidy)
            nursery.start_soon(_accept, Listener(gateway, options), listener, accepting)
            port: int = listener.getsockname()[1]
            _log.info("gateway listening", address=f"{config.gateway.address.host}:{port}")
            try:
                yield RunningGateway(gateway, port)
            finally:
                nursery.cancel_scope.cancel()


async def _accept(
    listener: Listener, sock: trio.socket.SocketType, scope: trio.CancelScope
) -> None:
    with scope, sock:
        await listener.accept(sock)


def _pool(config: GatewayConfig) -> dict[str, Any]:
    settings = msgspec.structs.asdict(config.registry)
    return {name: settings[name] for name in ("connections", "timeout")}


def read_host_key(state_dir: Path) -> Any:
    """The gateway's host key, made where there is none. Raises ConfigError."""
    path = state_dir / _HOST_KEY
    try:
        if not path.exists():
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = asyncssh.generate_private_key("ssh-ed25519", comment="tunnelmux-gateway")
            write_private(path, key.export_private_key("openssh"))
            path.with_suffix(".pub").write_bytes(key.export_public_key("openssh"))
        return asyncssh.read_private_key(path)
    except (OSError, ValueError, asyncssh.Error) as exc:
        cause = exc.strerror if isinstance(exc, OSError) else "it holds no SSH key"
        raise ConfigError(
            f"gateway.state_dir: the host key {path} cannot be used ({cause}): make the folder "
            "writable for this program, or remove a damaged key"
        ) from exc


async def _options(config: GatewayConfig, key: Any) -> Any:
    host_keys: Any = [key]
    if config.gateway.host_certificate is not None:
        try:
            certificate = asyncssh.read_certificate(config.gateway.host_certificate)
        except (OSError, asyncssh.Error, ValueError) as exc:
            raise InvalidSetting(
                "host_certificate", f"{config.gateway.host_certificate} cannot be used ({exc})"
            ) from exc
        host_keys = [(key, certificate)]
    return await asyncssh.SSHServerConnectionOptions.construct(
        server_factory=asyncssh.SSHServer,
        server_host_keys=host_keys,
        encoding=None,
        line_editor=False,
        agent_forwarding=False,  # as X11: by `side_channels`, where the right is there
        x11_forwarding=False,
        allow_scp=False,
        encryption_algs=[*CIPHERS, "aes128-ctr"],
        kex_algs=list(KEY_EXCHANGES),
        compression_algs=None,
        login_timeout=config.limits.login_timeout,
        keepalive_interval=15,
        keepalive_count_max=3,
        gss_host=None,
        window=WINDOW,
        config=None,
        server_version="tunnelmux",
        x509_trusted_certs=None,
    )
