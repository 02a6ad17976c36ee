"""The HTTP server under the API: anycorn on Trio, set up for a plain HTTP/1.1 port.

What is set here and why: HTTP/2 upgrades are off, since a request that was checked as HTTP/1.1 must
not become another protocol; a peer that takes nothing is cut by the kernel (`TCP_USER_TIMEOUT`),
since anycorn shields its writes and such a peer would hold up a shutdown for ever; WebSockets are
not compressed, since what they carry mostly is already.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import anycorn
import trio
from anycorn.protocol.h11 import H11Protocol
from anycorn.typing import ASGIFramework

from tunnelmux.config import Address
from tunnelmux.errors import ConfigError

__all__ = ["listen", "serve"]

_STUCK_PEER_MS = 20_000
# A peer that takes nothing of what was sent for so long is gone; a phone that changes networks is
# back sooner.

_BACKLOG = 256

_HEAD_BYTES = 16_384


async def _stay_with_http_1(self: H11Protocol, event: object) -> None:
    """In place of anycorn's look for an HTTP/2 upgrade or preface, which no setting turns off."""


H11Protocol._check_protocol = _stay_with_http_1  # type: ignore[method-assign]  # noqa: SLF001


def listen(key: str, address: Address) -> socket.socket:
    """A listening socket; `key` is the setting that an error names. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(AttributeError, OSError):  # not on every platform
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STUCK_PEER_MS)
        listener.bind((address.host, address.port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        where = f"{address.host}:{address.port}"
        raise ConfigError(f"{key}: cannot listen on {where}: {exc.strerror or exc}") from exc
    return listener


@contextlib.asynccontextmanager
async def serve(
    app: ASGIFramework,
    listener: socket.socket,
    *,
    grace: float,
    tls_certificate: str | None = None,
    tls_key: str | None = None,
) -> AsyncIterator[None]:
    """Serve *app* while the block runs; then requests in flight get `grace` seconds."""
    config = anycorn.Config()
    config.bind = [f"fd://{os.dup(listener.fileno())}"]  # anycorn closes what it is given
    config.errorlog = None
    config.accesslog = None
    config.graceful_timeout = grace
    config.websocket_permessage_deflate = False
    config.include_server_header = False
    config.h11_max_incomplete_size = _HEAD_BYTES
    config.keep_alive_timeout = 30
    config.alpn_protocols = ["http/1.1"]
    config.certfile = tls_certificate
    config.keyfile = tls_key
    stop = trio.Event()

    async def run(task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        await anycorn.serve(app, config, shutdown_trigger=stop.wait, task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        try:
            yield
        finally:
            stop.set()
