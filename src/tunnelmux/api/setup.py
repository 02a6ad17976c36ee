"""Checks the parts that this API needs: one finding for each part, with a fix."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

import trio
from pydantic import BaseModel

from tunnelmux.api.context import Api
from tunnelmux.api.oidc.provider import OIDCError
from tunnelmux.errors import RegistryError

__all__ = ["SetupFinding", "check_setup"]

_TIMEOUT = 5.0
# Seconds for one check; they run at the same time, and a person waits for the slowest.

_CERTIFICATE_LEFT = 14
# Days before a certificate's end at which it should have been renewed.


class SetupFinding(BaseModel):
    """One part and its state."""

    part: str
    state: Literal["good", "warn", "bad", "unknown"]
    said: str
    fix: str = ""


async def check_setup(api: Api) -> list[SetupFinding]:
    """The findings, always for the same parts in the same order."""
    parts: list[tuple[str, Callable[[Api], Awaitable[SetupFinding]]]] = [
        ("Registry", _registry),
        ("Sign-in provider", _provider),
        ("Name of this server", _name),
        ("Certificate", _certificate),
        ("Proxies", _proxies),
        ("Visitors", _visitors),
        ("SSH gateway", _gateway),
        ("Recordings", _recordings),
    ]
    found: dict[str, SetupFinding] = {}

    async def look(part: str, check: Callable[[Api], Awaitable[SetupFinding]]) -> None:
        finding = _bad(f"no answer within {_TIMEOUT:g} s", "check that it is up and reachable")
        with trio.move_on_after(_TIMEOUT):
            try:
                finding = await check(api)
            except RegistryError as exc:
                finding = _bad(str(exc), "check the registry first")
        found[part] = finding.model_copy(update={"part": part})

    async with trio.open_nursery() as nursery:
        for part, check in parts:
            nursery.start_soon(look, part, check)
    return [found[part] for part, _ in parts]


def _good(said: str) -> SetupFinding:
    return SetupFinding(part="", state="good", said=said)


def _bad(said: str, fix: str) -> SetupFinding:
    return SetupFinding(part="", state="bad", said=said, fix=fix)


def _warn(said: str, fix: str) -> SetupFinding:
    return SetupFinding(part="", state="warn", said=said, fix=fix)


def _off(said: str, fix: str) -> SetupFinding:
    return SetupFinding(part="", state="unknown", said=said, fix=fix)


async def _registry(api: Api) -> SetupFinding:
    await api.registry.check()
    return _good("it answers, and its tables have this program's version")


async def _provider(api: Api) -> SetupFinding:
    issuer = api.sign_in.provider.issuer
    try:
        await api.sign_in.provider.check()
    except OIDCError as exc:
        return _bad(str(exc), "see [oidc] issuer of api.toml, and the provider's own log")
    return _good(f"{issuer} answers, and names its sign-in page")


async def _name(api: Api) -> SetupFinding:
    host = urlsplit(api.config.api.public_url).hostname or ""
    addresses = await _addresses(host)
    if not addresses:
        fix = "make a DNS record for it, or write the right name as [api] public_url"
        return _bad(f"{host} has no address", fix)
    return _good(f"{host} is at {', '.join(addresses)}")


async def _certificate(api: Api) -> SetupFinding:
    url = urlsplit(api.config.api.public_url)
    if url.scheme != "https":
        return _off("public_url is plain HTTP, on this machine only", "")
    host, port = url.hostname or "", url.port or 443
    try:
        stream = await trio.open_ssl_over_tcp_stream(host, port)
        async with stream:
            await stream.do_handshake()
            ends = str(stream.getpeercert()["notAfter"])
    except (OSError, ssl.SSLError, trio.BrokenResourceError) as exc:
        cause = exc.__cause__ or exc
        fix = "check the certificate there: its names, its end, and that its chain is complete"
        return _bad(f"this machine does not trust the TLS of {host}:{port}: {cause}", fix)
    left = (datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), UTC) - datetime.now(UTC)).days
    if left < _CERTIFICATE_LEFT:
        return _warn(f"the certificate of {host} ends in {left} days", "renew it")
    return _good(f"the certificate of {host} is valid for {left} more days")


async def _proxies(api: Api) -> SetupFinding:
    known = [item for item in await api.registry.fleet.proxies() if item.living]
    if not known:
        fix = "start a tunnelmux-proxy with [registry] and [internal] in its proxy.toml"
        return _bad("none is running", fix)
    silent = (await api.proxies.survey()).silent
    if silent:
        fix = (
            "they need [internal] in proxy.toml, the secret of [proxies] in api.toml, and a "
            "route from this machine"
        )
        return _bad(f"{', '.join(silent)} cannot be reached", fix)
    return _good(f"{len(known)} at work: {', '.join(sorted(item.name for item in known))}")


async def _visitors(api: Api) -> SetupFinding:
    url = await api.visitors.visitors_url()
    if url is None:
        fix = "give a proxy [ingress.http] with domain, to open devices' pages by their names"
        return _off("no proxy has announced an address for visitors", fix)
    host = urlsplit(url).hostname or ""
    if host == "localhost":  # RFC 6761: browsers look up no name under it
        return _good("devices are at DEVICE.localhost, for browsers on this machine")
    if not await _addresses(f"tunnelmux-check.{host}"):
        fix = f"make a DNS record for all names under it: *.{host}"
        return _bad(f"names under {host} have no address", fix)
    return _good(f"devices are at DEVICE.{host}")


async def _gateway(api: Api) -> SetupFinding:
    where = api.config.gateway.inner_address
    if where is None:
        fix = "name it as [gateway] address in api.toml, for the ssh line and for terminals"
        return _off("none is named", fix)
    try:
        async with await trio.open_tcp_stream(where.host, where.port) as stream:
            greeting = bytes(await stream.receive_some(255))
    except (OSError, trio.BrokenResourceError) as exc:
        return _bad(f"{where} cannot be reached: {exc}", "check that tunnelmux-gateway is up")
    if not greeting.startswith(b"SSH-2.0-"):
        return _bad(f"{where} is no SSH server", "write the gateway's address")
    if api.terminals.problem:
        return _warn(f"{where} answers; there are no terminals here", api.terminals.problem)
    return _good(f"{where} answers")


async def _recordings(api: Api) -> SetupFinding:
    folder = api.config.recordings.folder
    if folder is None:
        fix = "write the gateway's folder as [recordings] folder, if this machine sees it"
        return _off("they are listed here, and can be played at the gateway only", fix)
    try:
        await trio.to_thread.run_sync(lambda: next(folder.iterdir(), None))
    except OSError as exc:
        fix = "mount the gateway's folder there, readable for this program"
        return _bad(f"{folder} cannot be read: {exc.strerror}", fix)
    return _good(f"{folder} is there")


async def _addresses(host: str) -> list[str]:
    try:
        found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(item[4][0]) for item in found})
