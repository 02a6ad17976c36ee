"""Pairing: a device gets its credential by a code from the console, or by one that it shows itself.
The other end is `/api/pairing` of tunnelmux-api, which decides. Its answer is written to two files,
the token to one of its own (mode 0600).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import msgspec
import trio
from msgspec import Meta

from tunnelmux import __version__
from tunnelmux.config import Secret
from tunnelmux.config.http_proxy import http_proxy_from_environment, parse_http_proxy
from tunnelmux.config.private_file import write_private
from tunnelmux.config.rules import split_url
from tunnelmux.errors import ConfigError, ConnectError
from tunnelmux.http import ClientConnection, PeerGone
from tunnelmux.http.body import BadBody
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits
from tunnelmux.transports import WayOut, client_context
from tunnelmux.transports.dialling import open_tcp

__all__ = [
    "Joined",
    "PairingRefused",
    "PairingServer",
    "Waiting",
    "check_writable",
    "host_key_fingerprint",
    "write_configuration",
]

T = TypeVar("T")

_TIMEOUT = 20.0
# Seconds for one call; the server answers without delay.

_MAX_ANSWER = 65_536

_HOST_KEY = Path("/etc/ssh/ssh_host_ed25519_key.pub")


class Joined(msgspec.Struct, frozen=True):
    """The result of pairing: what the device needs to connect. `label` is its name in host
    names.
    """

    device: str
    label: str
    token: Annotated[str, Meta(pattern=r"^[!-~]{1,4096}$")]
    tunnel_urls: list[str]
    tunnel_pin: str | None = None

    def __repr__(self) -> str:
        return f"<Joined {self.device}>"


class Waiting(msgspec.Struct, frozen=True):
    """The request still waits for an operator."""

    expires_in: Annotated[float, Meta(ge=0, le=2_678_400)]
    confirm_url: str
    code: str | None = None
    secret: str | None = None
    interval: Annotated[float, Meta(ge=1, le=3600)] = 3.0
    """Seconds between two polls."""

    def __repr__(self) -> str:
        return "<Waiting>"


class PairingRefused(ConnectError):
    """The server refused; trying again with the same code cannot help."""


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes


class PairingServer:
    """tunnelmux-api at *url* (`https://tunnels.example.com`).

    Calls raise ConnectError when it cannot be reached, and PairingRefused with its reason when it
    refuses. An HTTP proxy is taken from `http_proxy` or the environment, as curl would.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_file: Path | None = None,
        http_proxy: str | None = None,
        environ: Mapping[str, str],
    ) -> None:
        parts = split_url("--url", url, ("https", "http"), "https://tunnels.example.com")
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._authority = parts.netloc
        self._prefix = parts.path.rstrip("/")
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = client_context(ca_file)
        elif not _is_loopback(self._host):
            message = f"{url} is plain HTTP, over which the token could be read: write https://"
            raise ConfigError(message)
        proxy = http_proxy or http_proxy_from_environment(url, environ)
        text = proxy.reveal() if isinstance(proxy, Secret) else proxy
        self._way = WayOut(parse_http_proxy("--http-proxy", text) if text else None)

    async def exchange(self, code: str, *, name: str, serial: str) -> Joined:
        """Use a code from the console."""
        answer = await self._post("exchange", code=code, name=name, serial=serial)
        return _decode(answer, Joined)

    async def request(self, *, name: str, serial: str, fingerprint: str) -> Waiting:
        """Ask for pairing. Returns the code to show and the secret to poll with."""
        answer = await self._post("requests", name=name, serial=serial, fingerprint=fingerprint)
        return _decode(answer, Waiting)

    async def install(self, key: str, *, name: str, serial: str) -> Joined | Waiting:
        """Use an install key."""
        answer = await self._post(
            "install", key=key, name=name, serial=serial, fingerprint=host_key_fingerprint()
        )
        if answer.status == 202:
            return _decode(answer, Waiting)
        return _decode(answer, Joined)

    async def wait(self, waiting: Waiting) -> Joined:
        """Poll until an operator has decided. Raises PairingRefused when they refused, and
        ConnectError when the time is over.
        """
        assert waiting.secret is not None
        with trio.move_on_after(waiting.expires_in):
            while True:
                await trio.sleep(waiting.interval)
                try:
                    answer = await self._post("requests/poll", secret=waiting.secret)
                except PairingRefused:
                    raise
                except ConnectError:
                    continue  # the network of a device comes and goes
                if answer.status != 202:
                    return _decode(answer, Joined)
        raise ConnectError(
            "the code was not confirmed in time: run the command again for a new one",
            retryable=False,
        )

    async def _post(self, what: str, **content: str) -> _Answer:
        body = json.dumps(
            {**content, **({} if what.endswith("poll") else {"agent_version": __version__})}
        ).encode()
        where = f"https://{self._authority}" if self._tls else f"http://{self._authority}"
        try:
            with trio.fail_after(_TIMEOUT):
                stream = await open_tcp(
                    self._host, self._port, ssl_context=self._tls, timeout=_TIMEOUT, way=self._way
                )
                async with stream:
                    answer = await self._ask(stream, f"{self._prefix}/api/pairing/{what}", body)
        except trio.TooSlowError:
            raise ConnectError(f"{where} did not answer within {_TIMEOUT:g} s") from None
        except (PeerGone, BadBody) as exc:
            raise ConnectError(f"{where} did not answer: {exc}") from exc
        if answer.status not in {200, 201, 202}:
            _refuse(where, answer)
        return answer

    async def _ask(self, stream: trio.abc.Stream, path: str, body: bytes) -> _Answer:
        client = ClientConnection(stream, IngressLimits())
        fields = [
            (b"Host", self._authority.encode("ascii")),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Connection", b"close"),
        ]
        await client.send_request(b"POST", path.encode("ascii"), fields, first=body, end=True)
        head = await client.read_head()
        return _Answer(head.status, await client.read_body_start(_MAX_ANSWER))


def _refuse(where: str, answer: _Answer) -> NoReturn:
    try:
        problem = read_json(answer.body, _Problem)
    except BadJson:
        problem = _Problem()
    if not problem.code:
        raise ConnectError(
            f"{where} answered {answer.status} and is not tunnelmux-api: check the URL"
        )
    said = "".join(char for char in problem.detail if char.isprintable())
    if problem.code == "taken":
        said += " Give this device another name with --name."
    raise PairingRefused(f"{where} refused: {said or problem.code}", retryable=False)


def _decode(answer: _Answer, kind: type[T]) -> T:
    try:
        return read_json(answer.body, kind)
    except BadJson as exc:
        raise ConnectError(f"the answer cannot be understood: {exc}") from exc


def host_key_fingerprint() -> str:
    """`SHA256:…` of the machine's SSH host key, as `ssh-keygen -l` shows it; random without one.

    Both screens show it, so that a person can verify that the code is this machine's.
    """
    try:
        kind, key = _HOST_KEY.read_text("ascii").split()[:2]
        content = base64.b64decode(key, validate=True) if kind.startswith("ssh-") else b""
    except (OSError, ValueError):
        content = b""
    digest = hashlib.sha256(content or secrets.token_bytes(32)).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def check_writable(file: Path) -> None:
    """Raise ConfigError unless `write_configuration` can write this file. Call it before pairing: a
    credential that cannot be stored would be lost.
    """
    if file.exists():
        raise ConfigError(f"{file} exists already: name another file with --config, or remove it")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as exc:
        raise ConfigError(
            f"{file.parent} cannot be written to ({exc.strerror}): name a file with --config"
        ) from exc


def write_configuration(
    file: Path, joined: Joined, *, serial: str, services: list[tuple[str, str]]
) -> Path:
    """Write the agent's configuration and, beside it, its token. Returns the token's file.

    Raises ConfigError when a file cannot be written. An existing `file` is not touched.
    """
    if not joined.tunnel_urls:
        raise ConfigError(
            "the server names no proxy to dial: set proxies.tunnel_urls in its api.toml, then "
            "pair again"
        )
    token_file = file.with_suffix(".token")
    lines = [
        "# Written by `tunnelmux-agent pair`. All keys: docs/configuration.md",
        "[proxy]",
        f"url = {json.dumps(joined.tunnel_urls[0])}",
        *(f"# or: {json.dumps(url)}" for url in joined.tunnel_urls[1:]),
        f"token_file = {json.dumps(token_file.name)}",
        *([f"pin = {json.dumps(joined.tunnel_pin)}"] if joined.tunnel_pin else []),
        "",
        "[device]",
        f"name = {json.dumps(joined.device)}",
        *([f"serial = {json.dumps(serial)}"] if serial else []),
    ]
    for name, target in services:
        lines += [
            "",
            "[[services]]",
            f"name = {json.dumps(name)}",
            f"target = {json.dumps(target)}",
        ]
    try:
        write_private(token_file, joined.token.encode("ascii") + b"\n")
        with file.open("x", encoding="utf-8") as out:
            out.write("\n".join(lines) + "\n")
    except OSError as exc:
        where = exc.filename or file
        raise ConfigError(f"{where} cannot be written ({exc.strerror}): choose --config") from exc
    return token_file


def _is_loopback(host: str) -> bool:
    from tunnelmux.config.rules import is_loopback

    return is_loopback(host) or host.endswith(".localhost")
