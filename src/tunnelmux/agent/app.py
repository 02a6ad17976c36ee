"""The agent: dial the proxy, hold the session, serve its streams, and dial again."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING
from urllib.parse import quote

import trio

from tunnelmux.agent.assist.service import AssistService
from tunnelmux.agent.backoff import ReplacedBackoff, new_backoff
from tunnelmux.agent.commands import CommandExecutor
from tunnelmux.agent.direct import DirectConnector
from tunnelmux.agent.figures import AgentFigures
from tunnelmux.agent.health import HealthChecks
from tunnelmux.agent.host_keys import HostKeyScan, ssh_service_of
from tunnelmux.agent.link import ProxyLink, needs_new_session
from tunnelmux.agent.own_shell import OwnShell, account_of
from tunnelmux.agent.refusal import refused_for_good
from tunnelmux.agent.rotation import Rotation
from tunnelmux.agent.sessions import Successor, end_of, log_end, printable, replaced_by
from tunnelmux.agent.streams import StreamServer
from tunnelmux.agent.targets import OpenTarget
from tunnelmux.config import Address, AgentConfig, Secret
from tunnelmux.endpoints import dial, response_headers
from tunnelmux.errors import ConfigError, ConnectError, ConnectRefused, SessionError
from tunnelmux.mux import Session, open_session
from tunnelmux.observability import get_logger
from tunnelmux.observability.spans import close_tracing, tracing_from
from tunnelmux.pump.data_pump import DataPump, open_pump
from tunnelmux.wire import (
    ASSIST_FIELD,
    DEFAULT_SERVICE_FIELD,
    DEVICE_FIELD,
    HOST_KEYS_FIELD,
    INSTANCE_FIELD,
    PROVE_FIELD,
    PROVED,
    RELAY_FIELD,
    REPLACED_FIELD,
    RIVAL_FIELD,
    SERIAL_FIELD,
    SERVICES_FIELD,
    TIMEOUTS_FIELD,
    TOKEN_FIELD,
    list_host_keys,
)

if TYPE_CHECKING:
    from tunnelmux.agent.main_server import MainServerClient
    from tunnelmux.agent.monitoring import MonitoringListener

__all__ = ["RunningAgent", "run_agent"]

_log = get_logger("agent")

_MOST_NEXT = 4
# Next sessions beside the present one: a proxy ends the older ones within its drain.

_GOODBYE = 5.0
# Seconds that commands may take to end when the agent stops.

Uniform = Callable[[float, float], float]
Dial = Callable[..., AbstractAsyncContextManager[trio.abc.Stream]]


class RunningAgent:
    """A running agent: its state, and calls to drain and reload it."""

    def __init__(
        self,
        config: AgentConfig,
        uniform: Uniform,
        dial: Dial,
        open_target: OpenTarget | None = None,
    ) -> None:
        self.config = config
        """The current configuration."""
        self._uniform = uniform
        self._dial = dial
        self._set_backoff(config)
        self._instance = secrets.token_hex(8).encode("ascii")
        self.commands = CommandExecutor(config)
        """Runs commands, from the proxy and from a main server."""
        self.figures = AgentFigures()
        """The agent's counters."""
        self._streams = StreamServer(config, self.commands, self.figures, open_target)
        self._reaches_targets = open_target is None
        self._host_keys = HostKeyScan()
        self.tracing = self._streams.tracing = tracing_from(config.otel, "tunnelmux-agent")
        """What makes spans, where [otel] names a receiver."""
        self.assist = AssistService(config)
        """The switch for remote assistance, and the leases that this device takes."""
        self._streams.desk = self.assist.desk
        self.own_shell = self._streams.shell = OwnShell(config, self.assist.desk.note)
        """The shell of the agent itself, for devices without an SSH server."""
        self._link = _proxy_link(config)
        self._streams.rotation = Rotation(lambda: self._link, self._prove)
        self._streams.move = self.move
        self.main_server = _main_server_client(config, self.commands, uniform)
        """The connection to a main server of the relay service, or None without [socketio]."""
        self._pump: DataPump | None = None
        self._direct: DirectConnector | None = None
        self._session: Session | None = None
        self._next: list[Successor] = []
        self._serving: dict[Session, trio.CancelScope] = {}
        self._connected = trio.Event()
        self._was_connected = False
        self.is_draining = False
        """Whether it is draining."""
        self._renewing = False
        self._monitoring: MonitoringListener | None = None
        self._monitored = trio.CancelScope()
        self._reloading = trio.Lock()
        self._running = trio.Event()
        self._stopped = trio.Event()
        self._without_session = trio.CancelScope()

    @property
    def name(self) -> str:
        """The device's name."""
        return self.config.device.name

    @property
    def session(self) -> Session | None:
        """The session with the proxy, or None while there is none."""
        return self._session

    @property
    def has_proxy(self) -> bool:
        """Whether a proxy is configured."""
        return self._link is not None

    @property
    def main_server_is_connected(self) -> bool | None:
        """Whether the connection to the main server is up; None without one."""
        return self.main_server.is_connected if self.main_server is not None else None

    @property
    def streams_now(self) -> int:
        """Streams being served now."""
        return self._streams.active

    @property
    def health(self) -> HealthChecks:
        """The results of health checks."""
        return self._streams.health

    @property
    def monitoring_address(self) -> Address | None:
        """The address of the monitoring listener, or None without [metrics]."""
        return self._monitoring.address if self._monitoring is not None else None

    def command_figures(self) -> dict[str, object]:
        """The counters of commands, as /v1/info shows them."""
        return self.commands.figures()

    async def wait_connected(self) -> None:
        """Return once there is a session."""
        while self._session is None:
            await self._connected.wait()

    async def drain(self, grace: float) -> None:
        """Take no new streams, let the live ones finish for at most `grace` seconds, and stop."""
        self.is_draining = self._streams.is_ending = True
        self.assist.desk.fall_silent()
        async with trio.open_nursery() as nursery:
            if self.main_server is not None:
                nursery.start_soon(self.main_server.drain, grace)
            await self._drain_tunnel(grace)

    async def _drain_tunnel(self, grace: float) -> None:
        sessions = list(self._serving)
        if not sessions:
            self._without_session.cancel(reason="the agent is draining")
        else:
            count = sum(session.stream_count for session in sessions)
            _log.info("draining", streams=count, grace=grace)
            for session in sessions:
                session.go_away()
            with trio.move_on_after(grace):
                for session in sessions:
                    await session.wait_closed()
            self._leave_sessions("the grace period is over")
        await self._stopped.wait()  # bounded: closing a session gives each step a deadline

    def _leave_sessions(self, reason: str) -> None:
        for scope in self._serving.values():
            scope.cancel(reason=reason)

    async def move(self) -> bool:
        """Make the next session while the present one goes on; whether it is there. The proxy asks
        for it before it makes way for another process, and ends the present session itself.
        """
        before = self._session
        if before is None or self.is_draining:
            return False
        if not self._next or self._next[-1].is_up:
            if len(self._next) >= _MOST_NEXT:
                return False
            self._next.append(Successor())
            self._servers.start_soon(self._hold_next, self._next[-1], before)
        successor = self._next[-1]
        await successor.began.wait()  # bounded by the time for a handshake
        return successor.is_up

    async def _hold_next(self, successor: Successor, before: Session) -> None:
        try:
            with successor.scope:
                successor.replaced_by = await self._hold_session(successor)
        except (ConnectError, ConfigError) as error:
            successor.problem = error
            _log.warning("not moved", cause=str(error), effect="the session before goes on")
        finally:
            successor.end()
        if successor not in self._next or before not in self._serving:
            return  # the session before it is over, and what served that goes on from here
        self._next.remove(successor)
        if successor.is_up and before.is_draining:
            self._serving[before].cancel(reason="the session after it is over")
        else:
            self._session = before  # its proxy has not gone after all
            self._connected.set()

    # -- another configuration --------------------------------------------------------------

    async def reload(self, config: AgentConfig) -> None:
        """Apply a new configuration. Streams, commands and the session go on. If the change
        concerns the session (see `link.needs_new_session`), it is replaced at once.

        Raises ConfigError, with nothing changed, when a file it names cannot be used, or when
        [proxy] came or went, which needs a restart.
        """
        async with self._reloading:
            await self._running.wait()  # the agent has not started yet
            before = self.config
            if (config.proxy is None) != (before.proxy is None):
                raise ConfigError("[proxy] came or went: restart the agent for that")
            # Files are read first: if that fails, nothing has changed.
            link = _proxy_link(config)
            if config.shell.enabled:
                account_of(config)
            renew = needs_new_session(before, config)
            if self._link is not None:
                renew = renew or self._link.has_another_token()
            commands = self._commands_for(config)
            main_server = self._main_server_for(config, commands)
            monitoring = await self._monitoring_for(config)
            try:
                self._streams.configure(config, commands)
            except ConfigError:
                if monitoring is not None and monitoring is not self._monitoring:
                    await monitoring.aclose()
                raise
            self._change_monitoring(monitoring)
            self.assist.configure(config)
            self.own_shell.configure(config)
            self.config = config
            if config.backoff != before.backoff:
                self._set_backoff(config)
            await self._change_commands(commands)
            self._change_main_server(main_server)
            if self._direct is not None:
                timeout = config.limits.ingress.connect_timeout
                self._direct.configure(self._streams.services, timeout)
            if renew:
                self._link = link
                self._renew_session()

    async def _monitoring_for(self, config: AgentConfig) -> MonitoringListener | None:
        """The present monitoring listener if its settings are unchanged, else a new one or None.
        Raises ConfigError.
        """
        if config.metrics is None:
            return None
        if self._monitoring is not None and config.metrics == self.config.metrics:
            return self._monitoring
        # Imported here: few devices are monitored, and its library takes 30 ms to import.
        from tunnelmux.agent.monitoring import MonitoringListener

        address = config.metrics.address
        return await MonitoringListener.open(self, address, config.limits.ingress)

    def _change_monitoring(self, listener: MonitoringListener | None) -> None:
        if listener is self._monitoring:
            return
        self._monitored.cancel(reason="the monitoring listener has moved")
        self._monitoring, self._monitored = listener, trio.CancelScope()
        if listener is not None:
            self._executors.start_soon(self._serve_monitoring, listener, self._monitored)

    async def _serve_monitoring(
        self, listener: MonitoringListener, scope: trio.CancelScope
    ) -> None:
        with scope:
            await listener.run()

    def _set_backoff(self, config: AgentConfig) -> None:
        self._backoff = new_backoff(config.backoff, self._uniform)
        self._replaced = ReplacedBackoff(config.backoff.replaced, uniform=self._uniform)

    def _commands_for(self, config: AgentConfig) -> CommandExecutor:
        """The present executor if its settings are unchanged, else a new one."""
        before = self.config
        if (config.exec, config.audit, config.device) == (
            before.exec,
            before.audit,
            before.device,
        ):
            return self.commands
        return CommandExecutor(config)

    async def _change_commands(self, commands: CommandExecutor) -> None:
        if commands is self.commands:
            return
        before, self.commands = self.commands, commands
        commands.share_audit(before)
        await self._executors.start(commands.serve)
        before.retire()

    def _main_server_for(
        self, config: AgentConfig, commands: CommandExecutor
    ) -> MainServerClient | None:
        """The present client if its settings are unchanged, else a new one or None."""

        def concern(config: AgentConfig) -> tuple[object, ...]:
            return config.socketio, config.limits, config.backoff, config.exec.limits.max_concurrent

        if concern(config) == concern(self.config):
            return self.main_server
        return _main_server_client(config, commands, self._uniform)

    def _change_main_server(self, client: MainServerClient | None) -> None:
        if client is self.main_server:
            if client is not None:
                client.use(self.commands)
            return
        before, self.main_server = self.main_server, client
        self._servers.start_soon(self._succeed, before, client)

    async def _succeed(
        self, before: MainServerClient | None, client: MainServerClient | None
    ) -> None:
        """Let one client finish its commands, then start the next."""
        if before is not None:
            await before.drain(self.config.drain.grace)
        if client is not None:
            await client.run()

    def _renew_session(self) -> None:
        if self._session is not None:
            self._renewing = True
            self._leave_sessions("the configuration changed")
        else:
            self._without_session.cancel(reason="the configuration changed")

    # -- the loop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Hold sessions until drained. Raises AgentRefused when trying again cannot help."""
        problem: ConnectError | ConfigError | None = None
        try:
            async with trio.open_nursery() as self._executors:
                await self._executors.start(self.commands.serve)
                try:
                    self._change_monitoring(await self._monitoring_for(self.config))
                    await self._serve_with_assistance()
                except (ConnectError, ConfigError) as error:
                    problem = error  # raised outside of the nursery, which would wrap it in a group
                self._monitored.cancel(reason="the agent is stopping")
                self.commands.retire()
                # The callers of running commands are gone now, so this ends soon.
                self._executors.cancel_scope.deadline = trio.current_time() + _GOODBYE
        finally:
            self._stopped.set()
            await close_tracing(self.tracing)
        if problem is not None:
            raise problem

    async def _serve_with_assistance(self) -> None:
        """Serve with the switch for assistance running, also while offline."""
        problem: ConnectError | ConfigError | None = None
        await self.assist.learn_serial()
        with self.assist.opened():
            async with trio.open_nursery() as assisting:
                assisting.start_soon(self.assist.run)
                assisting.start_soon(self._streams.health.run)
                assisting.start_soon(self.own_shell.run)
                try:
                    await self._serve_both_ways()
                except (ConnectError, ConfigError) as error:
                    problem = error
                assisting.cancel_scope.cancel(reason="the agent ends")
        if problem is not None:
            raise problem

    async def _serve_both_ways(self) -> None:
        """Serve the proxy and the main server, whichever there are, until drained."""
        problem: ConnectError | ConfigError | None = None
        async with trio.open_nursery() as self._servers:
            if self.main_server is not None:
                self._servers.start_soon(self.main_server.run)
            self._running.set()
            if self._link is not None:
                try:
                    async with open_pump() as self._pump:
                        await self._hold_sessions()
                except (ConnectError, ConfigError) as error:
                    # Raised outside of the nursery, which would wrap it in a group.
                    problem = error
                    self._servers.cancel_scope.cancel(
                        reason="the proxy refused this agent for good"
                    )
        if problem is not None:
            raise problem

    async def _hold_sessions(self) -> None:
        while not self.is_draining:
            # Cancelled by a drain or a reload, and only while no session is there.
            with trio.CancelScope() as self._without_session:
                delay = await self._attempt()
                if not self.is_draining:
                    await trio.sleep(delay)
        for successor in self._next:
            successor.scope.cancel(reason="the agent is draining")

    async def _attempt(self) -> float:
        """Make one session and serve it to its end. Returns the seconds to wait before the next
        attempt.
        """
        started = trio.current_time()
        try:
            replaced_by = await self._hold_session()
            while self._next:
                successor = self._next.pop(0)
                await successor.over.wait()  # no deadline: it is the session of now
                if successor.problem is not None:
                    raise successor.problem
                replaced_by = successor.replaced_by
        except ConnectError as error:
            self.figures.attempt_failed(error)
            assert self._link is not None  # a link exists when it was dialled
            if not error.retryable and not await self._falls_back(self._link, error):
                source = self._link.credentials.source
                raise refused_for_good(error, credential=source) from error
            delay = self._backoff.next_delay(error.retry_after, is_ours=error.is_ours)
            _log.warning("not connected", cause=str(error), retry_in=round(delay, 3))
            return delay
        except ConfigError as error:
            # A token file that is being replaced must not end a running agent.
            if not self._was_connected:
                raise
            self.figures.attempt_failed(error)
            delay = self._backoff.next_delay()
            _log.error("not connected", cause=str(error), retry_in=round(delay, 3))
            return delay
        if self._renewing:
            self._renewing = False
            _log.info("connecting again", retry_in=0.0)
            return 0.0
        held = trio.current_time() - started
        if replaced_by is not None and not self.is_draining:
            delay = self._replaced.next_delay(held)
            _log.warning(
                "replaced by another agent",
                device=self.name,
                by=replaced_by,
                fix="it has this device's token; stop one of the two, or give each machine a name "
                "and a token of its own",
                retry_in=round(delay, 3),
            )
            return delay
        self._backoff.held(held)
        delay = self._backoff.next_delay()
        if not self.is_draining:
            _log.info("connecting again", retry_in=round(delay, 3))
        return delay

    async def _hold_session(self, successor: Successor | None = None) -> str | None:
        """Serve one session to its end. Returns the address of the agent that replaced it, if one
        did. A `successor` is told when the session begins.
        """
        link = self._link
        assert link is not None  # set before this is called
        async with self._dial(
            link.dialled,
            token=link.token().reveal(),
            headers=[
                (DEVICE_FIELD, link.device.encode("ascii")),
                (INSTANCE_FIELD, self._instance),
                (SERVICES_FIELD, self._streams.services.listing),
                (RELAY_FIELD, self._streams.services.relayed),
                (TIMEOUTS_FIELD, self._streams.services.timeouts),
                *self._said_of_assist(),
                *await self._said_of_sshd(),
                (DEFAULT_SERVICE_FIELD, self._streams.services.default_name),
            ],
            ssl_context=link.ssl_context,
            timeout=self.config.limits.ingress.handshake_timeout,
            way=link.way,
        ) as transport:
            await self._read_news(link, response_headers(transport))
            async with open_session(
                transport,
                is_client=True,
                limits=self.config.limits.session,
                pump=self._pump,
            ) as session:
                if successor is not None:
                    successor.begin()
                await self._serve(link, session)
            return replaced_by(transport)

    def _said_of_assist(self) -> list[tuple[bytes, bytes]]:
        fields = []
        if self.assist.desk.serial:
            fields.append((SERIAL_FIELD, quote(self.assist.desk.serial).encode("ascii")))
        if self.assist.is_on:
            fields.append((ASSIST_FIELD, b"yes"))
        return fields

    async def _said_of_sshd(self) -> list[tuple[bytes, bytes]]:
        if not self._reaches_targets:
            return []  # a device that has only OpenSSH: the gateway pins what it meets first
        if self.own_shell.is_ssh_service:
            keys = self.own_shell.host_keys()
        else:
            keys = await self._host_keys.keys(ssh_service_of(self.config.services))
        return [(HOST_KEYS_FIELD, list_host_keys(keys))] if keys else []

    async def _prove(self, link: ProxyLink, token: Secret) -> None:
        """Have the proxy check a token, without a session. Raises ConnectError, ConnectRefused."""
        headers = [(DEVICE_FIELD, link.device.encode("ascii")), (PROVE_FIELD, b"yes")]
        try:
            async with self._dial(
                link.dialled,
                token=token.reveal(),
                headers=headers,
                ssl_context=link.ssl_context,
                timeout=self.config.limits.ingress.handshake_timeout,
                way=link.way,
            ):
                pass
        except ConnectRefused as answer:
            if answer.reason != PROVED:
                raise

    async def _read_news(self, link: ProxyLink, headers: dict[str, str]) -> None:
        """Read the fields about this device in the proxy's answer to the handshake."""
        await self._keep_accepted(link)
        await self._keep_token(link, headers.get(_lower(TOKEN_FIELD)))
        if _lower(REPLACED_FIELD) in headers:
            _log.warning(
                "joined in place of another",
                device=self.name,
                effect="the machine that had this name cannot connect any more",
            )
        if rival := headers.get(_lower(RIVAL_FIELD)):
            _log.warning(
                "two agents with one credential",
                device=self.name,
                rival=printable(rival),
                fix="another machine and this one replace each other in turn, as after cloning a "
                "disk: give each a name and a token of its own",
            )

    async def _keep_token(self, link: ProxyLink, token: str | None) -> None:
        if token is None or link.credentials.path is None:
            return
        if link.credentials.has_joined:
            # Only the first use of a join line is answered so. What the device has is good.
            _log.warning(
                "token ignored",
                device=link.device,
                cause="the proxy gave another token without being asked",
                fix="look whether proxy.url leads to your proxy; tokens are changed by `rotate`",
            )
            return
        try:
            await trio.to_thread.run_sync(link.learn, Secret(token))
        except ConfigError as error:
            _log.error("token not kept", cause=str(error))
        else:
            _log.info("joined", device=link.device, token_file=str(link.credentials.path))

    async def _falls_back(self, link: ProxyLink, error: ConnectError) -> bool:
        """Whether an earlier token is left to be shown to a proxy that does not know this one."""
        if not isinstance(error, ConnectRefused) or error.status != 401:
            return False
        return await trio.to_thread.run_sync(link.fall_back)

    async def _keep_accepted(self, link: ProxyLink) -> None:
        """Put an earlier token back into its place, if it is what the proxy took."""
        if not link.shows_earlier:
            return
        try:
            await trio.to_thread.run_sync(link.keep_earlier)
        except ConfigError as error:
            _log.error("token not kept", cause=str(error))
        else:
            _log.warning(
                "token put back",
                device=link.device,
                token_file=str(link.credentials.kept_in),
                cause="the proxy refused the one that replaced it",
                fix="if that was not you, look at what the device was connected to before",
            )

    async def _serve(self, link: ProxyLink, session: Session) -> None:
        started = trio.current_time()
        self._session = session
        self.figures.session_began(session)
        self._was_connected = True
        self._connected.set()
        _log.info("session started", device=link.device, proxy=str(link.url))
        try:
            if self.is_draining or self._link is not link:  # requested after dialling
                self._renewing = not self.is_draining
                return
            await self._serve_streams(session)
        finally:
            self._serving.pop(session, None)
            if self._session is session:
                self._session = None
                self._connected = trio.Event()
            self.figures.session_ended(session, end_of(session))
            log_end(link, session, trio.current_time() - started)

    async def _serve_streams(self, session: Session) -> None:
        with trio.CancelScope() as self._serving[session]:
            async with trio.open_nursery() as handlers:
                direct = DirectConnector(
                    session,
                    self._streams,
                    self._streams.services,
                    handlers,
                    self.config.limits.ingress.connect_timeout,
                )
                self._direct = direct
                if self._reaches_targets:
                    session.on_offer = direct.take
                handlers.start_soon(direct.run)
                try:
                    async for stream in session:
                        handlers.start_soon(self._streams.serve, stream)
                except SessionError:
                    pass  # log_end logs it from `session.error`
                # The streams have ended with their session; only connections to targets are left.
                handlers.cancel_scope.cancel(reason="the session is over")


def _lower(field: bytes) -> str:
    return field.decode("ascii").lower()


def _proxy_link(config: AgentConfig) -> ProxyLink | None:
    return ProxyLink(config.proxy, config.device) if config.proxy is not None else None


def _main_server_client(
    config: AgentConfig, executor: CommandExecutor, uniform: Uniform
) -> MainServerClient | None:
    if config.socketio is None:
        return None
    # Imported here: its libraries take longer to import than the rest of the agent.
    from tunnelmux.agent.main_server import MainServerClient

    return MainServerClient(
        config,
        config.socketio,
        executor,
        max_concurrent=config.exec.limits.max_concurrent,
        uniform=uniform,
    )


async def run_agent(
    config: AgentConfig,
    *,
    uniform: Uniform = random.uniform,
    dial: Dial = dial,
    open_target: OpenTarget | None = None,
    task_status: trio.TaskStatus[RunningAgent] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a proxy, a main server or both, as configured, until drained or cancelled.

    Started value: the RunningAgent, before the first attempt to connect. `uniform(a, b)` gives the
    random numbers of the back-off; `dial` is called like `endpoints.dial`; `open_target` connects
    to services that this machine does not reach itself. Raises AgentRefused when the proxy refuses
    this agent for good, and ConfigError when the token, its file or the certificates cannot be
    used.
    """
    agent = RunningAgent(config, uniform, dial, open_target)
    task_status.started(agent)
    await agent.run()
