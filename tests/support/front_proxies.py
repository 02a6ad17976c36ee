"""A real nginx, a real Caddy and a real HAProxy: configured by the blocks of the pages."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio
import trustme

from support.proxies import free_port
from support.tree import ROOT
from tunnelmux.config import Address

__all__ = [
    "API",
    "FrontProxy",
    "running_caddy",
    "running_haproxy",
    "running_nginx",
    "running_nginx_before_apis",
    "sample",
]

Program = Callable[[str, str], str]

TWO_GATEWAYS = "## Two gateways behind one name"

DOMAIN = "devices.example.com"


class Front(NamedTuple):
    """What a block of docs/operations.md is in front of."""

    section: str
    """Where the block is."""
    target: str
    """Where it leads to."""
    name: str
    """The host name that its certificate, `/etc/ssl/FILE.pem` and `.key`, is for."""
    file: str


INGRESS = Front("### Visitors over HTTP", "127.0.0.1:8080", f"*.{DOMAIN}", "devices")
API = Front("## Accounts: tunnelmux-api", "127.0.0.1:3721", "tunnels.example.com", "tunnels")

NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{sample}
}}
"""

CADDY = """\
{{
	admin off
	https_port {port}
	http_port {other}
	auto_https disable_redirects
	default_bind 127.0.0.1
}}
{sample}
"""


HAPROXY = """\
defaults
    timeout connect 30s
    timeout client 60s
    timeout server 60s
{sample}
"""


class FrontProxy:
    """Where it listens, and how a visitor knows it."""

    def __init__(self, address: Address, authority: trustme.CA) -> None:
        self._address = address
        self.port = address.port
        self._context = ssl.create_default_context()
        authority.configure_trust(self._context)

    async def visit(
        self, host: str, local_address: str | None = None
    ) -> trio.SSLStream[trio.SocketStream]:
        """A visitor's connection, under TLS, from this address."""
        stream = await trio.open_tcp_stream(
            self._address.host, self._address.port, local_address=local_address
        )
        tls = trio.SSLStream(stream, self._context, server_hostname=host, https_compatible=True)
        await tls.do_handshake()
        return tls


def sample(
    language: str,
    changes: Mapping[str, str],
    *,
    page: str = "operations.md",
    section: str = "### Visitors over HTTP",
) -> str:
    """The block of the page in that language; each change must be one that the block has."""
    whole = (ROOT / "docs" / page).read_text("utf-8")
    text: str
    end = "\n" + section.partition(" ")[0] + " "
    part = whole.split(section + "\n")[1].split(end)[0]
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    for before, after in changes.items():
        assert before in text, f"{before!r} is not in the {language} block"
        text = text.replace(before, after)
    return text


@asynccontextmanager
async def running_nginx(
    folder: Path, program: Program, target: Address, front: Front = INGRESS
) -> AsyncIterator[FrontProxy]:
    """nginx in front of this ingress or API, for the length of the block."""
    port, authority = free_port(), _certificate(folder, front)
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl": str(folder),
        front.target: str(target),
    }
    text = sample("nginx", changes, section=front.section)
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, sample=text))
    command = [program("nginx", "nginx-light"), "-e", "stderr", "-p", str(folder), "-c", str(file)]
    async with _running(command, {}, Address("127.0.0.1", port)):
        yield FrontProxy(Address("127.0.0.1", port), authority)


@asynccontextmanager
async def running_caddy(
    folder: Path, program: Program, target: Address, front: Front = INGRESS
) -> AsyncIterator[FrontProxy]:
    """Caddy in front of this ingress or API, for the length of the block."""
    port, authority = free_port(), _certificate(folder, front)
    changes = {"/etc/ssl": str(folder), front.target: str(target)}
    text = sample("caddy", changes, section=front.section)
    file = folder / "Caddyfile"
    file.write_text(CADDY.format(port=port, other=free_port(), sample=text))
    command = [program("caddy", "caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
    homes = {name: str(folder) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    async with _running(command, homes, Address("127.0.0.1", port)):
        yield FrontProxy(Address("127.0.0.1", port), authority)


@asynccontextmanager
async def running_haproxy(folder: Path, program: Program, target: int) -> AsyncIterator[int]:
    """HAProxy before the gateway on this port; its own port. It is configured by the block of
    docs/gateway.md, and inherits its socket, where connections wait until it has started."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        file = folder / "haproxy.cfg"
        changes = {
            "bind :2222": f"bind fd@{listener.fileno()}",
            "192.0.2.21:2222 send-proxy-v2 check": f"127.0.0.1:{target} send-proxy-v2",
            "    server b 192.0.2.22:2222 send-proxy-v2 check\n": "",
        }
        text = sample("haproxy", changes, page="gateway.md", section=TWO_GATEWAYS)
        file.write_text(HAPROXY.format(sample=text))
        command = [program("haproxy", "haproxy"), "-db", "-f", str(file)]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()]
        )
        try:
            yield int(listener.getsockname()[1])
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                process.terminate()
                await process.wait()


def _certificate(folder: Path, front: Front) -> trustme.CA:
    authority = trustme.CA()
    certificate = authority.issue_cert(front.name)
    authority_text = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    (folder / f"{front.file}.pem").write_bytes(authority_text)
    certificate.private_key_pem.write_to_path(folder / f"{front.file}.key")
    return authority


@asynccontextmanager
async def _running(
    command: list[str], environment: Mapping[str, str], address: Address
) -> AsyncIterator[None]:
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=dict(environment) or None,
    )
    assert process.stderr is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_print, Path(command[0]).name, process.stderr)
        try:
            with trio.fail_after(45):
                await _until_listening(address, process)
            yield
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                process.terminate()
                await process.wait()


async def _until_listening(address: Address, process: trio.Process) -> None:
    while True:
        assert process.poll() is None, f"it ended with {process.poll()}"
        try:
            await (await trio.open_tcp_stream(address.host, address.port)).aclose()
        except OSError:
            await trio.sleep(0.02)  # neither says when it is ready
        else:
            return


async def _print(name: str, log: trio.abc.ReceiveStream) -> None:
    """Print what it writes, for a failing test to show."""
    text = ""
    async with log:
        async for data in log:
            text += data.decode("utf-8", "replace")
    print(f"--- {name} ---\n{text}")  # noqa: T201


class NginxBeforeApis:
    """nginx before the copies of tunnelmux-api, by the block of docs/cluster.md. It inherits its
    socket, so that its URL is known, and taken, before the copies have started."""

    def __init__(
        self, folder: Path, program: Program, listener: socket.socket, nursery: trio.Nursery
    ) -> None:
        self._folder = folder
        self._program = program("nginx", "nginx-light")
        self._nursery = nursery
        self._listener = listener
        authority = trustme.CA()
        pair = authority.issue_cert("localhost")
        (folder / "tunnels.pem").write_bytes(b"".join(p.bytes() for p in pair.cert_chain_pems))
        pair.private_key_pem.write_to_path(folder / "tunnels.key")
        self.port: int = self._listener.getsockname()[1]
        self.url = f"https://localhost:{self.port}"
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)

    async def start(self, ports: list[int]) -> None:
        """Lead to the copies on these two ports, until the nursery is cancelled."""
        first, second = ports
        changes = {
            "192.0.2.31:3721": f"127.0.0.1:{first}",
            "192.0.2.32:3721": f"127.0.0.1:{second}",
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            "tunnels.example.com": "localhost",
            "/etc/ssl": str(self._folder),
        }
        text = sample("nginx", changes, page="cluster.md", section="## Two of each")
        file = self._folder / "nginx.conf"
        file.write_text(NGINX.format(folder=self._folder, sample=text))
        command = [self._program, "-e", "stderr", "-p", str(self._folder), "-c", str(file)]
        descriptor = self._listener.fileno()
        await self._nursery.start(
            partial(
                trio.run_process,
                command,
                env={"NGINX": f"{descriptor};"},
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
            )
        )


@asynccontextmanager
async def running_nginx_before_apis(
    folder: Path, program: Program
) -> AsyncIterator[NginxBeforeApis]:
    """The same for the length of the block, once it is started."""
    async with trio.open_nursery() as nursery:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield NginxBeforeApis(folder, program, listener, nursery)
            nursery.cancel_scope.cancel()
