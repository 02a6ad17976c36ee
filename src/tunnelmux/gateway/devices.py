"""Streams to the services of devices, through their tunnels."""

from __future__ import annotations

import trio

from tunnelmux.backend.proxies import Proxies
from tunnelmux.errors import DeviceUnreachable
from tunnelmux.http import ConnectFailed, PeerGone, open_connect
from tunnelmux.limits import IngressLimits
from tunnelmux.wire import LEASE_FIELD

__all__ = ["DeviceAway", "Devices"]

_PROXY_BEHIND = 3.0
# Seconds to wait for a proxy to learn of a new lease; it takes 2 at most.

_AGAIN = 0.25
# Seconds between two attempts.


class DeviceAway(Exception):
    """No connection to the service; the message says why."""


class Devices:
    """Opens connections to services of devices, through the proxies that hold their tunnels."""

    def __init__(self, proxies: Proxies, timeout: float) -> None:
        self._proxies = proxies
        self._timeout = timeout
        self._limits = IngressLimits()

    async def connect(self, label: str, service: str, lease: str) -> trio.abc.HalfCloseableStream:
        """A raw connection to a service, for the caller to close; raises DeviceAway.

        `lease` is the id of the lease that allows it, or empty. Proxy and agent end it with the
        lease too.
        """
        headers = [(LEASE_FIELD, lease.encode("ascii"))] if lease else []
        try:
            with trio.fail_after(self._timeout):
                stream = await self._open(label, lease)
                try:
                    connection = await open_connect(
                        stream,
                        service,
                        self._limits,
                        answer_timeout=self._timeout,
                        headers=headers,
                    )
                    await connection.wait_answer()
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await trio.aclose_forcefully(stream)
                    raise
                return connection
        except (DeviceUnreachable, ConnectFailed, PeerGone) as exc:
            raise DeviceAway(str(exc)) from exc
        except trio.TooSlowError as exc:
            raise DeviceAway(f"no connection within {self._timeout:g} s") from exc

    async def _open(self, label: str, lease: str) -> trio.abc.HalfCloseableStream:
        """Open a stream; try again while the proxy does not know of the lease yet."""
        until = trio.current_time() + _PROXY_BEHIND
        while True:
            try:
                return await self._proxies.open_stream(label, lease=lease)
            except DeviceUnreachable as exc:
                if exc.code != "lease_over" or trio.current_time() >= until:
                    raise
            await trio.sleep(_AGAIN)
