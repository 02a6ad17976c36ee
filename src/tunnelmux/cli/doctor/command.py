"""`tunnelmux doctor`, for a person's machine and for a device's."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.doctor.findings import Finding, print_finding, worst_status
from tunnelmux.cli.fleet_options import (
    OWN_VARIABLES,
    examples,
    json_option,
    place_of,
    place_options,
)
from tunnelmux.cli.interrupts import run_interruptible
from tunnelmux.cli.output import print_json
from tunnelmux.errors import ConfigError
from tunnelmux.wire import REASON_FIELD

if TYPE_CHECKING:
    from tunnelmux.cli.doctor.server import Probe
    from tunnelmux.cli.fleet.opening import Place
    from tunnelmux.config import AgentConfig

__all__ = ["doctor"]

_TARGET_TIMEOUT = 5.0
# Seconds for a service of the device itself: it is near.


@click.command(
    epilog=examples(
        ("tunnelmux doctor", "Check the way from here to the server where you are signed in."),
        (
            "tunnelmux doctor --agent agent.toml",
            "On a device: check the way to its proxy, and its services.",
        ),
        more="It stops at the first thing without which the rest cannot work. To measure\n"
        "the throughput it moves at most 16 MiB, with --agent 4 MiB each way, and\n"
        "takes some seconds. Exit status 1 means that something is wrong.",
    )
)
@click.option(
    "--agent",
    "agent_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The agent's configuration: check what the agent needs.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 120),
    default=10.0,
    show_default=True,
    help="How long each step may take.",
)
@json_option
@place_options
def doctor(agent_file: Path | None, timeout: float, as_json: bool, **options: Any) -> int:
    """Find out why this machine does not reach the server."""
    from tunnelmux.cli.doctor.server import check_descriptors

    if agent_file is not None:
        from tunnelmux.config.load import load_agent_config

        # The agent refuses unknown settings, and these variables are of this program.
        theirs = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
        config = load_agent_config(agent_file, environ=theirs)
        checks = _of_agent(config, timeout)
    else:
        checks = _of_person(place_of(options), timeout)
    findings: list[Finding] = []

    async def run() -> None:
        async for finding in checks:
            findings.append(finding)
            if not as_json:
                print_finding(finding)

    run_interruptible(run)
    findings.append(check_descriptors())
    if as_json:
        print_json(findings)
    else:
        print_finding(findings[-1])
    return worst_status(findings)


async def _of_person(place: Place, timeout: float) -> AsyncIterator[Finding]:
    is_well = True
    probe = probe_of_place(place)
    probe.timeout = timeout
    async for finding in probe.run():
        is_well = is_well and finding.outcome != "bad"
        yield finding
    if is_well:
        yield await _account(place)


def probe_of_place(place: Place) -> Probe:
    """The checks of the server at this place. Raises ConfigError for a URL that cannot be used."""
    from tunnelmux.cli.doctor.server import Probe, Server
    from tunnelmux.config.http_proxy import http_proxy_from_environment, parse_http_proxy
    from tunnelmux.config.rules import split_url
    from tunnelmux.transports import client_context

    sign_in = place.sign_in
    url = sign_in.server if sign_in is not None else place.url
    parts = split_url("URL", url, ("https", "http"), "https://tunnels.example.com")
    secret = sign_in.token if sign_in is not None else place.secret
    ca_file = sign_in.ca_file if sign_in is not None else place.ca_file
    is_secure = parts.scheme == "https"
    proxy = http_proxy_from_environment(url, os.environ) if sign_in is not None else None
    headers = (b"Authorization", b"Bearer " + secret.reveal().encode()) if secret else None
    server = Server(
        host=parts.hostname or "",
        port=parts.port or (443 if is_secure else 80),
        tls=client_context(ca_file) if is_secure else None,
        http_proxy=parse_http_proxy("HTTPS_PROXY", proxy.reveal()) if proxy else None,
        headers=(headers,) if headers else (),
    )
    prefix = parts.path.rstrip("/")
    if sign_in is not None:
        return Probe(
            server,
            # No device has this id: the server says so, but only to a WebSocket.
            upgrade_path=f"{prefix}/api/devices/none/connect/none",
            plain_path=f"{prefix}/api/health",
            download_path=f"{prefix}/api/openapi.json",
            upgrade_answers=frozenset({403, 404}),
            upgrade_marks=(b"There is no such device", b"insufficient"),
            # The server checks the caller before it looks for a WebSocket.
            upgrade_unclear=b"not_signed_in",
        )
    return Probe(
        server,
        upgrade_path=f"{prefix}/internal/forward/ws?token=none&path=/",
        plain_path=f"{prefix}/healthz",
        download_path=f"{prefix}/openapi.json",
        upgrade_answers=frozenset({401, 502}),
        upgrade_marks=(b"TUNNEL_DISCONNECTED", b"UNAUTHORIZED"),
    )


async def _account(place: Place) -> Finding:
    from tunnelmux.cli.fleet.errors import one_error
    from tunnelmux.cli.fleet.opening import open_fleet
    from tunnelmux.errors import TunnelmuxError

    try:
        async with one_error(), open_fleet(place) as fleet:
            account = await fleet.account()
    except TunnelmuxError as exc:
        return Finding(check="account", outcome="bad", said=str(exc))
    who = account.email or account.name
    said = f"{who}, {account.role or 'no role'}" if who else "the secret is the right one"
    return Finding(check="account", outcome="good", said=said)


async def _of_agent(config: AgentConfig, timeout: float) -> AsyncIterator[Finding]:
    from tunnelmux.agent.link import ProxyLink
    from tunnelmux.cli.doctor.throughput import check_throughput

    probe = probe_of_agent(config)
    probe.timeout = timeout
    is_well = True
    async for finding in probe.run():
        is_well = is_well and finding.outcome != "bad"
        yield finding
    if is_well and config.proxy is not None:
        for finding in await check_throughput(ProxyLink(config.proxy, config.device), timeout):
            yield finding
    for service in config.services:
        reached = await _service(service)
        if reached is not None:
            yield reached


def probe_of_agent(config: AgentConfig) -> Probe:
    """The checks of the agent's proxy. Raises ConfigError where it has none."""
    from tunnelmux.cli.doctor.server import Probe, Server
    from tunnelmux.transports import client_context, parse_url

    if config.proxy is None:
        raise ConfigError("the configuration has no [proxy]: there is no way to a proxy to check")
    url = parse_url(config.proxy.url)
    tls = client_context(config.proxy.ca_file, config.proxy.pin) if url.is_secure else None
    server = Server(host=url.host, port=url.port, tls=tls, http_proxy=config.proxy.way_out)
    # Without a token, so that the running agent is not replaced: the proxy's refusal is enough.
    return Probe(
        server,
        upgrade_path=url.target,
        plain_path=url.target,
        upgrade_answers=frozenset({401, 403, 404, 503}),
        upgrade_marks=(REASON_FIELD.lower(),),
    )


async def _service(service: Any) -> Finding | None:
    import trio

    address = service.address
    if address is None:
        return None
    try:
        with trio.fail_after(_TARGET_TIMEOUT):
            stream = await trio.open_tcp_stream(address.host, address.port)
            await trio.aclose_forcefully(stream)
    except (OSError, trio.TooSlowError) as exc:
        why = "no answer" if isinstance(exc, trio.TooSlowError) else "nothing listens there"
        return Finding(
            check="service",
            outcome="bad",
            said=f"{service.name} at {address}: {why}",
            fix="start it, or correct its target in the agent's configuration",
        )
    return Finding(check="service", outcome="good", said=f"{service.name} at {address} answers")
