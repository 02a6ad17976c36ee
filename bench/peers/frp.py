"""frp: type tcp with and without TLS, and type http."""

from __future__ import annotations

from pathlib import Path

from bench.origin import Origin
from bench.peers.programs import build_go, find_program, pinned_version, reported_version
from bench.peers.tunnel import Peer, Running
from bench.processes import HOST, Started, free_ports

MODULE = "github.com/fatedier/frp"
VIRTUAL_HOST = "bench.localhost"

SERVER = """\
bindAddr = "{host}"
bindPort = {control}
proxyBindAddr = "{host}"
vhostHTTPPort = {vhost}
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
        if self.http:
            proxies.append(("http", origin.http, f'customDomains = ["{VIRTUAL_HOST}"]'))
            http = vhost
        else:
            proxies.append(("tcp", origin.http, f"remotePort = {http}"))
        file = self._client_file(started, control, proxies)
        client = started.start("client", [self._client, "-c", file])
        started.wait_for_port(echo)
        started.wait_for_port(http)
        headers = (f"Host: {VIRTUAL_HOST}",) if self.http else ()
        return Running(http, server, client, None if self.http else echo, headers)

    def _server_file(self, started: Started, control: int, vhost: int) -> str:
        text = SERVER.format(host=HOST, control=control, vhost=vhost)
        return _written(started.folder / "frps.toml", text)

    def _client_file(
        self, started: Started, control: int, proxies: list[tuple[str, int, str]]
    ) -> str:
        text = CLIENT.format(host=HOST, control=control, tls=str(self.encrypted).lower())
        for number, (kind, local, where) in enumerate(proxies):
            text += PROXY.format(name=number, type=kind, host=HOST, local=local, where=where)
        return _written(started.folder / "frpc.toml", text)


def _written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)
