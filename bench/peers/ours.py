"""tunnelmux itself, as an operator runs it: two daemons, each with a configuration file."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from urllib.parse import urlsplit

import trio

import tunnelmux
from bench.origin import Origin
from bench.peers.tunnel import Peer, Running, Unavailable
from bench.processes import HOST, Started, free_ports
from bench.tree import ROOT

DEVICE = "bench"
HTTP_INGRESS = '[ingress.http]\nlisten = "{host}:{port}"\n'

TCP_INGRESS = """\
[[ingress.tcp]]
listen = "{host}:{port}"
device = "{device}"
service = "{service}"
"""

SERVICE = """\
[[services]]
name = "{name}"
target = "{target}"
"""


ONE_ADDRESS = """\
[limits]
max_streams_per_visitor = 1024
reserved_streams = 16
"""
"""All visitors here come from one address, a thousand of them at once."""


class Tunnelmux(Peer):
    ours = True

    def prepare(self) -> None:
        if importlib.util.find_spec("tunnelmux._frame") is None:
            raise Unavailable("its compiled modules are not built: make build")
        self.version = tunnelmux.__version__

    def start(self, started: Started, origin: Origin) -> Running:
        tunnel, http, echo, web = free_ports(4)
        token = secrets.token_hex(16)
        ingress = {"web": web, "echo": echo}
        proxy = f'[tunnel]\nlisten = "{HOST}:{tunnel}"\n'
        url = f"{'wss' if self.encrypted else 'ws'}://{HOST}:{tunnel}/tunnel/connect"
        agent = f'[proxy]\nurl = "{url}"\ntoken = "{token}"\n'
        if self.encrypted:
            certificate, key, pin = make_certificate(started.folder, "tunnel")
            proxy += f'tls_certificate = "{certificate}"\ntls_key = "{key}"\n'
            agent += f'pin = "{pin}"\n'
        if self.http:
            proxy += HTTP_INGRESS.format(host=HOST, port=http) + self.ingress_lines(started.folder)
        for service, port in ingress.items():
            proxy += TCP_INGRESS.format(host=HOST, port=port, device=DEVICE, service=service)
        proxy += self.more_lines(started.folder)
        proxy += f'[[devices]]\nname = "{DEVICE}"\ntoken = "{token}"\n' + ONE_ADDRESS
        agent += f'[device]\nname = "{DEVICE}"\n'
        for service, port in (("web", origin.http), ("echo", origin.echo)):
            agent += SERVICE.format(name=service, target=f"tcp://{HOST}:{port}")
        agent += SERVICE.format(name="pages", target=f"http://{HOST}:{origin.http}")
        server = start_daemon(started, "proxy", proxy)
        started.wait_for_port(tunnel)
        client = start_daemon(started, "agent", agent)
        started.wait_for_log("agent", "session started")
        if self.http:
            secure = self.visitors == "https"
            return Running(http, server, client, None, self.visitor_headers, secure)
        return Running(web, server, client, echo)

    visitor_headers: tuple[str, ...] = (f"Host: {DEVICE}.localhost",)

    def ingress_lines(self, folder: Path) -> str:
        """What stands in its [ingress.http] besides the address."""
        if self.visitors != "https":
            return ""
        certificate, key, _pin = make_certificate(folder, "ingress")
        return f'tls_certificate = "{certificate}"\ntls_key = "{key}"\n'

    def more_lines(self, folder: Path) -> str:  # noqa: ARG002
        """Further tables of its proxy.toml."""
        return ""


class Trusting(Tunnelmux):
    """It believes what a trusted proxy says of its visitors, and is told of other addresses."""

    visitor_headers = (
        f"Host: {DEVICE}.localhost",
        "X-Forwarded-For: 203.0.113.7",
        "X-Forwarded-Proto: https",
    )

    def ingress_lines(self, folder: Path) -> str:
        return 'trusted_proxies = ["127.0.0.0/8"]\n' + super().ingress_lines(folder)


class ByField(Tunnelmux):
    """Its visitors name no device in the host, but in a field."""

    visitor_headers = (f"Tunnelmux-Device: {DEVICE}",)


class ByLogin(Tunnelmux):
    """Its service is for people who have signed in: each request shows their cookie."""

    def more_lines(self, folder: Path) -> str:
        return f'[registry]\nurl = "{_registry_url(folder)}"\n[access]\nlet_in = ["login"]\n'

    def start(self, started: Started, origin: Origin) -> Running:
        running = super().start(started, origin)
        cookie = trio.run(_come_in, _registry_url(started.folder), running.http)
        return replace(running, headers=(*running.headers, f"Cookie: {cookie}"))


def _registry_url(folder: Path) -> str:
    return f"sqlite:///{folder.absolute()}/registry.db"


async def _come_in(url: str, port: int) -> str:
    """The cookie of a person who has signed in, in tunnelmux-api's place."""
    from tunnelmux.access.signatures import Signer
    from tunnelmux.api.visitors import VisitorProofs
    from tunnelmux.config import Secret
    from tunnelmux.registry import Actor, SignedIn, open_registry

    async with open_registry(Secret(url)) as registry:
        proofs = VisitorProofs(registry, [Signer.new("api")], "https://tunnels.example.com")
        await proofs.publish()
        installation = registry.installation(Actor.program("bench"))
        [tenant] = (await installation.tenants.page()).items
        user = await installation.users.sign_in(issuer="https://id.example.com", subject="ann")
        await installation.users.grant(
            tenant.id, "viewer", issuer=user.issuer, subject=user.subject, force=True
        )
        signed_in = SignedIn(
            user_id=user.id, tenant_id=None, role=None, issuer="", provider_session="", tokens=b""
        )
        session = await installation.browser_sessions.begin(
            signed_in, idle=3600, lifetime=3600, address=HOST, user_agent=""
        )
        # Until the proxy has read where people sign in, it answers 503.
        while "Location" not in (answer := _get(port, "/")):  # noqa: ASYNC110
            await trio.sleep(0.1)
        begun_by = answer["Set-Cookie"].partition(";")[0]
        asked = await proofs.read_asked(answer["Location"].partition("asked=")[2])
        who = await installation.users.memberships(user.id)
        there = urlsplit(proofs.ticket_url(asked, session.session.id, who))
        answer = _get(port, f"{there.path}?{there.query}", Cookie=begun_by)
        return str(answer["Set-Cookie"].partition(";")[0])


def _get(port: int, path: str, **fields: str) -> HTTPMessage:
    """The fields of an answer to a browser."""
    with contextlib.closing(HTTPConnection(HOST, port, timeout=10)) as connection:
        host = f"{DEVICE}.localhost"
        connection.request("GET", path, headers={"Host": host, "Accept": "text/html", **fields})
        return connection.getresponse().headers


class OverPlainTcp(Tunnelmux):
    """The same code without a WebSocket: the daemons have no such listener, `plain_tcp` has."""

    def start(self, started: Started, origin: Origin) -> Running:
        tunnel, web, echo = free_ports(3)
        public = [f"web={web}", f"echo={echo}"]
        targets = [f"web={origin.http}", f"echo={origin.echo}"]
        program = [sys.executable, "-m", "bench.peers.plain_tcp"]
        source = Path(tunnelmux.__file__).parents[1]
        paths = {"PYTHONPATH": os.pathsep.join([str(source), str(ROOT)])}
        server = started.start("proxy", [*program, "proxy", str(tunnel), *public], paths)
        started.wait_for_port(tunnel)
        client = started.start("agent", [*program, "agent", str(tunnel), *targets], paths)
        started.wait_for_log("agent", "session started")
        return Running(web, server, client, echo)


def start_daemon(
    started: Started,
    name: str,
    configuration: str,
    called: str | None = None,
    *,
    within: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> int:
    """`tunnelmux-NAME` with that configuration; its log is what the daemon writes. *called* tells
    several of one kind apart; *within* stands before its command."""
    called = called or name
    file = started.folder / f"{called}.toml"
    file.touch(mode=0o600)
    file.write_text(configuration)
    launcher = ROOT / "cmd" / f"tunnelmux-{name}"
    # The modules this process has are those the daemons shall have.
    source = Path(tunnelmux.__file__).parents[1]
    command = [*within, sys.executable, str(launcher), "--config", str(file)]
    return started.start(called, command, {"PYTHONPATH": str(source), **(environment or {})})


def make_certificate(folder: Path, name: str) -> tuple[Path, Path, str]:
    """A certificate, its key and its pin, as `tunnelmux-proxy --quickstart` makes them."""
    from tunnelmux.proxy.tunnels import certificate as certificates

    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificates.make_certificate(certificate, key, HOST, datetime.datetime.now(datetime.UTC))
    return certificate, key, certificates.pin_of(certificate)
