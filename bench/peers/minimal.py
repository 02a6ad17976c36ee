"""The tunnel of peers/go/minimal: what hashicorp/yamux costs with nothing else."""

from __future__ import annotations

from bench.origin import Origin
from bench.peers.ours import make_certificate
from bench.peers.programs import build_go, pinned_version
from bench.peers.tunnel import Peer, Running
from bench.processes import HOST, Started, free_ports


class Minimal(Peer):
    """`go-ws`, `go-tcp`, `go-http`, `go-https`: the part after the dash is its transport."""

    def prepare(self) -> None:
        self._program = str(build_go("minimal", (".",)) / "minimal")
        yamux = pinned_version("minimal", "github.com/hashicorp/yamux")
        self.version = f"hashicorp/yamux {yamux}"
        if self.name == "go-ws":
            websocket = pinned_version("minimal", "github.com/gorilla/websocket")
            self.version += f", gorilla/websocket {websocket}"

    def start(self, started: Started, origin: Origin) -> Running:
        control, http, echo = free_ports(3)
        transport = self.name.partition("-")[2]

        def command(role: str, *ports: int) -> list[str]:
            addresses = ",".join(f"{HOST}:{port}" for port in ports)
            return [self._program, role, transport, f"{HOST}:{control}", addresses]

        certificate: list[str] = []
        if self.visitors == "https":
            pem, key, _pin = make_certificate(started.folder, "visitors")
            certificate = [str(pem), str(key)]
        server = started.start("server", [*command("server", http, echo), *certificate])
        # It takes one connection only, so its port cannot be tried: the client is.
        started.wait_for_log("server", "listening")
        client = started.start("client", command("client", origin.http, origin.echo))
        started.wait_for_port(echo)
        secure = self.visitors == "https"
        return Running(http, server, client, None if self.http else echo, secure=secure)
