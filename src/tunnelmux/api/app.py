"""Runs the API: assembles its parts, opens its listener, and ends it in order."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import msgspec
import trio
from fastapi import FastAPI
from starlette.types import ASGIApp

from tunnelmux import __version__
from tunnelmux.api import server
from tunnelmux.api.access import seal
from tunnelmux.api.browser_sessions.keys import read_key_file
from tunnelmux.api.browser_sessions.sign_in import SignIn
from tunnelmux.api.commands import CommandBook
from tunnelmux.api.context import Api, Places, Shares
from tunnelmux.api.description import describe
from tunnelmux.api.events import EventHub
from tunnelmux.api.gate import Gate, GateLimits
from tunnelmux.api.identity import Identification
from tunnelmux.api.metrics import Measured, Metrics, serve_metrics
from tunnelmux.api.oidc.provider import Provider
from tunnelmux.api.problems import add_problem_handlers
from tunnelmux.api.rights import Rights
from tunnelmux.api.routes import (
    audit,
    auth,
    browser_terminals,
    commands,
    console,
    console_access,
    console_operations,
    console_requests,
    decisions,
    device_keys,
    devices,
    events,
    forward,
    health,
    host_keys,
    inspections,
    leases,
    live,
    logs,
    overview,
    own,
    pairing,
    people,
    recordings,
    requests,
    setup,
    tenants,
    terminal,
    visitors,
)
from tunnelmux.api.terminals import Terminals
from tunnelmux.api.visitors import VisitorProofs
from tunnelmux.backend.proxies import Proxies
from tunnelmux.config.api import ApiConfig
from tunnelmux.descriptors import files_allowed
from tunnelmux.errors import RegistryError
from tunnelmux.http.fields import TrustedProxies
from tunnelmux.observability import get_logger
from tunnelmux.registry import Keeping, PairingRules, RecordLimits, Registry, open_registry
from tunnelmux.registry.ids import Clock, utc_now
from tunnelmux.transports.admission import Admission
from tunnelmux.transports.certificates import ServerCertificates

__all__ = ["RunningApi", "application", "assemble", "build_app", "run_api", "serve_api"]

_log = get_logger("api")

_TIDY = 3600.0
# Seconds between two calls of `Registry.tidy`.

_JUMP = 300.0
# Seconds by which the system's clock may run differently from the one that is never set.

_FORWARDED = re.compile(r"/api/devices/[^/]+/http/")
_COMMANDS = "/api/exec"

ROUTERS = (
    auth.router,
    terminal.router,
    health.router,
    people.tenant_routes,
    tenants.router,
    people.members,
    people.invitations,
    forward.router,
    browser_terminals.router,
    live.router,
    overview.router,
    commands.router,
    events.router,
    devices.router,
    requests.router,
    logs.router,
    device_keys.router,
    host_keys.router,
    inspections.router,
    visitors.rules,
    decisions.router,
    decisions.pages,
    visitors.visitors,
    pairing.pairings,
    pairing.install_keys,
    pairing.joining,
    leases.leases,
    recordings.router,
    leases.ssh_keys,
    own.browser_sessions,
    own.access_tokens,
    audit.router,
    setup.router,
    console.assets,
    console.router,
    console_access.router,
    console_operations.router,
    console_requests.router,
)


class RunningApi:
    """A running API."""

    def __init__(self, api: Api, port: int, metrics_port: int | None) -> None:
        self.api = api
        self.port = port
        """The port it listens on: the configured one, or the one the system chose for 0."""
        self.metrics_port = metrics_port
        """The port of the metrics; None without a metrics listener."""
        self.is_leaving = trio.Event()
        self.has_left = trio.Event()

    async def drain(self, grace: float) -> None:
        """Accept no new connections, and return when the requests in flight were answered.

        They get `drain.grace` seconds. `grace` has the same value: the server knows it already.
        """
        self.is_leaving.set()
        with trio.move_on_after(grace):
            await self.has_left.wait()


def application(api: Api) -> FastAPI:
    """All routes. Raises TypeError for one without an access rule."""
    app = FastAPI(
        title="tunnelmux-api", version=__version__, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.api = api
    add_problem_handlers(app, console.page_of_refusal)
    for router in ROUTERS:
        app.include_router(router)
    describe(app)
    return seal(app)


def build_app(api: Api) -> ASGIApp:
    """The application, wrapped in its gate."""
    gate = Gate(
        application(api),
        api.identification,
        trusted_proxies=TrustedProxies.parse(api.config.api.trusted_proxies),
        limits=GateLimits(
            api.config.limits.body_stall,
            api.config.limits.max_body,
            api.config.limits.max_calls_per_person,
            api.config.limits.max_changes_per_minute,
            # A half of the database is for callers who are known.
            max_looks=max(1, api.config.registry.connections // 4),
            max_strangers=max(1, api.config.registry.connections // 4),
        ),
        streams=lambda path: _FORWARDED.match(path) is not None,
        is_long=lambda path: path == _COMMANDS,
    )
    return Measured(gate, api.metrics)


def assemble(config: ApiConfig, registry: Registry) -> Api:
    """Make the parts of an API on this registry. Raises ConfigError for an unusable file."""
    provider = Provider(config.oidc, config.oidc.read_secret(), config.api.public_url)
    keys = read_key_file("browser_sessions.key_file", config.browser_sessions.key_file)
    sign_in = SignIn(registry, provider, keys, config.oidc, config.browser_sessions)
    proxies = Proxies(registry, config.proxies)
    identification = Identification(registry, sign_in)
    followers = Places(config.limits.max_events, config.limits.max_events_per_person)
    return Api(
        config=config,
        registry=registry,
        sign_in=sign_in,
        proxies=proxies,
        commands=CommandBook(),
        hub=EventHub(registry, proxies),
        identification=identification,
        rights=Rights(identification),
        visitors=VisitorProofs(registry, keys.signers, config.api.public_url),
        followers=followers,
        shares=Shares(registry),
        metrics=Metrics(lambda: followers.taken, lambda: registry.failures),
        terminals=Terminals(
            config.gateway, config.limits.max_terminals, config.limits.max_terminals_per_person
        ),
    )


@contextlib.asynccontextmanager
async def run_api(
    config: ApiConfig, listener: socket.socket | None = None
) -> AsyncIterator[RunningApi]:
    """Serve while the block runs; then requests in flight get `drain.grace` seconds.

    `listener` is a listening socket to take in place of `api.listen`; it is closed at the end.
    Raises ConfigError, RegistryAway or RegistryFailed when it cannot begin.
    """
    with contextlib.ExitStack() as listeners:
        listener = listener or server.listen("api.listen", config.api.address)
        listeners.enter_context(contextlib.closing(listener))
        certificates = _certificates(config)
        scraped: socket.socket | None = None
        if config.metrics is not None:
            scraped = server.listen("metrics.listen", config.metrics.address)
            listeners.enter_context(contextlib.closing(scraped))
        async with open_registry(
            config.registry.require_url(),
            migrate=config.registry.migrate,
            rules=PairingRules(
                **msgspec.structs.asdict(config.pairing),
                max_devices=config.limits.max_devices_per_tenant,
            ),
            limits=_record_limits(config),
            connections=config.registry.connections,
            timeout=config.registry.timeout,
        ) as registry:
            api = assemble(config, registry)
            app: Any = build_app(api)
            async with (
                api.proxies.keeping_connections(),
                server.serve(
                    app,
                    listener,
                    _admission(config),
                    grace=config.drain.grace,
                    max_message=config.limits.max_body,
                    certificates=certificates,
                ),
                _metrics_listener(api, scraped) as metrics_port,
                trio.open_nursery() as nursery,  # ends first, and ends all streams of events
            ):
                port: int = listener.getsockname()[1]
                _log.info("api listening", address=f"{config.api.address.host}:{port}")
                nursery.start_soon(api.hub.run)
                nursery.start_soon(api.terminals.run)
                nursery.start_soon(keep_tidy, registry, _keeping(config))
                nursery.start_soon(api.visitors.keep_published)
                try:
                    yield RunningApi(api, port, metrics_port)
                finally:
                    nursery.cancel_scope.cancel()


def _record_limits(config: ApiConfig) -> RecordLimits:
    limits = config.limits
    return RecordLimits(
        audit_per_day=config.registry.audit_per_day,
        audit_per_day_of_tenant=config.registry.audit_per_day_of_tenant,
        access_tokens_per_person=limits.max_access_tokens_per_person,
        ssh_keys_per_person=limits.max_ssh_keys_per_person,
        leases_per_person=limits.max_leases_per_person,
        leases_per_device=limits.max_leases_per_device,
        links_per_device=limits.max_links_per_device,
        pairing_codes_per_tenant=limits.max_pairing_codes_per_tenant,
        install_keys_per_tenant=limits.max_install_keys_per_tenant,
        invitations_per_tenant=limits.max_invitations_per_tenant,
    )


def _keeping(config: ApiConfig) -> Keeping:
    return Keeping(records=config.registry.records_kept, audit=config.registry.audit_kept or None)


async def keep_tidy(registry: Registry, keep: Keeping, clock: Clock = utc_now) -> NoReturn:
    """Call `Registry.tidy` once an hour; if it fails, the next hour tries again.

    Not in an hour in which the system's clock was set: what is too old by a wrong clock would be
    lost for good. Machines set theirs soon after they start, so there is an hour before the first.
    """
    while True:
        begun, wall = trio.current_time(), clock()
        await trio.sleep(_TIDY)
        jump = (clock() - wall).total_seconds() - (trio.current_time() - begun)
        if abs(jump) > _JUMP:
            _log.warning("registry not tidied", problem=f"the clock was set by {jump:.0f} s")
            continue
        try:
            await registry.tidy(keep)
        except RegistryError as exc:
            _log.warning("registry not tidied", problem=str(exc))


async def serve_api(
    config: ApiConfig, *, task_status: trio.TaskStatus[RunningApi] = trio.TASK_STATUS_IGNORED
) -> None:
    """The same as a task of a nursery, until it is drained."""
    async with run_api(config) as running:
        task_status.started(running)
        await running.is_leaving.wait()
    running.has_left.set()


@contextlib.asynccontextmanager
async def _metrics_listener(api: Api, listener: socket.socket | None) -> AsyncIterator[int | None]:
    if listener is None:
        yield None
        return
    async with serve_metrics(api.metrics, listener):
        port: int = listener.getsockname()[1]
        _log.info("metrics listening", address=f"{listener.getsockname()[0]}:{port}")
        yield port


def _admission(config: ApiConfig) -> Admission:
    limits = config.limits
    return Admission(
        "api.listen",
        # The other half of the descriptors is for the registry and for connections to proxies.
        limit=min(limits.max_connections, files_allowed() // 2),
        per_address=limits.max_connections_per_address,
        exempt=TrustedProxies.parse(config.api.trusted_proxies),
    )


def _certificates(config: ApiConfig) -> ServerCertificates | None:
    certificate, key = config.api.tls_certificate, config.api.tls_key
    return ServerCertificates([(certificate, key)]) if certificate and key else None
