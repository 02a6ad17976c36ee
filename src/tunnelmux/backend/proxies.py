"""All proxies of an installation: found in the registry, called through their internal APIs."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from tunnelmux.backend.client import ApiCallFailed, ProxyClient
from tunnelmux.config import Secret
from tunnelmux.config.proxies import ProxyCalls
from tunnelmux.errors import (
    ConnectError,
    DeviceUnreachable,
    SessionClosed,
    SessionError,
    SessionNotFound,
)
from tunnelmux.observability import get_logger
from tunnelmux.registry import Registry
from tunnelmux.sessions import SessionSummary
from tunnelmux.transports import client_context

__all__ = ["LiveSession", "Proxies", "Survey"]

_log = get_logger("proxies")

_LIST_AGE = 1.0
# Seconds for which the list of proxies is cached: they come and go within minutes.


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A device's tunnel, and the proxy that holds it."""

    proxy_id: str
    client: ProxyClient
    summary: SessionSummary


@dataclass(frozen=True, slots=True)
class Survey:
    """The answers of all proxies; `silent` are the names of those that did not answer, or have no
    internal API.
    """

    sessions: list[LiveSession]
    silent: list[str]


class Proxies:
    """All proxies that are live according to the registry."""

    def __init__(self, registry: Registry, config: ProxyCalls) -> None:
        self._registry = registry
        self._config = config
        self._secret: Secret | None = config.read_secret()
        self._tls: ssl.SSLContext | None = None
        self._clients: dict[str, ProxyClient] = {}
        self._keeping: AsyncExitStack | None = None
        self._known: list[tuple[str, str, ProxyClient]] = []
        self._read = float("-inf")
        self._deaf: list[str] = []  # names of proxies that publish no address

    @asynccontextmanager
    async def keeping_connections(self) -> AsyncIterator[None]:
        """Within the block, keep connections to the proxies; otherwise each call opens one."""
        async with AsyncExitStack() as stack:
            self._keeping = stack
            try:
                yield
            finally:
                self._keeping = None

    async def survey(self, device: str | None = None) -> Survey:
        """The live sessions of all proxies, of one device label or of all.

        A proxy that does not answer is named in the result, and delays it by at most the timeout of
        one call.
        """
        sessions: list[LiveSession] = []
        silent: list[str] = []

        async def ask(proxy_id: str, name: str, client: ProxyClient) -> None:
            try:
                found = await client.list_sessions(device=device)
            except (ConnectError, ApiCallFailed, SessionError) as exc:
                _log.warning("proxy does not answer", proxy=name, problem=str(exc))
                silent.append(name)
            else:
                sessions.extend(LiveSession(proxy_id, client, summary) for summary in found)

        async with trio.open_nursery() as nursery:
            for proxy_id, name, client in await self._living():
                nursery.start_soon(ask, proxy_id, name, client)
        return Survey(sessions, sorted({*silent, *self._deaf}))

    async def session_of(self, label: str) -> LiveSession:
        """The newest session of a device. Raises DeviceUnreachable."""
        survey = await self.survey(label)
        if survey.sessions:
            return max(survey.sessions, key=lambda session: session.summary.connected_at)
        if survey.silent:
            names = ", ".join(
                f"{name} (its proxy.toml has no [internal])" if name in self._deaf else name
                for name in survey.silent
            )
            raise DeviceUnreachable(
                f"the device may be connected, but a proxy does not answer: {names}",
                code="proxy_away",
            )
        raise DeviceUnreachable("the device is not connected now", code="device_offline")

    @asynccontextmanager
    async def stream_to(
        self, label: str, *, service: str = "", request: str = ""
    ) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        """Like `open_stream`, within the block."""
        stream = await self.open_stream(label, service=service, request=request)
        try:
            yield stream
        finally:
            await trio.aclose_forcefully(stream)

    async def open_stream(
        self, label: str, *, lease: str = "", service: str = "", request: str = ""
    ) -> trio.abc.HalfCloseableStream:
        """A stream to a device's agent, for the caller to close, as `ProxyClient.open_stream` has
        it; raises DeviceUnreachable."""
        session = await self.session_of(label)
        try:
            return await session.client.open_stream(
                session.summary.token, lease=lease, service=service, request=request
            )
        except (SessionClosed, SessionNotFound) as exc:
            raise DeviceUnreachable(
                "the device's connection ended just now", code="device_offline"
            ) from exc
        except (ConnectError, ApiCallFailed, SessionError) as exc:
            if isinstance(exc.__cause__, ApiCallFailed) and exc.__cause__.code == "LEASE_OVER":
                raise DeviceUnreachable("the lease does not run", code="lease_over") from exc
            _log.warning("no stream to device", device=label, problem=str(exc))
            raise DeviceUnreachable(
                "the proxy gave no stream to the device", code="proxy_away"
            ) from exc

    async def clients(self) -> list[ProxyClient]:
        """A client for each living proxy."""
        return [client for _, _, client in await self._living()]

    async def _living(self) -> list[tuple[str, str, ProxyClient]]:
        if trio.current_time() - self._read >= _LIST_AGE:
            proxies = [item for item in await self._registry.fleet.proxies() if item.living]
            # Of the workers of one proxy, which all tell its address, one answers for all.
            by_url = {item.internal_url: item for item in reversed(proxies) if item.internal_url}
            self._known = [
                (item.id, item.name, await self._client(url)) for url, item in by_url.items()
            ]
            self._deaf = [item.name for item in proxies if not item.internal_url]
            self._read = trio.current_time()
        return self._known

    async def _client(self, url: str) -> ProxyClient:
        if url not in self._clients:
            if url.startswith("https://") and self._tls is None:
                self._tls = client_context(self._config.ca_file)
            self._clients[url] = ProxyClient(
                url,
                secret=self._secret.reveal() if self._secret is not None else None,
                ssl_context=self._tls,
                timeout=self._config.timeout,
            )
            if self._keeping is not None:
                await self._keeping.enter_async_context(self._clients[url])
        return self._clients[url]
