"""TCP ports of the proxy, each leading to one service of one device."""

from __future__ import annotations

import logging
from collections import Counter

import trio
from structlog.typing import FilteringBoundLogger

from tunnelmux.http import ConnectFailed, UpstreamGone, open_connect
from tunnelmux.http.refusal import Refused
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import get_logger
from tunnelmux.proxy.devices import DeviceRegister
from tunnelmux.proxy.routing import Router, stream_id
from tunnelmux.relay import RelayResult, abort, relay
from tunnelmux.sessions import DeviceStore

__all__ = ["TcpIngressServer"]

_log = get_logger("proxy.tcp")

_AGENT_SLACK = 5.0
# Seconds on top of the agent's own limit for its target: its answer says more than our silence.


class TcpIngressServer:
    """Serves the connections of all TCP ports.

    TCP has no words for a refusal, so a visitor whose service cannot be reached gets a reset, and
    one log line says why. A half-close goes through in both directions.
    """

    def __init__(self, store: DeviceStore, devices: DeviceRegister) -> None:
        self._router = Router(store, devices)
        self._limits = IngressLimits()
        self._visitors: Counter[tuple[str, str]] = Counter()

    def configure(self, limits: IngressLimits) -> None:
        """Hold connections that come from now on to these limits."""
        self._limits = limits

    async def handle(self, device: str, service: str, stream: trio.abc.Stream, remote: str) -> None:
        """Serve one visitor of the port for `service` on `device`, and close its connection.

        `remote` is the visitor's address as `host:port`.
        """
        limits, port = self._limits, (device, service)
        log = _log.bind(device=device, service=service, visitor=remote)
        if self._visitors[port] >= limits.max_visitors:
            log.warning("relay refused", reason="too-many-visitors", limit=limits.max_visitors)
            await abort(stream)
            return
        self._visitors[port] += 1
        try:
            tunnel = await self._router.open_stream(device, limits)
            log = log.bind(stream=stream_id(tunnel))
            await self._relay(service, stream, tunnel, limits, log)
        except Refused as exc:
            log.warning("relay refused", reason=exc.refusal.reason, problem=exc.refusal.message)
            await abort(stream)
        except BaseException:
            await abort(stream)
            raise
        finally:
            self._visitors[port] -= 1
            if not self._visitors[port]:
                del self._visitors[port]

    async def _relay(
        self,
        service: str,
        stream: trio.abc.Stream,
        tunnel: trio.abc.HalfCloseableStream,
        limits: IngressLimits,
        log: FilteringBoundLogger,
    ) -> None:
        started = trio.current_time()
        result = RelayResult()
        problem: str | None = None
        reason: str | None = None
        try:
            target = await open_connect(
                tunnel, service, limits, answer_timeout=limits.connect_timeout + _AGENT_SLACK
            )
            await relay(stream, target, result=result)
            problem, reason = _explain(result)
        except UpstreamGone as exc:
            problem, reason = f"the tunnel broke: {exc}", "tunnel-lost"
            await abort(stream)
        except BaseException:
            problem = "cut by the proxy's end"
            await abort(tunnel)
            raise
        finally:
            log.log(
                logging.INFO if problem is None else logging.WARNING,
                "relay",
                bytes_in=result.bytes_a_to_b,
                bytes_out=result.bytes_b_to_a,
                seconds=round(trio.current_time() - started, 4),
                **({"reason": reason} if reason else {}),
                **({"problem": problem} if problem else {}),
            )


def _explain(result: RelayResult) -> tuple[str | None, str | None]:
    """What went wrong in words, and the Tunnelmux-Reason; None where nothing did."""
    if result.error is None:
        return None, None
    cause = result.error.__cause__
    if isinstance(cause, ConnectFailed):
        return f"the device refused: {cause}", cause.reason or "tunnel-lost"
    side = "the visitor" if result.broken_side == "a" else "the device"
    return f"{side} broke the connection: {cause or result.error}", None
