"""Devices that have nothing but OpenSSH: what they forward with `-R` becomes their services.

    ssh -N -R ssh:22:localhost:22 -R web:80:localhost:80 SN123@GATEWAY
    ssh SN123@GATEWAY -R ssh:22:localhost:22 'assist --for 2h'

The gateway does not listen on any port for them. While the connection lasts, it is the device's
agent, with a tunnel to the proxy and a token that is good for this one log-in. A connection to a
service is a channel, which the device's own ssh joins to its target.
"""

from __future__ import annotations

import asyncio
import functools
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import trio
from asyncssh import OPEN_RESOURCE_SHORTAGE as SHORTAGE
from asyncssh import ChannelOpenError

from tunnelmux.agent.app import run_agent
from tunnelmux.config import (
    AgentConfig,
    AgentLimitsConfig,
    Device,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.config.assist import AssistConfig
from tunnelmux.errors import ConfigError, ConnectError, RegistryError
from tunnelmux.gateway.channel_stream import ChannelStream, open_reverse_channel
from tunnelmux.gateway.deadline import Deadline
from tunnelmux.gateway.guest import Bridge
from tunnelmux.limits import Limits
from tunnelmux.observability import BoundedLines, get_logger
from tunnelmux.registry import Registry, SshDevice

if TYPE_CHECKING:
    from tunnelmux.config.gateway import TunnelsConfig

__all__ = [
    "KEY_EXPIRED",
    "TAKEN_BACK",
    "DeviceSession",
    "DeviceTunnel",
    "ReverseForward",
    "parse_assist",
    "service_of",
]

_log = get_logger("gateway")

_SETTLED = 0.3
# Seconds without another forward after which the list counts as complete. OpenSSH asks for all of
# them at once, without waiting for answers.

_UNNAMED = frozenset({"", "localhost", "127.0.0.1", "::1", "*", "0.0.0.0", "::"})  # noqa: S104
# The addresses that clients send where the user named none.

_BY_PORT = {22: "ssh", 2222: "ssh", 80: "web", 8080: "web", 443: "https", 8443: "https"}
# The names of forwards that have none, by their port.

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9]|-(?!-)){0,30}[a-z0-9]|[a-z0-9]")

_ASSIST = re.compile(r"assist(?:\s+--for[\s=]+([0-9]{1,5})(s|m|h))?\s*")

_UNITS = {"s": 1, "m": 60, "h": 3600}

_LONGEST = 12 * 3600.0
# Seconds; the same as for leases.

KEY_EXPIRED = "the time of its SSH key is over: bring another"

TAKEN_BACK = "its SSH key was taken back, or the device may not connect any more"

_GOODBYE = 3.0
# Seconds that a device's ssh has to leave by itself.

_MOST_REFUSED = 100
# Forwards that one connection may ask for in vain: each is a line of the log. Then it is ended.

_LONGEST_SHOWN = 64
# Characters of a name that are said again: as long as a good one, where one of 250 kB may come.

_LIMITS = AgentLimitsConfig(session=Limits(max_streams=256, session_window_budget=4_194_304))
# What visitors send waits here while the device takes nothing, and not on the device itself: 64 MiB
# and some more, in place of 256 MiB and 64 MiB. One ssh serves no thousand visitors at once anyway.

_FIRST_PORT = 40_000
# The first port that clients are told which leave the choice to the server. Nothing listens there.


@dataclass(frozen=True, slots=True)
class ReverseForward:
    """One `-R`: the host and port that the device's ssh knows it by, and its service."""

    host: str
    port: int
    service: str


def service_of(host: str, port: int, taken: set[str]) -> str | None:
    """The name of the service that `-R host:port:…` offers; None where no name fits.

    A name in place of the address is the service's name. Without one, well-known ports have names,
    and port 0 is the first of ssh and web that is free.
    """
    if host not in _UNNAMED:
        name = host if _LABEL.fullmatch(host) else None
    elif port == 0:
        name = next((name for name in ("ssh", "web") if name not in taken), None)
    else:
        name = _BY_PORT.get(port, f"port-{port}")
    return name if name is not None and name not in taken else None


def parse_assist(command: str) -> float | None:
    """The seconds that `assist --for 2h` asks for, 12 h without; None for another command."""
    match = _ASSIST.fullmatch(command.strip())
    if match is None:
        return None
    if match[1] is None:
        return _LONGEST
    return min(int(match[1]) * _UNITS[match[2]], _LONGEST)


class DeviceTunnel:
    """The services that one connection of a device offers, and the tunnel to them."""

    def __init__(
        self,
        bridge: Bridge,
        lines: BoundedLines,
        registry: Registry,
        endpoint: TunnelsConfig,
        connection: Any,
        device: SshDevice,
        address: str,
        max_forwards: int,
    ) -> None:
        self.device = device
        self._bridge = bridge
        self._lines = lines
        self._registry = registry
        self._endpoint = endpoint
        self._connection = connection
        self._address = address
        self._max_forwards = max_forwards
        self._refused = 0
        self._forwards: dict[str, ReverseForward] = {}
        self._changed = trio.Event()
        self._scope = trio.CancelScope()
        self._limit: asyncio.TimerHandle | None = None
        self._goodbye: asyncio.TimerHandle | None = None
        self._expiry = Deadline(bridge.loop, functools.partial(self.end, KEY_EXPIRED))
        self._sessions: set[DeviceSession] = set()

    # -- in asyncio -----------------------------------------------------------------------------

    def begin(self) -> None:
        """The device has logged in."""
        self._expiry.set(self.device.key.expires)
        self._bridge.spawn(self.run)

    def forward_requested(self, host: str, port: int) -> Any:
        """What asyncssh keeps as the listener of a forward; False to refuse it."""
        service = service_of(host, port, set(self._forwards))
        shown = f"{host[:_LONGEST_SHOWN]}:{port}"
        if service is None or len(self._forwards) >= self._max_forwards:
            self._tell(
                f"-R {shown} is refused: write -R NAME:PORT:HOST:PORT with a new name of "
                f"letters, digits and hyphens, {self._max_forwards} times at most"
            )
            return False
        answered = port or _FIRST_PORT + len(self._forwards)
        forward = ReverseForward(host, answered, service)
        try:
            self._config([*self._forwards.values(), forward], Secret("x" * 20), Path("/"))
        except ConfigError as exc:
            self._tell(f"-R {shown} is refused: {exc}")
            return False
        self._forwards[service] = forward
        self._bridge.soon(self._wake)
        return _Listener(answered, functools.partial(self._cancelled, service))

    def session_requested(self) -> DeviceSession:
        """A channel on which the device may say how long, and sees what it offers. Raises
        ChannelOpenError for one too many."""
        if len(self._sessions) >= self._max_forwards:
            raise ChannelOpenError(SHORTAGE, f"{self._max_forwards} sessions are open here")
        session = DeviceSession(self)
        self._sessions.add(session)
        return session

    def limit(self, seconds: float) -> None:
        """End the connection after so long, unless it ends sooner already."""
        loop = self._bridge.loop
        if self._limit is None or loop.time() + seconds < self._limit.when():
            if self._limit is not None:
                self._limit.cancel()
            self._limit = loop.call_later(seconds, self.end, "its time is over")

    def end(self, reason: str) -> None:
        """End the connection, and say why."""
        self._say("ssh device ended", reason=reason)
        sessions = list(self._sessions)
        for session in sessions:
            session.end(reason)
        disconnect = functools.partial(
            self._connection.disconnect, asyncssh.DISC_BY_APPLICATION, reason
        )
        if sessions:
            # ssh leaves with the exit status that it was given, unless it is cut before.
            self._goodbye = self._goodbye or self._bridge.loop.call_later(_GOODBYE, disconnect)
            self._bridge.soon(self._scope.cancel)
        else:
            disconnect()

    def lost(self) -> None:
        """The connection is over."""
        self._expiry.cancel()
        for timer in (self._limit, self._goodbye):
            if timer is not None:
                timer.cancel()
        self._bridge.soon(self._scope.cancel)

    def session_over(self, session: DeviceSession) -> None:
        """Called by the session."""
        self._sessions.discard(session)

    def summary(self) -> str:
        """A sentence for the person at the device: what it offers now."""
        names = ", ".join(sorted(self._forwards)) or "nothing yet: add -R ssh:22:localhost:22"
        return f"{self.device.name} ({self.device.serial or 'no serial number'}) offers {names}"

    def _cancelled(self, service: str) -> None:
        self._forwards.pop(service, None)
        self._bridge.soon(self._wake)

    def _say(self, event: str, **about: Any) -> None:
        """Log this about the device. One whose ssh connects in a loop has some lines a minute."""
        self._lines.write(event, self.device.label, device=self.device.label, **about)

    def _tell(self, sentence: str) -> None:
        self._refused += 1
        if self._refused > _MOST_REFUSED:
            if self._refused == _MOST_REFUSED + 1:
                self.end("it asks for too many forwards that are refused")
            return
        self._say("ssh device refused", problem=sentence)
        self._connection.send_debug(f"tunnelmux: {sentence}", always_display=True)

    # -- in Trio --------------------------------------------------------------------------------

    @property
    def rests_on(self) -> set[str]:
        """The ids of the records that let it in: when one changes, it is checked again."""
        return {self.device.key.device_id, self.device.tenant_id}

    def rejudged(self, found: SshDevice | None) -> None:
        """Take what the registry says about its key now."""
        if found is None or found.key.id != self.device.key.id:
            self.end(TAKEN_BACK)
        elif found.key.expires != self.device.key.expires:
            self.device = found
            self._expiry.set(found.key.expires)

    def _wake(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Be the device's agent until the connection is over. Raises nothing."""
        token: Secret | None = None
        reason = "the connection is over"
        try:
            with self._scope:
                token = await self._registry.ssh_devices.begin(self.device.key.id, self._address)
                if token is None:
                    self.end("its SSH key is not good any more")
                    return
                self._say("ssh device connected", address=self._address)
                await self._serve(token)
        except RegistryError as exc:
            reason = "the registry does not answer now: try again"
            self._say("ssh device not served", level="warning", problem=str(exc))
            self.end(reason)
        except (ConnectError, ConfigError) as exc:
            reason = str(exc)
            self.end("it may not connect any more")
        except Exception as exc:  # noqa: BLE001  a bug met by one device must not end the others
            _log.error("unhandled error in device", device=self.device.label, exc_info=exc)
            self.end("the gateway failed; its log says how")
        finally:
            if token is not None:
                await self._forget(token, reason)

    async def _forget(self, token: Secret, reason: str) -> None:
        with trio.CancelScope(shield=True):  # as long as the registry's own timeout
            try:
                await self._registry.ssh_devices.end(token, reason[:200])
            except RegistryError as exc:
                # Only this task has the token; the next log-in ends its record too.
                self._say("ssh device not served", level="warning", problem=str(exc))
        self._say("ssh device over", reason=reason)

    async def _serve(self, token: Secret) -> None:
        with tempfile.TemporaryDirectory(prefix="tunnelmux-") as folder:
            while True:
                # No deadline: a device that offers nothing yet may do so later.
                await self._changed.wait()
                while self._changed.is_set():
                    self._changed = trio.Event()
                    with trio.move_on_after(_SETTLED):
                        await self._changed.wait()
                async with trio.open_nursery() as nursery:
                    if self._forwards:
                        config = self._config([*self._forwards.values()], token, Path(folder))
                        nursery.start_soon(self._be_agent, config)
                    await self._changed.wait()
                    nursery.cancel_scope.cancel(reason="what the device offers has changed")

    async def _be_agent(self, config: AgentConfig) -> None:
        try:
            await run_agent(config, open_target=self._open)
        except (ConnectError, ConfigError) as exc:
            self._say("ssh device not served", level="warning", problem=str(exc))
            self.end("it may not connect any more")

    async def _open(self, service: ServiceConfig) -> ChannelStream:
        forward = self._forwards.get(service.name)
        if forward is None:
            raise ConnectionRefusedError("the device offers it no more")
        return await open_reverse_channel(
            self._bridge, self._connection, forward.host, forward.port
        )

    def _config(self, forwards: list[ReverseForward], token: Secret, folder: Path) -> AgentConfig:
        """As agent.toml would say it. Raises ConfigError for a name that does not fit."""
        endpoint = self._endpoint
        assert endpoint.url is not None  # else no device is let in
        return AgentConfig(
            proxy=ProxyEndpoint(
                url=endpoint.url,
                token=token,
                ca_file=endpoint.ca_file,
                pin=endpoint.pin,
                sessions=1,  # this gateway is one thing that can fail, as is the device's ssh
            ),
            device=Device(name=self.device.name, serial=self.device.serial, state_dir=folder),
            services=[_service(forward) for forward in forwards],
            limits=_LIMITS,
            # Running this command on a device switches assistance on; its end ends all.
            assist=AssistConfig(mode="allow", longest=_LONGEST),
        )


def _service(forward: ReverseForward) -> ServiceConfig:
    """The service of a forward. Name and port tell its kind; only the device knows the target."""
    where = f"localhost:{forward.port}"
    if forward.service == "ssh" or forward.port == 22:
        return ServiceConfig(name=forward.service, target=f"tcp://{where}")
    if forward.service == "https" or forward.port == 443:
        # Nothing but the device itself is between ssh's end and the target.
        return ServiceConfig(name=forward.service, target=f"https://{where}", verify=False)
    return ServiceConfig(name=forward.service, target=f"http://{where}")


class _Listener(asyncssh.SSHListener):
    """What asyncssh keeps for a forward. It does not listen."""

    def __init__(self, port: int, when_closed: Callable[[], None]) -> None:
        super().__init__()
        self._port = port
        self._when_closed = when_closed

    def get_port(self) -> int:
        return self._port

    def close(self) -> None:
        self._when_closed()

    async def wait_closed(self) -> None:
        return


class DeviceSession(asyncssh.SSHServerSession[bytes]):
    """The session of a device's ssh without `-N`: it says for how long, and shows the services."""

    def __init__(self, tunnel: DeviceTunnel) -> None:
        self._tunnel = tunnel
        self._channel: Any = None
        self._command: str | None = None
        self._is_over = False

    def connection_made(self, chan: Any) -> None:
        self._channel = chan

    def pty_requested(self, _term: str, _size: Any, _modes: Any) -> bool:
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def subsystem_requested(self, _subsystem: str) -> bool:
        return False

    def session_started(self) -> None:
        if self._command is not None:
            seconds = parse_assist(self._command)
            if seconds is None:
                self._write('the one command is "assist", with --for 2h if it is to end by itself')
                self._channel.exit(64)
                return
            self._tunnel.limit(seconds)
        # OpenSSH asks for the forwards before the session, so they are known here.
        self._write(f"{self._tunnel.summary()}. Ctrl-C ends it.")

    def data_received(self, data: bytes, _datatype: object) -> None:
        if b"\x03" in data or b"\x04" in data:
            self.end("ended at the device", status=130)

    def eof_received(self) -> bool:
        return True  # ssh -n and a closed standard input do not end it

    def connection_lost(self, _exc: Exception | None) -> None:
        self._is_over = True
        self._tunnel.session_over(self)

    def end(self, reason: str, *, status: int = 0) -> None:
        """End it and say why; the device's ssh ends too."""
        if not self._is_over:
            self._is_over = True
            self._write(reason)
            self._channel.exit(status)

    def _write(self, sentence: str) -> None:
        self._channel.write_stderr(f"tunnelmux: {sentence}\r\n".encode())
