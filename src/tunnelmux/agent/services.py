"""The declared services."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunnelmux.config import AgentConfig, ServiceConfig
from tunnelmux.http import Refusal, Refused
from tunnelmux.wire import MOST_SERVICES, list_relayed, list_timeouts

__all__ = ["ServiceTable", "may_be_relayed"]


class ServiceTable:
    """The services of one configuration. Only these can be reached."""

    def __init__(self, config: AgentConfig) -> None:
        self._services: Sequence[ServiceConfig] = config.offered
        self._by_name = {service.name: service for service in self._services}
        self.default = config.default_service

    def __iter__(self) -> Iterator[ServiceConfig]:
        return iter(self._services)

    @property
    def listing(self) -> bytes:
        """The names of the first services, for display."""
        return ", ".join(list(self._by_name)[:MOST_SERVICES]).encode("ascii")

    @property
    def relayed(self) -> bytes:
        """The services to which a proxy may relay visitors' requests raw by CONNECT, as in
        RELAY_FIELD.
        """
        names = [service.name for service in self if may_be_relayed(service)]
        return list_relayed(names, self.default.name if self.default is not None else None)

    @property
    def timeouts(self) -> bytes:
        """The services with a response timeout of their own, as in TIMEOUTS_FIELD."""
        timeouts = {
            service.name: service.response_timeout
            for service in self
            if service.response_timeout is not None
        }
        return list_timeouts(timeouts, self.default.name if self.default is not None else None)

    @property
    def default_name(self) -> bytes:
        """The name of the default service; empty when there is none."""
        return self.default.name.encode("ascii") if self.default is not None else b""

    def for_http(self, name: str | None) -> ServiceConfig:
        """The HTTP service of that name; an empty name means the default service. Raises Refused
        (404).
        """
        service = self.default if name is None else self._find(name)
        if service is None:
            raise Refused(Refusal(404, "unknown-service", "This device offers no service."))
        if service.scheme != "http":
            raise Refused(
                Refusal(
                    404,
                    "unknown-service",
                    f'The service "{service.name}" of this device speaks {service.scheme}, not '
                    "HTTP: reach it through a TCP port of the proxy.",
                )
            )
        return service

    def for_connect(self, target: str) -> ServiceConfig:
        """The service a CONNECT asks for, by name or by exactly its host:port.

        Raises Refused: 403 for a host:port that is no service's target, 404 for an unknown name.
        """
        if ":" not in target:
            return self._find(target)
        for service in self._services:
            address = service.address
            if address is not None and str(address).lower() == target.lower():
                return service
        raise Refused(
            Refusal(
                403,
                "forbidden",
                f"This device does not allow connections to {target}: declare it under "
                "[[services]] in the agent's configuration.",
            )
        )

    def _find(self, name: str) -> ServiceConfig:
        service = self._by_name.get(name)
        if service is None:
            raise Refused(
                Refusal(404, "unknown-service", f'This device has no service "{name[:64]}".')
            )
        return service


def may_be_relayed(service: ServiceConfig) -> bool:
    """Whether requests to the service may go to its target unchanged: the agent must not have to
    rewrite fields, watch a timeout, or add TLS.
    """
    is_plain = service.host is None and service.response_timeout is None
    return service.scheme == "http" and is_plain and not service.where.is_encrypted
