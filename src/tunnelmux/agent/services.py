"""The declared services: who may be reached, and how a target is connected to."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

import trio

from tunnelmux.config import AgentConfig, ServiceConfig
from tunnelmux.http import Refusal, Refused
from tunnelmux.transports.tcp import configure_socket, explain_os_error

__all__ = ["ServiceTable", "open_target"]


class ServiceTable:
    """The services of one configuration. What is not in here cannot be reached."""

    def __init__(self, config: AgentConfig) -> None:
        self._services: Sequence[ServiceConfig] = config.services
        self._by_name = {service.name: service for service in config.services}
        self.default = config.default_service

    def __iter__(self) -> Iterator[ServiceConfig]:
        return iter(self._services)

    def for_http(self, name: str | None) -> ServiceConfig:
        """The HTTP service of that name, or the default one. Raises Refused (404)."""
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
            if str(service.address).lower() == target.lower():
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


async def open_target(service: ServiceConfig, timeout: float) -> trio.SocketStream:
    """A connection to the service's target within `timeout` seconds.

    Raises Refused: 502 target-refused or target-unreachable, 504 target-timeout.
    """
    where = f'The target of service "{service.name}" ({service.address})'
    try:
        with trio.fail_after(timeout):
            stream = await trio.open_tcp_stream(service.address.host, service.address.port)
    except trio.TooSlowError:
        raise Refused(
            Refusal(
                504,
                "target-timeout",
                f"{where} did not take the connection within {timeout:g} s: check that it runs.",
            )
        ) from None
    except (OSError, UnicodeError) as exc:
        if _is_refusal(exc):
            raise Refused(
                Refusal(
                    502,
                    "target-refused",
                    f"{where} refused the connection: check that it runs and listens there.",
                )
            ) from exc
        raise Refused(
            Refusal(
                502,
                "target-unreachable",
                f"{where} cannot be reached from the device: {explain_os_error(exc)}.",
            )
        ) from exc
    configure_socket(stream, user_timeout=None)
    return stream


def _is_refusal(exc: BaseException) -> bool:
    """Whether the target's host is there and nothing listens; Trio groups one error per address."""
    if isinstance(exc, BaseExceptionGroup):
        return any(_is_refusal(inner) for inner in exc.exceptions)
    if isinstance(exc, OSError) and exc.errno == errno.ECONNREFUSED:
        return True
    return exc.__cause__ is not None and _is_refusal(exc.__cause__)
