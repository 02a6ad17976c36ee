"""Health checks of services' targets, at intervals, where a service has a `check`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

import trio

import tunnelmux
from tunnelmux.agent.targets import TargetConnector
from tunnelmux.config import ServiceConfig
from tunnelmux.http import ClientConnection, Refused, UpstreamGone
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import get_logger
from tunnelmux.relay import abort

__all__ = ["HealthChecks", "TargetHealth"]

_log = get_logger("agent")

_USER_AGENT = (b"User-Agent", f"tunnelmux/{tunnelmux.__version__}".encode("ascii"))


@dataclass(slots=True)
class TargetHealth:
    """The results of one service's checks."""

    service: ServiceConfig
    down: str = ""
    """Why the target counts as down, without its address; empty while it is up."""
    since: datetime | None = None
    """The time of the last change; None before the first check."""
    failures: int = 0
    """Consecutive failed checks."""


class HealthChecks:
    """Runs the checks while `run` runs. A target counts as up until checks have failed: a target
    that has just started must not be refused.
    """

    def __init__(self, limits: IngressLimits) -> None:
        self._limits = limits
        self._checked: dict[str, tuple[TargetHealth, TargetConnector]] = {}
        self._round = trio.CancelScope()

    def configure(self, connectors: Iterable[tuple[ServiceConfig, TargetConnector]]) -> None:
        """Check these services from now on. Results of unchanged services stay."""
        before = self._checked
        self._checked = {}
        for service, connector in connectors:
            if service.check is None:
                continue
            known = before.get(service.name)
            same = known is not None and known[0].service == service
            health = known[0] if known is not None and same else TargetHealth(service)
            self._checked[service.name] = (health, connector)
        self._round.cancel(reason="the services changed")

    def __iter__(self) -> Iterator[TargetHealth]:
        return iter([health for health, _ in self._checked.values()])

    def down(self, service: str) -> str:
        """Why the target of this service counts as down; empty while it is up."""
        found = self._checked.get(service)
        return found[0].down if found is not None else ""

    async def run(self) -> NoReturn:
        """Check until cancelled."""
        while True:
            with trio.CancelScope() as self._round:
                async with trio.open_nursery() as nursery:
                    for health, connector in self._checked.values():
                        nursery.start_soon(self._watch, health, connector)
                    await trio.sleep_forever()

    async def _watch(self, health: TargetHealth, connector: TargetConnector) -> NoReturn:
        while True:
            began = trio.current_time()
            _note(health, await self._check(health.service, connector))
            await trio.sleep_until(began + health.service.check_interval)

    async def _check(self, service: ServiceConfig, connector: TargetConnector) -> str:
        """Check once. The failure as a phrase; empty for success."""
        try:
            with trio.fail_after(service.check_timeout):
                if service.check == "tcp":
                    await abort(await connector.dial(service.check_timeout))
                    return ""
                return await self._get(service, connector)
        except Refused as exc:
            return exc.refusal.message.partition('" ')[2].rstrip(".")
        except trio.TooSlowError:
            return f"gave no answer to GET {service.check} within {service.check_timeout:g} s"
        except UpstreamGone as exc:
            return f"did not answer GET {service.check}: {exc}"

    async def _get(self, service: ServiceConfig, connector: TargetConnector) -> str:
        assert service.check is not None  # only services with a check get here
        stream = await connector.dial_http(service.check_timeout)
        try:
            client = ClientConnection(stream, self._limits)
            host = service.host or (str(service.address) if service.address else "localhost")
            fields = [(b"Host", host.encode("ascii")), _USER_AGENT, (b"Connection", b"close")]
            await client.send_request(b"GET", service.check.encode("ascii"), fields, end=True)
            head = await client.read_head()
            while head.is_interim:
                head = await client.read_head()
        finally:
            await abort(stream)
        if head.status < 400:
            return ""
        return f"answered GET {service.check} with {head.status}"


def _note(health: TargetHealth, problem: str) -> None:
    """Record the result of a check, and log a change of state."""
    service = health.service
    health.failures = health.failures + 1 if problem else 0
    if not problem:
        if health.down:
            _log.info("service up", service=service.name)
        if health.down or health.since is None:
            health.down, health.since = "", datetime.now(UTC)
        return
    if health.failures < service.check_failures:
        return
    if not health.down:
        health.since = datetime.now(UTC)
        _log.warning("service down", service=service.name, cause=problem)
    health.down = problem
