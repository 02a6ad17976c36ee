"""tunnelmux-api as a program with an access token calls it: JSON, event streams, WebSockets."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import urlencode

import msgspec
import trio
import trio_websocket

from tunnelmux.cli.fleet.errors import FleetError, NoSuchThing, NotAllowed, NotThere, one_error
from tunnelmux.config import Secret
from tunnelmux.config.http_proxy import http_proxy_from_environment, parse_http_proxy
from tunnelmux.config.rules import is_loopback, split_url
from tunnelmux.errors import ConfigError, ConnectError
from tunnelmux.http import ClientConnection, PeerGone
from tunnelmux.http.body import BadBody
from tunnelmux.http.head import Field, first_value
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits
from tunnelmux.transports import WayOut, client_context
from tunnelmux.transports.dialling import open_tcp

__all__ = ["ApiClient"]

T = TypeVar("T")

_CONNECT_TIMEOUT = 10.0
_TIMEOUT = 30.0
# Seconds for one call; commands have their own.

_LONGEST_WAIT = 60
# Seconds: a person is at the terminal.

_MAX_ANSWER = 16 * 1024 * 1024


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""
    errors: list[dict[str, str]] = []


class ApiClient:
    """tunnelmux-api at `server` (`https://tunnels.example.com`).

    Calls raise ConnectError when it cannot be reached, and FleetError with the server's own words
    when it refuses. The HTTP proxy of the environment is used as curl would. Raises ConfigError
    for a URL that cannot be used.
    """

    def __init__(
        self,
        server: str,
        token: Secret | None,
        *,
        ca_file: Path | None = None,
        environ: Mapping[str, str],
    ) -> None:
        parts = split_url("URL", server, ("https", "http"), "https://tunnels.example.com")
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._authority = parts.netloc
        self._prefix = parts.path.rstrip("/")
        self.server = f"{parts.scheme}://{parts.netloc}{self._prefix}"
        """Its URL, without a slash at the end."""
        self.token = token
        self.ca_file = ca_file
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = client_context(ca_file)
        elif not (is_loopback(self._host) or self._host.endswith(".localhost")):
            message = f"{server} is plain HTTP, over which the token could be read: write https://"
            raise ConfigError(message)
        proxy = http_proxy_from_environment(server, environ)
        self._way = WayOut(parse_http_proxy("HTTPS_PROXY", proxy.reveal()) if proxy else None)

    async def get(self, path: str, kind: type[T], **query: Any) -> T:
        """The answer to a GET of `/api/…`; parameters that are None are left out."""
        return self._decode(await self.call("GET", path, query=query), kind)

    async def post(self, path: str, kind: type[T], content: Mapping[str, Any] | None = None) -> T:
        """The answer to a POST of this content as JSON."""
        return self._decode(await self.call("POST", path, content or {}), kind)

    async def call(
        self,
        method: str,
        path: str,
        content: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
    ) -> bytes:
        """The body of a successful answer."""
        try:
            with trio.fail_after(_TIMEOUT):
                async with self.open(method, path, content, query=query) as connection:
                    return await connection.read_whole_body(_MAX_ANSWER)
        except trio.TooSlowError:
            raise ConnectError(f"{self.server} did not answer within {_TIMEOUT:g} s") from None

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        content: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        fields: list[Field] | None = None,
    ) -> AsyncIterator[ClientConnection]:
        """A connection on which the head of a successful answer was read, within the block."""
        given = {key: value for key, value in (query or {}).items() if value is not None}
        target = f"{self._prefix}{path}" + (f"?{urlencode(given, doseq=True)}" if given else "")
        body = b"" if content is None else msgspec.json.encode(content)
        headers = [*self._headers(), (b"Connection", b"close"), *(fields or [])]
        if content is not None:
            headers.append((b"Content-Type", b"application/json"))
        if content is not None or method in {"POST", "PUT", "PATCH"}:
            headers.append((b"Content-Length", b"%d" % len(body)))
        stream = await self._dial()
        try:
            client = ClientConnection(stream, IngressLimits())
            with trio.fail_after(_TIMEOUT):
                await client.send_request(
                    method.encode("ascii"), target.encode("ascii"), headers, first=body, end=True
                )
                while (head := await client.read_head()).is_interim:
                    pass
                if not 200 <= head.status < 300:
                    wait = first_value(head.headers, b"retry-after") or b""
                    self.refuse(head.status, await client.read_whole_body(_MAX_ANSWER), wait)
            yield client
        except trio.TooSlowError:
            raise ConnectError(f"{self.server} did not answer in time") from None
        except (PeerGone, BadBody) as exc:
            raise ConnectError(f"the answer of {self.server} was lost: {exc}") from exc
        finally:
            await trio.aclose_forcefully(stream)

    @asynccontextmanager
    async def websocket(self, path: str) -> AsyncIterator[trio_websocket.WebSocketConnection]:
        """A WebSocket, for the length of the block."""
        stream = await self._dial()
        try:
            # What the server says comes from the connection's own task, in a group.
            async with one_error(), trio.open_nursery() as nursery:
                with trio.fail_after(_TIMEOUT):
                    connection = await trio_websocket.wrap_client_stream(
                        nursery,
                        cast("trio.SocketStream", stream),  # any stream will do
                        self._authority,
                        self._prefix + path,
                        extra_headers=self._headers()[1:],
                    )
                yield connection
                nursery.cancel_scope.cancel()
        except trio_websocket.ConnectionRejected as exc:
            self.refuse(exc.status_code, exc.body or b"")
        except trio_websocket.HandshakeError as exc:
            raise ConnectError(f"{self.server} did not accept the WebSocket: {exc}") from exc
        except trio.TooSlowError:
            raise ConnectError(f"{self.server} did not answer in time") from None
        finally:
            await trio.aclose_forcefully(stream)

    def refuse(self, status: int, body: bytes, wait: bytes = b"") -> NoReturn:
        """Raise the error that an unsuccessful answer means; `wait` is its Retry-After."""
        try:
            problem = read_json(body, _Problem)
        except BadJson:
            problem = _Problem()
        if not problem.code:
            raise ConnectError(
                f"{self.server} answered {status} and is no tunnelmux-api: check the URL"
            )
        more = [f"{item.get('pointer', '')}: {item.get('detail', '')}" for item in problem.errors]
        text = " ".join([problem.detail or problem.code, *more])
        said = "".join(char for char in text if char.isprintable()).rstrip(".")
        if status == 401:
            said = (
                f"your sign-in at {self.server} has ended: tunnelmux login {self.server}"
                if self.token is not None
                else f"not signed in at {self.server}: tunnelmux login {self.server}"
            )
        seconds = min(int(wait), _LONGEST_WAIT) if wait.isdigit() and len(wait) < 10 else 0
        raise _kind_of(status, problem.code)(said, code=problem.code, wait=seconds)

    def _decode(self, body: bytes, kind: type[T]) -> T:
        try:
            return read_json(body, kind)
        except BadJson as exc:
            message = f"the answer of {self.server} cannot be understood ({exc}): is it of another "
            raise ConnectError(f"{message}version?") from exc

    async def _dial(self) -> trio.abc.Stream:
        return await open_tcp(
            self._host, self._port, ssl_context=self._tls, timeout=_CONNECT_TIMEOUT, way=self._way
        )

    def _headers(self) -> list[Field]:
        headers: list[Field] = [(b"Host", self._authority.encode("ascii"))]
        if self.token is not None:
            headers.append((b"Authorization", b"Bearer " + self.token.reveal().encode("ascii")))
        return headers


def _kind_of(status: int, code: str) -> type[FleetError]:
    if status in {401, 403}:
        return NotAllowed
    if status == 404:
        return NoSuchThing
    if status in {502, 503, 504} or code == "device_offline":
        return NotThere
    return FleetError
