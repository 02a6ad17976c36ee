"""A running proxy: its listeners and sessions, reload and drain."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tunnelmux.config import (
    Address,
    ProxyConfig,
)
from tunnelmux.config.rules import is_loopback
from tunnelmux.errors import ConfigError
from tunnelmux.http.fields import TrustedProxies
from tunnelmux.observability import AuditLog, get_logger
from tunnelmux.observability.spans import close_tracing, spans_lost, tracing_from
from tunnelmux.proxy.access.by_address import LISTS_CHANGED, cut_unlisted, is_listed
from tunnelmux.proxy.access.follower import AccessFollower
from tunnelmux.proxy.access.gate import Gate
from tunnelmux.proxy.access.rules import check_identity_fields
from tunnelmux.proxy.commands.dispatcher import Dispatcher
from tunnelmux.proxy.descriptors import within_descriptors
from tunnelmux.proxy.internal import InternalServer, InternalSettings
from tunnelmux.proxy.internal.access import Access
from tunnelmux.proxy.internal.arrivals import Arrivals
from tunnelmux.proxy.internal.traffic import Traffic
from tunnelmux.proxy.names import internal_url, node_name
from tunnelmux.proxy.reports import DrainReport, ReloadReport
from tunnelmux.proxy.succession import AGENTS_FIRST, Succession
from tunnelmux.proxy.surroundings import surroundings_of
from tunnelmux.proxy.tunnels.devices import DeviceRegister, devices_from_config
from tunnelmux.proxy.tunnels.enrolment import Enrolment
from tunnelmux.proxy.tunnels.registered import Ended, RegisteredDevices
from tunnelmux.proxy.tunnels.tunnel import TunnelServer, TunnelSettings
from tunnelmux.proxy.visitors.carrier import import_carriers
from tunnelmux.proxy.visitors.certificates import IngressCertificates
from tunnelmux.proxy.visitors.groups import Groups
from tunnelmux.proxy.visitors.ingress_http import HttpIngressServer
from tunnelmux.proxy.visitors.ingress_tcp import TcpIngressServer
from tunnelmux.proxy.visitors.listeners import Binder, ListenerPlan, ListenerSet, lists_of
from tunnelmux.proxy.visitors.long_visits import tell_long_visits
from tunnelmux.proxy.visitors.visit import VisitRegister
from tunnelmux.pump.data_pump import open_pump
from tunnelmux.sessions import CLEANUP_INTERVAL, LocalHandle
from tunnelmux.transports import server_context
from tunnelmux.transports.admission import Admission

if TYPE_CHECKING:
    from tunnelmux.proxy.cluster.node import ClusterNode
    from tunnelmux.proxy.commands.socketio_agents import AgentServer
    from tunnelmux.proxy.workers.worker import Worker
    from tunnelmux.pump.counts import Histogram

__all__ = ["DrainReport", "ReloadReport", "RunningProxy", "run_proxy"]

_log = get_logger("proxy")

_DRAIN_LOOK = 0.05
# Seconds between two checks of what still runs while draining: so no stream tells of its end.

_REGISTRY_TIMEOUT = 2.0
# Seconds that each read of the registry may take, also the first one, which agents wait for.

_GOODBYE = 2.0
# Seconds for sessions to close in order once the grace period is over; then they are cut.


async def run_proxy(
    config: ProxyConfig,
    *,
    enrolment: Enrolment | None = None,
    state_dir: Path | None = None,
    announce: Callable[[RunningProxy], None] | None = None,
    worker: Worker | None = None,
    binder: Binder | None = None,
    task_status: trio.TaskStatus[RunningProxy] = trio.TASK_STATUS_IGNORED,
) -> DrainReport:
    """Run a proxy until it was drained (see `RunningProxy.drain`) or is cancelled.

    With `enrolment`, devices that hold an invitation may join. The list of devices that are online
    is kept for the next process, in the configured folder or else in `state_dir`; with neither, it
    is not kept. `announce` is called once, when the listeners are open. With `worker`, this process
    is one worker of a proxy; `binder` makes the listening sockets. Raises ConfigError, before
    anything is served, when a file cannot be read or an address cannot be listened on.
    """
    proxy = RunningProxy(config, enrolment, state_dir, worker, binder)
    await proxy.run(announce, task_status)
    return proxy.report


class RunningProxy:
    """A proxy that is running; `run_proxy` hands it to its caller."""

    def __init__(
        self,
        config: ProxyConfig,
        enrolment: Enrolment | None,
        state_dir: Path | None = None,
        worker: Worker | None = None,
        binder: Binder | None = None,
    ) -> None:
        self.config = config
        self.report = DrainReport()
        self._enrolment = enrolment
        self._around = surroundings_of(config, worker, binder)
        self.events = self._around.events
        self.store = self._around.store
        self.cluster = self._around.node
        enrolled = enrolment.load() if enrolment else ()
        self.devices = DeviceRegister(devices_from_config(config), enrolled)
        self._gate = Gate(self.devices, self.store)
        self.visits = VisitRegister()
        self._access: AccessFollower | None = None
        self.registered = self._follow_registry(config)
        self._tunnel = TunnelServer(
            devices=self.devices,
            store=self.store,
            settings=_tunnel_settings(config),
            admission=Admission("tunnel"),
            enrolment=enrolment,
            registered=self.registered,
        )
        self._certificates = IngressCertificates()
        self._groups = Groups(self.visits.count_of, self.devices.labelled)
        shared = self.store, self.devices, self.visits, self._groups
        self._http, self._tcp = HttpIngressServer(*shared, self._gate), TcpIngressServer(*shared)
        self.dispatcher = Dispatcher(
            self.store, self.devices, audit=_audit_log(config), visits=self.visits
        )
        self._internal = InternalServer(
            self.store,
            self._around.all_events,
            self._gauges,
            dispatcher=self.dispatcher,
            more=[
                Arrivals(self._admissions),
                Traffic(self.visits, self._tunnel.figures_now, self._pump_batches),
            ],
            lease_runs=self._lease_runs,
            counts=self.events.counts,
        )
        self._internal.decisions.gate = self._gate
        self._tracing = tracing_from(config.otel, "tunnelmux-proxy")
        self._http.trace(self._tracing)
        self._tcp.tracing = self._tracing
        self._presence = self._around.presence_in(config.tunnel.state_dir or state_dir, config)
        self._agent_server: AgentServer | None = None
        self._set_doors(config)
        self._reloading = trio.Lock()
        self._drain_wanted = trio.Event()
        self._grace = trio.CancelScope()
        self._finished = trio.Event()

    # -- looking ----------------------------------------------------------------------------

    @property
    def tunnel_address(self) -> Address:
        """The address for agents, with the port the system chose for 0."""
        address = self._listeners.address("tunnel")
        assert address is not None  # this listener always exists
        return address

    @property
    def tunnel_admission(self) -> Admission:
        """The places for agents during their handshake."""
        return self._tunnel.admission

    @property
    def http_address(self) -> Address | None:
        """The address of the HTTP ingress, or None without `[ingress.http]`."""
        return self._listeners.address("http")

    @property
    def tcp_addresses(self) -> list[Address]:
        """The addresses of the TCP ingresses, in the order of the configuration."""
        bound = (self._listeners.address(slot) for slot in _tcp_slots(self.config))
        return [address for address in bound if address is not None]

    @property
    def internal_address(self) -> Address | None:
        """The address of the internal API, or None without `[internal]`."""
        return self._private_listeners.address("internal")

    # -- doing ------------------------------------------------------------------------------

    async def reload(self, config: ProxyConfig) -> ReloadReport:
        """Apply a new configuration while sessions and visitors go on.

        Listeners that are new are opened, those that are gone are closed, unchanged ones are not
        touched. A listener that cannot be opened is logged and reported; the rest applies. The
        session of a device that was removed, disabled or given another token is closed. The file of
        the devices that enrolled is read again as well.

        Raises ConfigError, with nothing changed, when a file it names cannot be used.
        """
        async with self._reloading:
            devices = devices_from_config(config)
            enrolled = self._enrolment.load() if self._enrolment is not None else None
            tunnel = _tunnel_settings(config)
            audit = _audit_log(config)
            self._check_agents(config)
            self._set_doors(config)
            self.dispatcher.audit.take_over(audit)
            self._tunnel.settings = tunnel
            self.config = config
            cut = self._gate.cut_unadmitted(self.visits)
            cut += cut_unlisted(self.visits, config.ingress.tcp)
            if cut:
                _log.info("visits cut", count=cut, reason="their addresses are now denied")
            stale = sorted(self.devices.replace_configured(devices, enrolled))
            kicked = [name for name in stale if await self._kick(name)]
            kicked += await self._end_unlisted()
            kicked += self._set_agents(config)
            problems = []
            if not self._drain_wanted.is_set():
                await self._serve_agents()
                problems = await self._listeners.apply(self._plans())
                problems += await self._private_listeners.apply(self._private_plans())
                self._say_where()
            for problem in problems:
                _log.error("a listener could not be opened", cause=str(problem))
            return ReloadReport(kicked=kicked, problems=problems)

    async def drain(self, grace: float) -> DrainReport:
        """Shut down: accept nothing new, let work finish for `grace` seconds, cut the rest.

        Every agent is told with a GoAway at once. A second call can shorten the grace period of
        the first. Returns when nothing runs any more.
        """
        self._grace.deadline = min(self._grace.deadline, trio.current_time() + grace)
        self._drain_wanted.set()
        # Bounded by the grace period and the closing of sessions after it.
        await self._finished.wait()
        return self.report

    # -- from start to end --------------------------------------------------------------------

    async def run(
        self,
        announce: Callable[[RunningProxy], None] | None,
        task_status: trio.TaskStatus[RunningProxy],
    ) -> None:
        """Run the proxy; once per object."""
        try:
            # The pump must outlive the sessions and visits that it carries.
            async with open_pump() as self._tunnel.pump:
                if self._tunnel.pump is not None:
                    self._tunnel.pump.core.requests = self.visits.figures.by_pump
                    self._tunnel.pump.on_lines = self.visits.feed.take_lines
                problems = await self._run_until_drained(announce, task_status)
        finally:
            self._finished.set()
            self.dispatcher.audit.close()
            await close_tracing(self._tracing)
        if problems:
            raise ConfigError("\n".join(str(problem) for problem in problems))

    async def _run_until_drained(
        self,
        announce: Callable[[RunningProxy], None] | None,
        task_status: trio.TaskStatus[RunningProxy],
    ) -> list[ConfigError]:
        # Order of ends: listeners first, then visitors, then the sessions they use. The internal
        # API ends last, so that a back end can watch the drain.
        async with trio.open_nursery() as self._agents:
            if self.registered is not None:
                self._agents.start_soon(self.registered.run)
                # A whole fleet dials at once after a restart: read its devices first.
                await self.registered.wait_loaded(_REGISTRY_TIMEOUT)
            async with trio.open_nursery() as self._callers:
                self._private_listeners = ListenerSet(self._callers, binder=self._around.binder)
                problems = await self._serve_visitors(announce, task_status)
                self._callers.cancel_scope.cancel()
            for handle in self._tunnel.sessions:
                self._agents.start_soon(handle.session.aclose)
            if self._agent_server is not None:
                self._agents.start_soon(self._agent_server.aclose)
            # Until then, leaving the block waits for the sessions to close.
            self._agents.cancel_scope.deadline = trio.current_time() + _GOODBYE
        return problems

    async def _serve_visitors(
        self,
        announce: Callable[[RunningProxy], None] | None,
        task_status: trio.TaskStatus[RunningProxy],
    ) -> list[ConfigError]:
        """Serve from the opening of the listeners to the end of the drain."""
        try:
            async with trio.open_nursery() as self._visitors:
                async with trio.open_nursery() as direct:
                    direct.start_soon(self.visits.run)
                    direct.start_soon(tell_long_visits, self.visits)
                    direct.start_soon(self._certificates.run)
                    if (pump := self._tunnel.pump) is not None:
                        import_carriers()
                        direct.start_soon(self._http.run_direct, pump)
                    problems = await self._accept_visitors(announce, task_status)
                    if not problems:
                        await self._drain()
                    direct.cancel_scope.cancel()
                self._visitors.cancel_scope.cancel()
        finally:
            self._private_listeners.close()
        return problems

    async def _accept_visitors(
        self,
        announce: Callable[[RunningProxy], None] | None,
        task_status: trio.TaskStatus[RunningProxy],
    ) -> list[ConfigError]:
        async with trio.open_nursery() as accepting:
            self._listeners = ListenerSet(accepting, self._tunnel.pump, self._around.binder)
            lists = [self._listeners, self._private_listeners]
            self.succession = Succession(
                lists, self._http, self._tunnel, self._presence, self.registered
            )
            try:
                ways, pump = (self._http, self._tcp), self._tunnel.pump
                if passing := self._around.hand_over(self._listeners, self.devices, ways, pump):
                    accepting.start_soon(passing.run)
                await self._serve_agents()
                if self._presence is not None:
                    await self._presence.load(
                        self.devices.knows, self.config.limits.ingress.reconnect_wait
                    )
                plans, private = self._plans(), self._private_plans()
                problems = await self._listeners.apply(plans, held=plans.keys() - AGENTS_FIRST)
                problems += await self._private_listeners.apply(private, held=private)
                if not problems:
                    if self.cluster is not None:
                        await self._start_node(self.cluster)
                    self._around.connect(
                        self._listeners,
                        self._internal,
                        self._callers,
                        self.succession,
                        self._tunnel,
                    )
                    await self._tunnel.take_enrolled()  # what was told before that
                    self._say_where()
                    # Of another program that makes way, agents come before visitors.
                    await self._around.binder.takes_agents()
                    self._listeners.release()
                    self._private_listeners.release()
                    self._callers.start_soon(self._clean_up)
                    if self._presence is not None:
                        self._callers.start_soon(self._presence.run)
                    if announce is not None:
                        announce(self)
                    task_status.started(self)
                    # No deadline: a proxy runs until it is stopped.
                    await self._drain_wanted.wait()
            finally:
                self._listeners.close()
            accepting.cancel_scope.cancel()
        return problems

    async def _start_node(self, cluster: ClusterNode) -> None:
        cluster.pump = self._tunnel.pump
        cluster.look_only_for(self.devices.knows)
        self._tunnel.neighbours = cluster if self.config.cluster is not None else None
        # Wait for the first answer of the directory, at most a second.
        bound = self._listeners.address("cluster")
        await self._callers.start(cluster.run, bound, self._internal_url())
        self._callers.start_soon(self._tunnel.tell_of_nodes)

    async def _clean_up(self) -> None:
        while True:  # until the proxy ends
            await trio.sleep(CLEANUP_INTERVAL)
            self.dispatcher.audit.tell_refusals()
            removed = await self.store.cleanup_expired(self.config.limits.internal.session_expiry)
            if removed:
                _log.warning("silent sessions were closed", count=removed)

    async def _drain(self) -> None:
        started = trio.current_time()
        if self._presence is not None:
            await self._presence.finish()  # as long as writing one small local file takes
        self._tunnel.is_draining = True
        if self.cluster is not None and not self.succession.is_followed:
            await self.succession.leave(self.cluster, self._grace.deadline)
        if self.registered is not None:
            self.registered.leases.fall_silent()
        self._http.drain()
        self._internal.drain()
        sessions = self._tunnel.sessions
        streams = _live_streams(sessions)
        if not self.succession.is_followed:  # else their agents have others already
            await self.succession.send_away(sessions, self._grace.deadline)
        with self._grace:
            while (  # noqa: ASYNC110
                self.succession.is_awaited
                or self._visitors.child_tasks
                or self._http.visitor_count
                or _live_streams(sessions)
                or self._internal.in_progress
            ):
                await trio.sleep(_DRAIN_LOOK)
        self.report = DrainReport(
            sessions=len(sessions),
            streams=streams,
            cut=_live_streams(sessions),
            seconds=round(trio.current_time() - started, 3),
        )
        _log.info("drained", **dataclasses.asdict(self.report))

    async def _kick(self, name: str) -> bool:
        """Close the session of a device that may not stay connected. True if there was one."""
        device = self.devices.find(name)
        if device is None:
            reason = "the device was removed from proxy.toml"
        elif not device.enabled:
            reason = "the device was disabled in proxy.toml"
        else:
            reason = "the device was given another token in proxy.toml"
        return (await self._end_device(name, reason)).sessions > 0

    async def _end_unlisted(self) -> list[str]:
        """End sessions from addresses that may not connect any more. Returns their devices."""
        lists = lists_of(self.config.tunnel)
        gone = [h for h in self._tunnel.sessions if not is_listed(lists, h.remote_address)]
        for handle in gone:
            await handle.close(LISTS_CHANGED)
            await self.store.unregister(handle.token, handle)
        return sorted({handle.device for handle in gone})

    def _lease_runs(self, lease_id: str, device: str) -> bool:
        registered = self.registered
        return registered is not None and registered.leases.running(lease_id, device) is not None

    async def _end_device(self, name: str, reason: str) -> Ended:
        """End the session and the visits of a device. Returns how many."""
        handle = self.store.own_device(name)
        # Includes visits on a replaced session, and visits that wait for a session.
        visits = self.visits.cut_device(name, reason)
        if handle is not None:
            await handle.close(reason)
            await self.store.unregister(handle.token, handle)
        if not self.devices.knows(name):
            self.store.forget_device(name)
            self._tunnel.forget_device(name)
        return Ended(sessions=int(handle is not None), visits=visits)

    def _follow_registry(self, config: ProxyConfig) -> RegisteredDevices | None:
        """The follower of the registry, if one is configured. Raises ConfigError."""
        url = config.registry.read_url()
        if url is None:
            return None
        # Imported here: only [registry] needs SQL.
        from tunnelmux.proxy.tunnels.leases import LeaseBook
        from tunnelmux.registry import RecordLimits, open_registry

        migrate = None if config.registry.migrate else False
        shares = RecordLimits(
            audit_per_day=config.registry.audit_per_day,
            audit_per_day_of_tenant=config.registry.audit_per_day_of_tenant,
        )
        source = partial(
            open_registry, url, migrate=migrate, limits=shares, timeout=_REGISTRY_TIMEOUT
        )
        source()  # so that an unusable URL is reported now
        identity, limits = self._around.identity, config.limits.ingress
        leases = LeaseBook(self.devices, self.visits.cut_lease, limits)
        self._access = AccessFollower(self._gate, self.visits, leases)
        return RegisteredDevices(
            source, self.devices, self._end_device, identity, limits, leases, self._access
        )

    def _internal_url(self) -> str:
        """The URL of the internal API, which listens already."""
        bound = self.internal_address
        return internal_url(self.config, bound.port if bound is not None else 0)

    def _say_where(self) -> None:
        """Publish the URLs of the HTTP ingress, for makers of links, and of the internal API."""
        url = self._internal_url()
        if self.registered is not None:
            self.registered.say_where(url)
        if node_name(self.config):
            self._tunnel.settings = dataclasses.replace(self._tunnel.settings, internal_url=url)
        http, bound = self.config.ingress.http, self.http_address
        if self._access is not None and http is not None and bound is not None:
            self._access.grants.say_where(http.url_of(bound.port))

    def _set_doors(self, config: ProxyConfig) -> None:
        """Serve all who come as this configuration says. Raises ConfigError, with nothing
        changed."""
        fitting = within_descriptors(config)
        self._set_ingress(fitting)
        self._set_admission(fitting)

    def _set_admission(self, config: ProxyConfig) -> None:
        limits = config.limits.ingress
        self._tunnel.admission.configure(
            limit=limits.max_handshakes,
            per_address=limits.max_arrivals_per_address,
            exempt=TrustedProxies.parse(config.tunnel.trusted_proxies),
            max_waiting=limits.max_waiting_handshakes,
            patience=limits.handshake_timeout * 2 / 3,
            silence=limits.first_byte_timeout / 2,
        )

    def _set_ingress(self, config: ProxyConfig) -> None:
        http, limits, internal = config.ingress.http, config.limits.ingress, config.internal
        # Files are read first: if that fails, nothing has changed.
        check_identity_fields(config.access, "access.")
        for index, rule in enumerate(config.access.rules):
            check_identity_fields(rule, f"access.rules[{index}].")
        certificates = self._certificates.load(http)
        access = Access.from_config(internal) if internal is not None else Access()
        tls = self._certificates.keep(certificates)
        if http is not None:
            self._http.configure(http, limits, tls)
            is_local = is_loopback(http.address.host)
            self._gate.configure(config.access, config.limits.access, is_local=is_local)
        self._groups.configure(config.groups)
        self._tcp.configure(limits)
        self._internal.configure(
            InternalSettings(access=access, limits=config.limits.internal, http_limits=limits)
        )
        self.dispatcher.configure(config.limits.internal, limits)
        self.store.expire_after = config.limits.internal.session_expiry
        if self._agent_server is None:
            self._set_agents(config)

    def _set_agents(self, config: ProxyConfig) -> list[str]:
        """Apply the settings of Socket.IO agents. Returns the connected ones that may not stay."""
        agents = config.socketio.agents if config.socketio is not None else []
        self.dispatcher.expect({agent.proxy_id: agent.group for agent in agents})
        if config.socketio is None:
            server = self._agent_server
            return server.configure(server.settings, []) if server is not None else []
        # Imported here: its libraries take longer to import than the rest of the proxy.
        from tunnelmux.proxy.commands.socketio_agents import AgentServer, agent_settings

        settings = agent_settings(config)
        if self._agent_server is None:
            self._agent_server = AgentServer(self.dispatcher, settings)
        lists = lists_of(config.socketio)
        return self._agent_server.configure(settings, config.socketio.agents, lists)

    def _check_agents(self, config: ProxyConfig) -> None:
        """Raises ConfigError when a file of [socketio] cannot be used; changes nothing."""
        if config.socketio is not None:
            from tunnelmux.proxy.commands.socketio_agents import agent_settings

            agent_settings(config)

    async def _serve_agents(self) -> None:
        if self._agent_server is not None and not self._agent_server.is_running:
            await self._agents.start(self._agent_server.run)

    def _pump_batches(self) -> Histogram | None:
        pump = self._tunnel.pump
        return pump.core.batches if pump is not None else None

    def _trace_gauges(self) -> dict[str, tuple[str, float]]:
        if self._tracing is None:
            return {}
        lost = spans_lost(self._tracing)
        return {"tunnelmux_spans_lost": ("Spans that no receiver got, since the start.", lost)}

    def _gauges(self) -> dict[str, tuple[str, float]]:
        """The proxy's gauges for the metrics."""
        sessions = self._tunnel.sessions
        return self._trace_gauges() | {
            "tunnelmux_sessions": ("Agents that are connected.", len(sessions)),
            "tunnelmux_streams": ("Live streams of all sessions.", _live_streams(sessions)),
            "tunnelmux_visits": ("Visits: HTTP, TCP, forwards and commands.", len(self.visits)),
            "tunnelmux_http_visitors": ("Connections of visitors.", self._http.visitor_count),
            "tunnelmux_draining": ("1 while the proxy shuts down.", self._internal.is_draining),
        }

    def _admissions(self) -> Iterator[Admission]:
        """The admissions of all listeners for unauthenticated peers."""
        yield self._tunnel.admission
        yield self._http.admission
        if self._agent_server is not None:
            yield self._agent_server.admission
        if self.cluster is not None and self.cluster.doors is not None:
            yield self.cluster.doors.admission

    # -- listeners -----------------------------------------------------------------

    def _plans(self) -> dict[str, ListenerPlan]:
        ingress = self.config.ingress
        plans = {
            "tunnel": ListenerPlan(
                key="tunnel.listen",
                address=self.config.tunnel.address,
                handler=self._tunnel.handle,
                nursery=self._agents,
                admission=self._tunnel.admission,
                addresses=lists_of(self.config.tunnel),
            )
        }
        doors = self.cluster.doors if self.cluster is not None else None
        if self.config.cluster is not None and doors is not None:
            plans["cluster"] = ListenerPlan(
                key="cluster.listen",
                address=self.config.cluster.listen_address,
                handler=doors.handle,
                nursery=self._agents,
                admission=doors.admission,
            )
        socketio = self.config.socketio
        if socketio is not None and self._agent_server is not None:
            plans["socketio"] = ListenerPlan(
                key="socketio.listen",
                address=socketio.address,
                handler=self._agent_server.handle,
                admission=self._agent_server.admission,
                nursery=self._agents,
                addresses=lists_of(socketio),
            )
        if ingress.http is not None:
            plans["http"] = ListenerPlan(
                key="ingress.http.listen",
                address=ingress.http.address,
                handler=self._http.handle,
                nursery=self._visitors,
                take=partial(self._http.take, self._visitors),
                take_passed=partial(self._http.take, self._visitors, is_passed=True),
                after_batch=self._http.after_batch,
            )
        for index, (slot, tcp) in enumerate(zip(_tcp_slots(self.config), ingress.tcp, strict=True)):
            plans[slot] = ListenerPlan(
                key=f"ingress.tcp[{index}].listen",
                address=tcp.address,
                handler=partial(self._tcp.handle, tcp.device, tcp.service),
                nursery=self._visitors,
                take=partial(self._tcp.take_or_pass, slot, self._visitors, tcp.device, tcp.service),
                take_passed=partial(self._tcp.take, self._visitors, tcp.device, tcp.service),
                addresses=lists_of(tcp),
            )
        return plans

    def _private_plans(self) -> dict[str, ListenerPlan]:
        internal = self.config.internal
        if internal is None:
            return {}
        return {
            "internal": ListenerPlan(
                key="internal.listen",
                address=internal.address,
                handler=self._internal.handle,
                nursery=self._callers,
                admission=self._internal,
                says_no=True,
                bytes_count=False,
            )
        }


def _tcp_slots(config: ProxyConfig) -> list[str]:
    """A name for each TCP ingress; it stays the same over a reload if the address does."""
    # Port 0 may be used more than once: device and service tell these apart.
    return [
        f"tcp {tcp.listen}" + (f" {tcp.device}/{tcp.service}" if tcp.address.port == 0 else "")
        for tcp in config.ingress.tcp
    ]


def _tunnel_settings(config: ProxyConfig) -> TunnelSettings:
    tunnel = config.tunnel
    return TunnelSettings(
        path=tunnel.path,
        tls=_tls_context(tunnel.tls_certificate, tunnel.tls_key),
        limits=config.limits.session,
        ingress=config.limits.ingress,
        node=node_name(config),
    )


def _audit_log(config: ProxyConfig) -> AuditLog:
    return AuditLog.open(config.audit.file, config.audit.limits)


def _tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    # Agents dial once in hours: session tickets are of no use to them.
    return server_context(certificate, key, tickets=False) if certificate and key else None


def _live_streams(sessions: list[LocalHandle]) -> int:
    return sum(handle.session.stream_count for handle in sessions)
