"""The agent: dial the proxy, hold the session, serve its streams, and dial again."""

from __future__ import annotations

import random
import secrets
from typing import TYPE_CHECKING
from urllib.parse import quote

import trio

from tunnelmux.agent.assist.service import AssistService
from tunnelmux.agent.commands import CommandExecutor
from tunnelmux.agent.figures import AgentFigures
from tunnelmux.agent.health import HealthChecks
from tunnelmux.agent.host_keys import HostKeyScan, ssh_service_of
from tunnelmux.agent.link import ProxyLink, needs_new_session
from tunnelmux.agent.own_shell import OwnShell, account_of
from tunnelmux.agent.rotation import Rotation
from tunnelmux.agent.sessions import SessionNow
from tunnelmux.agent.streams import StreamServer
from tunnelmux.agent.targets import OpenTarget
from tunnelmux.agent.tunnels import Dial, Tunnels, Uniform
from tunnelmux.config import Address, AgentConfig, Secret
from tunnelmux.endpoints import dial
from tunnelmux.errors import ConfigError, ConnectError, ConnectRefused
from tunnelmux.mux import Session
from tunnelmux.observability import get_logger
from tunnelmux.observability.spans import close_tracing, tracing_from
from tunnelmux.wire import (
    ASSIST_FIELD,
    DEFAULT_SERVICE_FIELD,
    DEVICE_FIELD,
    HOST_KEYS_FIELD,
    PROVE_FIELD,
    PROVED,
    RELAY_FIELD,
    SERIAL_FIELD,
    SERVICES_FIELD,
    TIMEOUTS_FIELD,
    list_host_keys,
)

if TYPE_CHECKING:
    from tunnelmux.agent.main_server import MainServerClient
    from tunnelmux.agent.monitoring import MonitoringListener

__all__ = ["RunningAgent", "run_agent"]

_log = get_logger("agent")

_GOODBYE = 5.0
# Seconds that commands may take to end when the agent stops.


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
        self.tunnels = Tunnels(
            config,
            secrets.token_hex(8),
            self._streams,
            self.figures,
            uniform,
            dial,
            self._said_of_device,
            reaches_targets=self._reaches_targets,
        )
        """The sessions with the proxy."""
        self.tunnels.link = _proxy_link(config)
        self._streams.rotation = Rotation(lambda: self.tunnels.link, self._prove)
        self._streams.move = self.tunnels.move
        self._streams.learn_nodes = self.tunnels.learn_nodes
        self.main_server = _main_server_client(config, self.commands, uniform)
        """The connection to a main server of the relay service, or None without [socketio]."""
        self.is_draining = False
        """Whether it is draining."""
        self._monitoring: MonitoringListener | None = None
        self._monitored = trio.CancelScope()
        self._reloading = trio.Lock()
        self._running = trio.Event()
        self._stopped = trio.Event()

    @property
    def name(self) -> str:
        """The device's name."""
        return self.config.device.name

    @property
    def session(self) -> Session | None:
        """A session with the proxy, or None while there is none."""
        return self.tunnels.session

    @property
    def sessions_now(self) -> list[SessionNow]:
        """The sessions with the proxy that are up."""
        return self.tunnels.sessions_now

    @property
    def has_proxy(self) -> bool:
        """Whether a proxy is configured."""
        return self.tunnels.link is not None

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
        await self.tunnels.wait_connected()

    async def drain(self, grace: float) -> None:
        """Take no new streams, let the live ones finish for at most `grace` seconds, and stop."""
        self.is_draining = self._streams.is_ending = True
        self.assist.desk.fall_silent()
        async with trio.open_nursery() as nursery:
            if self.main_server is not None:
                nursery.start_soon(self.main_server.drain, grace)
            await self.tunnels.drain(grace)
            await self._stopped.wait()  # bounded: closing a session gives each step a deadline

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
            if self.tunnels.link is not None:
                renew = renew or self.tunnels.link.has_another_token()
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
            self.tunnels.configure(config)
            await self._change_commands(commands)
            self._change_main_server(main_server)
            if renew and link is not None:
                self.tunnels.renew(link)

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
            if self.tunnels.link is not None:
                try:
                    await self.tunnels.run()
                except (ConnectError, ConfigError) as error:
                    # Raised outside of the nursery, which would wrap it in a group.
                    problem = error
                    self._servers.cancel_scope.cancel(
                        reason="the proxy refused this agent for good"
                    )
        if problem is not None:
            raise problem

    async def _said_of_device(self) -> list[tuple[bytes, bytes]]:
        """What a handshake says of this device."""
        services = self._streams.services
        fields = [
            (SERVICES_FIELD, services.listing),
            (RELAY_FIELD, services.relayed),
            (TIMEOUTS_FIELD, services.timeouts),
            (DEFAULT_SERVICE_FIELD, services.default_name),
            *await self._said_of_sshd(),
        ]
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
