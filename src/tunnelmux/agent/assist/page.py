"""The switch as a page for a browser on the device, and as JSON for a page of the device's own.

It listens on loopback, where every program on the machine can call, and so can every page in a
browser there. The Host field is checked against DNS rebinding; Origin and the content type, which
no form can send, against requests that other sites cause (CSRF).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import trio

from tunnelmux.agent.assist.control import MakeCode
from tunnelmux.agent.assist.desk import AssistDesk
from tunnelmux.agent.assist.orders import MAX_ORDER, obey, read_order
from tunnelmux.agent.local_http import LocalHttp, send_content
from tunnelmux.agent.short_body import read_short_body
from tunnelmux.config import Address
from tunnelmux.http import Refusal, Refused, RequestHead, ServerConnection
from tunnelmux.http.head import field_values, first_value
from tunnelmux.limits import IngressLimits

__all__ = ["AssistPage"]

_MOST_CALLERS = 32
# Connections at once: a browser has six.

_STATE = "/api/assist"
_FOLDER = Path(__file__).parent
_FILES = {
    "/": ("page.html", b"text/html; charset=utf-8"),
    "/page.css": ("page.css", b"text/css; charset=utf-8"),
    "/page.js": ("page.js", b"text/javascript; charset=utf-8"),
}


class AssistPage:
    """Serves the page at `address`; `origins` are the sites that may show it in a frame."""

    def __init__(
        self, desk: AssistDesk, make_code: MakeCode, address: Address, origins: Sequence[str]
    ) -> None:
        self._desk = desk
        self._make_code = make_code
        self._limits = IngressLimits()
        hosts = {"localhost", "127.0.0.1", "[::1]", str(address).rpartition(":")[0]}
        self._hosts = {f"{host}:{address.port}" for host in hosts}
        frames = " ".join(origins) or "'none'"
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
            f"base-uri 'none'; form-action 'none'; frame-ancestors {frames}"
        )
        self._fields = [
            (b"Content-Security-Policy", policy.encode("ascii")),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"Referrer-Policy", b"no-referrer"),
            (b"Cache-Control", b"no-store"),
        ]

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Serve connections until cancelled."""
        http = LocalHttp(self._answer, self._limits, most_callers=_MOST_CALLERS, keep=True)
        await http.serve(listeners)

    async def _answer(self, server: ServerConnection, request: RequestHead) -> None:
        self._check_host(request)
        if request.path == _STATE and request.method == b"POST":
            self._check_origin(request)
            await self._obey(server)
        elif request.method not in {b"GET", b"HEAD"}:
            allow = [(b"Allow", b"GET, HEAD, POST" if request.path == _STATE else b"GET, HEAD")]
            raise Refused(Refusal(405, "bad-request", "Not this method here.", headers=allow))
        elif request.path == _STATE:
            await self._send(server, request, 200, _json(self._desk.status()))
        elif request.path in _FILES:
            name, kind = _FILES[request.path]
            content = await trio.Path(_FOLDER / name).read_bytes()
            await self._send(server, request, 200, content, kind)
        else:
            raise Refused(Refusal(404, "bad-request", "Only / and /api/assist are served here."))

    def _check_host(self, request: RequestHead) -> None:
        hosts = field_values(request.headers, b"host")
        if len(hosts) != 1 or hosts[0].decode("latin-1").lower() not in self._hosts:
            message = "Use the address that this page listens on, or localhost."
            raise Refused(Refusal(403, "forbidden", message))

    def _check_origin(self, request: RequestHead) -> None:
        origin = first_value(request.headers, b"origin")
        foreign = (
            origin is not None
            and origin.decode("latin-1").lower().removeprefix("http://") not in self._hosts
        )
        fetched = first_value(request.headers, b"sec-fetch-site") or b"same-origin"
        kind = first_value(request.headers, b"content-type") or b""
        if foreign or fetched not in {b"same-origin", b"none"}:
            raise Refused(Refusal(403, "forbidden", "A page of another site sent this request."))
        if kind.partition(b";")[0].strip().lower() != b"application/json":
            raise Refused(Refusal(415, "bad-request", "Send application/json."))

    async def _obey(self, server: ServerConnection) -> None:
        timeout = self._limits.head_timeout
        order = read_order(await read_short_body(server, MAX_ORDER, timeout))
        if isinstance(order, str):
            raise Refused(Refusal(400, "bad-request", f"The order is bad: {order}."))
        if order.do == "code":
            answer = await self._make_code(order)
        else:
            answer = obey(self._desk, order, by="on its page")
        await self._send(server, None, 409 if answer["problem"] else 200, _json(answer))

    async def _send(
        self,
        server: ServerConnection,
        request: RequestHead | None,
        status: int,
        content: bytes,
        kind: bytes = b"application/json",
    ) -> None:
        await send_content(server, request, status, content, kind, self._fields)


def _json(content: object) -> bytes:
    return json.dumps(content).encode("ascii") + b"\n"
