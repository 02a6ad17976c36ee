"""frp: type tcp with and without TLS, type http, and type https."""

from __future__ import annotations

from pathlib import Path

from bench.origin import Origin
from bench.peers.ours import make_certificate
from bench.peers.programs import build_go, find_program, pinned_version, reported_version
from bench.peers.tunnel import Peer, Running
from bench.processes import HOST, Started, free_ports

MODULE = "github.com/fatedier/frp"
VIRTUAL_HOST = "bench.localhost"
SECURE_VIRTUAL_HOST = "localhost"
"""The name that visitors give in their TLS handshake, by which it routes."""

SERVER = """\
bindAddr = "{host}"
bindPort = {control}
proxyBindAddr = "{host}"
vhost{kind}Port = {vhost}
log.level = "error"
"""

CLIENT = """\
serverAddr = "{host}"
serverPort = {control}
transport.tls.enable = {tls}
log.level = "error"
"""

PROXY = """
[[proxies]]
name = "{name}"
type = "{type}"
localIP = "{host}"
localPort = {local}
{where}
"""

HTTPS_PROXY = """
[[proxies]]
name = "web"
type = "https"
customDomains = ["{name}"]
[proxies.plugin]
type = "https2http"
localAddr = "{host}:{local}"
crtPath = "{certificate}"
keyPath = "{key}"
"""
"""Its client ends the TLS: that is the one way it has."""


class Frp(Peer):
    """Its defaults otherwise: tcpMux on, which is yamux with windows of 6 MiB."""

    def prepare(self) -> None:
        server, client = find_program("frps"), find_program("frpc")
        if server is not None and client is not None:
            self._server, self._client = server, client
            self.version = reported_version(server, "--version")
        else:
            folder = build_go("frp", (f"{MODULE}/cmd/frps", f"{MODULE}/cmd/frpc"))
            self._server, self._client = str(folder / "frps"), str(folder / "frpc")
            self.version = pinned_version("frp", MODULE)

    def start(self, started: Started, origin: Origin) -> Running:
        control, http, echo, vhost = free_ports(4)
        file = self._server_file(started, control, vhost)
        server = started.start("server", [self._server, "-c", file])
        started.wait_for_port(control)
        proxies = [("tcp", origin.echo, f"remotePort = {echo}")]
        more = ""
        if self.visitors == "https":
            certificate, key, _pin = make_certificate(started.folder, "vhost")
            more = HTTPS_PROXY.format(
                name=SECURE_VIRTUAL_HOST,
                host=HOST,
                local=origin.http,
                certificate=certificate,
                key=key,
            )
            http = vhost
        elif self.http:
            proxies.append(("http", origin.http, f'customDomains = ["{VIRTUAL_HOST}"]'))
            http = vhost
        else:
            proxies.append(("tcp", origin.http, f"remotePort = {http}"))
        file = self._client_file(started, control, proxies, more)
        client = started.start("client", [self._client, "-c", file])
        started.wait_for_port(echo)
        started.wait_for_port(http)
        secure = self.visitors == "https"
        headers = (f"Host: {VIRTUAL_HOST}",) if self.http and not secure else ()
        return Running(http, server, client, None if self.http else echo, headers, secure)

    def _server_file(self, started: Started, control: int, vhost: int) -> str:
        kind = "HTTPS" if self.visitors == "https" else "HTTP"
        text = SERVER.format(host=HOST, control=control, kind=kind, vhost=vhost)
        return _written(started.folder / "frps.toml", text)

    def _client_file(
        self, started: Started, control: int, proxies: list[tuple[str, int, str]], more: str
    ) -> str:
        text = CLIENT.format(host=HOST, control=control, tls=str(self.encrypted).lower())
        for number, (kind, local, where) in enumerate(proxies):
            text += PROXY.format(name=number, type=kind, host=HOST, local=local, where=where)
        return _written(started.folder / "frpc.toml", text + more)


def _written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)
