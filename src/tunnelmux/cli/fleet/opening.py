"""Which fleet a command works on: by options, the environment, or the sign-in."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tunnelmux.backend import ProxyClient
from tunnelmux.cli.fleet.api_client import ApiClient
from tunnelmux.cli.fleet.by_api import ApiFleet
from tunnelmux.cli.fleet.by_proxy import ProxyFleet
from tunnelmux.cli.fleet.fleet import Fleet
from tunnelmux.cli.fleet.sign_in_file import SignIn, read_sign_in, sign_in_file
from tunnelmux.config import Secret
from tunnelmux.config.quickstart_state import INTERNAL_SECRET, QuickstartState
from tunnelmux.config.rules import split_url
from tunnelmux.config.state_dir import default_state_dir
from tunnelmux.config.token_file import exposed_to_others, read_token_file
from tunnelmux.errors import ConfigError
from tunnelmux.transports import client_context

__all__ = ["DEFAULT_URL", "Place", "find_place", "open_fleet"]

_PATIENCE = 1.0
# Seconds for a connection to this machine itself.

DEFAULT_URL = "http://127.0.0.1:3801"
"""The internal API of a proxy on this machine: what is tried without a sign-in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A server: tunnelmux-api with a sign-in, or a proxy's internal API with its secret."""

    sign_in: SignIn | None = None
    url: str = DEFAULT_URL
    secret: Secret | None = None
    ca_file: Path | None = None
    is_guess: bool = False
    """Whether neither options nor a sign-in name a server, and this machine's proxy is tried."""
    warnings: tuple[str, ...] = ()


def find_place(
    url: str | None,
    secret_file: Path | None,
    ca_file: Path | None,
    environ: Mapping[str, str] = os.environ,
) -> Place:
    """What these options and the environment mean. Raises ConfigError.

    In turn: --url, that is a proxy's internal API; TUNNELMUX_SERVER with TUNNELMUX_TOKEN, for
    programs; what `tunnelmux login` wrote; a quickstart proxy of this user; the proxy on this
    machine.
    """
    if url is None and secret_file is None:
        sign_in = _sign_in(environ, ca_file)
        if sign_in is not None:
            return Place(sign_in=sign_in)
        quickstart = _quickstart(environ)
        if quickstart is not None:
            return quickstart
    secret = None
    warnings: tuple[str, ...] = ()
    if secret_file is not None:
        secret = read_token_file("--secret-file", secret_file)
        if exposed_to_others(secret_file):
            text = f"every user of this machine can read {secret_file}: chmod 600 it"
            warnings = (text,)
    return Place(
        url=url or DEFAULT_URL,
        secret=secret,
        ca_file=ca_file,
        is_guess=url is None and secret_file is None,
        warnings=warnings,
    )


def _sign_in(environ: Mapping[str, str], ca_file: Path | None) -> SignIn | None:
    token = environ.get("TUNNELMUX_TOKEN")
    server = environ.get("TUNNELMUX_SERVER")
    if token:
        if not server:
            raise ConfigError("TUNNELMUX_TOKEN is set, and TUNNELMUX_SERVER is not: set its URL")
        return SignIn(server=server, token=Secret(token), ca_file=ca_file)
    found = read_sign_in(sign_in_file(environ))
    if found is not None and server and server.rstrip("/") != found.server:
        raise ConfigError(
            f"TUNNELMUX_SERVER is {server}, and you are signed in at {found.server}: "
            f"tunnelmux login {server}"
        )
    if found is None or ca_file is None:
        return found
    return SignIn(server=found.server, token=found.token, ca_file=ca_file)


def _quickstart(environ: Mapping[str, str]) -> Place | None:
    """The internal API of a running quickstart proxy that has the default state directory."""
    try:
        state_dir = default_state_dir("tunnelmux-proxy", environ)
        url = QuickstartState.read(state_dir).internal_url
        if url is None:
            return None
        # A killed proxy leaves its address here, while another may run at the usual one.
        where = split_url("url", url, ("http",), DEFAULT_URL)
        with socket.create_connection((where.hostname or "", where.port or 80), _PATIENCE):
            secret = read_token_file("--secret-file", state_dir / INTERNAL_SECRET)
    except (ConfigError, OSError):
        return None
    return Place(url=url, secret=secret, is_guess=True)


@asynccontextmanager
async def open_fleet(place: Place) -> AsyncIterator[Fleet]:
    """The fleet at this place, for the length of the block. Raises ConfigError."""
    if place.sign_in is not None:
        client = ApiClient(
            place.sign_in.server,
            place.sign_in.token,
            ca_file=place.sign_in.ca_file,
            environ=os.environ,
        )
        yield ApiFleet(client)
        return
    tls = client_context(place.ca_file) if place.ca_file is not None else None
    try:
        proxy = ProxyClient(
            place.url,
            secret=place.secret.reveal() if place.secret is not None else None,
            ssl_context=tls,
        )
    except ValueError as error:
        raise ConfigError(f"--url: {error}") from None
    async with proxy:
        yield ProxyFleet(proxy, place.url)
