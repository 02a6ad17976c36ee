"""Connections to a service's target: over TCP or a Unix socket, with or without TLS. Errors come in
two versions: for the visitor without addresses and paths, which are private to the device, and for
the log with them (`Refusal.detail`).
"""

from __future__ import annotations

import contextlib
import errno
import ssl
from collections.abc import Awaitable, Callable

import trio

from tunnelmux.config import ServiceConfig
from tunnelmux.descriptors import ran_out
from tunnelmux.http import Refusal, Refused
from tunnelmux.pump.data_pump import watch_records
from tunnelmux.relay import abort
from tunnelmux.transports.tcp import configure_socket, explain_os_error
from tunnelmux.transports.tls import explain_tls_error, target_context

__all__ = ["OpenTarget", "TargetConnector"]

OpenTarget = Callable[[ServiceConfig], Awaitable[trio.abc.HalfCloseableStream]]
"""Makes a raw connection to a service's target; raises OSError."""

_PROBE_TIMEOUT = 2.0
# Seconds for a probe whether a target speaks TLS; a visitor waits meanwhile.

_PROBE_INTERVAL = 60.0
# Seconds until a target that failed is probed again: one connection a minute is no load.

_NOT_TLS = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
}
# OpenSSL's reasons when the peer does not answer in TLS.


class TargetConnector:
    """Connects to the target of one service; through `open_target` where this machine does not
    reach it itself. `down(service)` says why the target counts as down; empty while it is up.
    Raises ConfigError where `ca_file` cannot be used.
    """

    def __init__(
        self,
        service: ServiceConfig,
        open_target: OpenTarget | None = None,
        down: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._down = down
        self._service = service
        self._open_target = open_target
        self._where = service.where
        self._context: ssl.SSLContext | None = None
        if self._where.is_encrypted:
            self._context = target_context(service.ca_file, verify=service.verify)
        self._probed_at = -_PROBE_INTERVAL
        self._speaks_tls = False

    async def open(self, timeout: float) -> trio.abc.HalfCloseableStream:
        """A raw connection for a visitor within `timeout` seconds.

        Raises Refused: 502 target-down, and as `dial`.
        """
        self._refuse_if_down()
        return await self.dial(timeout)

    async def open_http(
        self, timeout: float
    ) -> trio.abc.HalfCloseableStream | trio.SSLStream[trio.abc.HalfCloseableStream]:
        """The same for HTTP, with TLS if the target is `https://`. Raises Refused as `dial_http`
        does.
        """
        self._refuse_if_down()
        return await self.dial_http(timeout)

    def _refuse_if_down(self) -> None:
        problem = self._down(self._service.name)
        if problem:
            raise self._refused("target-down", f"is down: it {problem}")

    async def dial(self, timeout: float) -> trio.abc.HalfCloseableStream:
        """A raw connection within `timeout` seconds, even where the target counts as down.

        Raises Refused: 502 target-refused or target-unreachable, 504 target-timeout.
        """
        try:
            with trio.fail_after(timeout):
                return await self._dial()
        except trio.TooSlowError:
            raise self._too_slow(timeout) from None
        except (OSError, UnicodeError) as exc:
            if _is_refusal(exc):
                why = "refused the connection: check that it runs and listens there"
                raise self._refused("target-refused", why) from exc
            why = f"cannot be reached from the device: {explain_os_error(exc)}"
            if ran_out():
                why = (
                    "cannot be reached from the device: its agent may have no more files and "
                    "sockets open: raise LimitNOFILE (ulimit -n)"
                )
            raise self._refused("target-unreachable", why) from exc

    async def dial_http(
        self, timeout: float
    ) -> trio.abc.HalfCloseableStream | trio.SSLStream[trio.abc.HalfCloseableStream]:
        """A connection for HTTP within `timeout` seconds, with TLS if the target is `https://`.

        Raises Refused: as `dial`, and 502 target-tls-failed.
        """
        started = trio.current_time()
        stream = await self.dial(timeout)
        if self._context is None:
            return stream
        try:
            with trio.fail_at(started + timeout):
                return await self._begin_tls(stream, self._context)
        except trio.TooSlowError:
            raise self._too_slow(timeout) from None
        except trio.BrokenResourceError as exc:
            raise self._refused("target-tls-failed", *_explain_tls(exc.__cause__)) from exc

    async def explain_silence(self) -> str | None:
        """Whether TLS is the reason why an `http://` target did not answer in HTTP; the
        explanation, or None. Probes the target at most once a minute, for at most two seconds.
        """
        if self._where.is_encrypted or self._where.address is None:
            return None
        now = trio.current_time()
        if now - self._probed_at >= _PROBE_INTERVAL:
            self._probed_at = now
            self._speaks_tls = await self._try_tls()
        if not self._speaks_tls:
            return None
        return "it speaks TLS: write https:// in the service's target on the device"

    async def _try_tls(self) -> bool:
        with (
            trio.move_on_after(_PROBE_TIMEOUT),
            contextlib.suppress(OSError, UnicodeError, trio.BrokenResourceError),
        ):
            context = target_context(None, verify=False)
            await trio.aclose_forcefully(await self._begin_tls(await self._dial(), context))
            return True
        return False

    async def _dial(self) -> trio.abc.HalfCloseableStream:
        if self._open_target is not None:
            return await self._open_target(self._service)
        if self._where.address is None:
            assert self._where.path is not None  # a target has an address or a path
            return await trio.open_unix_socket(self._where.path)
        stream = await trio.open_tcp_stream(self._where.address.host, self._where.address.port)
        configure_socket(stream, user_timeout=None)
        return stream

    async def _begin_tls(
        self, stream: trio.abc.HalfCloseableStream, context: ssl.SSLContext
    ) -> trio.SSLStream[trio.abc.HalfCloseableStream]:
        assert self._where.address is not None  # Unix sockets are used without TLS
        name = self._service.server_name or self._where.address.host
        try:
            tls = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
            watch_records(tls)
            await tls.do_handshake()
        except BaseException:
            await abort(stream)
            raise
        return tls

    def _too_slow(self, timeout: float) -> Refused:
        why = f"did not take the connection within {timeout:g} s: check that it runs"
        return self._refused("target-timeout", why, status=504)

    def _refused(
        self, reason: str, why: str, detail: str | None = None, *, status: int = 502
    ) -> Refused:
        where = self._where.path or str(self._where.address)
        message = f'The target of service "{self._service.name}" {why}.'
        return Refused(
            Refusal(status, reason, message, detail=f"{where}: {detail}" if detail else where)
        )


def _explain_tls(cause: BaseException | None) -> tuple[str, str]:
    """The texts about a failed handshake for the visitor and for the log."""
    detail = explain_tls_error(cause) if cause is not None else "the connection ended"
    if isinstance(cause, ssl.SSLCertVerificationError):
        # OpenSSL's message can hold the expected name or address.
        why = (
            "has a certificate that is not trusted: set ca_file to the authority that signed it, "
            "server_name to the name in it, or verify = false"
        )
        return why, detail
    if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
        return "does not speak TLS: write http:// in the service's target on the device", detail
    return "broke off the TLS handshake: check that its port speaks TLS", detail


def _is_refusal(exc: BaseException) -> bool:
    """Whether the target's host refused the connection; Trio groups one error per address."""
    if isinstance(exc, BaseExceptionGroup):
        return any(_is_refusal(inner) for inner in exc.exceptions)
    if isinstance(exc, OSError) and exc.errno == errno.ECONNREFUSED:
        return True
    return exc.__cause__ is not None and _is_refusal(exc.__cause__)
