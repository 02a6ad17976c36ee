"""chisel, piko, rathole and bore: each in its own defaults, but for logs."""

from __future__ import annotations

from bench.origin import Origin
from bench.peers.programs import (
    build_go,
    find_program,
    install_cargo,
    install_go,
    pinned_version,
    reported_version,
)
from bench.peers.tunnel import Peer, Running
from bench.processes import HOST, Started, free_ports


class Chisel(Peer):
    MODULE = "github.com/jpillora/chisel"

    def prepare(self) -> None:
        if found := find_program("chisel"):
            self._program, self.version = found, reported_version(found, "--version")
        else:
            self._program = str(build_go("chisel", (self.MODULE,)) / "chisel")
            self.version = pinned_version("chisel", self.MODULE)

    def start(self, started: Started, origin: Origin) -> Running:
        control, http, echo = free_ports(3)
        where = ["--host", HOST, "--port", str(control)]
        server = started.start("server", [self._program, "server", "--reverse", *where])
        started.wait_for_port(control)
        remotes = [
            f"R:{HOST}:{public}:{HOST}:{target}"
            for public, target in ((http, origin.http), (echo, origin.echo))
        ]
        client = started.start("client", [self._program, "client", f"{HOST}:{control}", *remotes])
        started.wait_for_port(http)
        started.wait_for_port(echo)
        return Running(http, server, client, echo)


class Piko(Peer):
    PACKAGE, VERSION = "github.com/andydunstall/piko", "latest"
    ENDPOINT = "bench"

    def prepare(self) -> None:
        self._program = find_program("piko") or str(install_go(self.PACKAGE, self.VERSION) / "piko")
        self.version = reported_version(self._program, "--version")

    def start(self, started: Started, origin: Origin) -> Running:
        http, upstream, admin, gossip, agent = free_ports(5)
        server = started.start(
            "server",
            [
                *(self._program, "server", "--log.level", "error"),
                *("--proxy.bind-addr", f"{HOST}:{http}"),
                *("--upstream.bind-addr", f"{HOST}:{upstream}"),
                *("--admin.bind-addr", f"{HOST}:{admin}"),
                *("--cluster.gossip.bind-addr", f"{HOST}:{gossip}"),
            ],
        )
        started.wait_for_port(upstream)
        client = started.start(
            "client",
            [
                *(self._program, "agent", "http", self.ENDPOINT, str(origin.http)),
                *("--log.level", "error", "--connect.url", f"http://{HOST}:{upstream}"),
                *("--server.bind-addr", f"{HOST}:{agent}"),
            ],
        )
        started.wait_for_port(agent)
        return Running(http, server, client, None, (f"x-piko-endpoint: {self.ENDPOINT}",))


class Rathole(Peer):
    CRATE, VERSION = "rathole", "0.5.0"

    def prepare(self) -> None:
        self._program = find_program("rathole") or str(
            install_cargo(self.CRATE, self.VERSION) / "rathole"
        )
        self.version = self.VERSION

    def start(self, started: Started, origin: Origin) -> Running:
        control, http, echo = free_ports(3)
        services = {"web": (http, origin.http), "echo": (echo, origin.echo)}
        server = f'[server]\nbind_addr = "{HOST}:{control}"\ndefault_token = "bench"\n'
        client = f'[client]\nremote_addr = "{HOST}:{control}"\ndefault_token = "bench"\n'
        for name, (public, target) in services.items():
            server += f'[server.services.{name}]\nbind_addr = "{HOST}:{public}"\n'
            client += f'[client.services.{name}]\nlocal_addr = "{HOST}:{target}"\n'
        (started.folder / "server.toml").write_text(server)
        (started.folder / "client.toml").write_text(client)
        quiet = {"RUST_LOG": "error"}
        at_server = started.start("server", [self._program, "--server", "server.toml"], quiet)
        started.wait_for_port(control)
        at_client = started.start("client", [self._program, "--client", "client.toml"], quiet)
        started.wait_for_port(http)
        started.wait_for_port(echo)
        return Running(http, at_server, at_client, echo)


class Bore(Peer):
    """A client of it forwards one port, so there is no echo beside a bulk transfer."""

    CRATE, PROGRAM, VERSION = "bore-cli", "bore", "0.6.0"
    CONTROL = 7835  # in its source: it cannot be chosen

    def prepare(self) -> None:
        self._program = find_program(self.PROGRAM) or str(
            install_cargo(self.CRATE, self.VERSION) / self.PROGRAM
        )
        self.version = reported_version(self._program, "--version")

    def start(self, started: Started, origin: Origin) -> Running:
        (http,) = free_ports(1)
        quiet = {"RUST_LOG": "error"}
        server = started.start("server", [self._program, "server", "--bind-addr", HOST], quiet)
        started.wait_for_port(self.CONTROL)
        local = [self._program, "local", str(origin.http), "--local-host", HOST]
        client = started.start("client", [*local, "--to", HOST, "--port", str(http)], quiet)
        started.wait_for_port(http)
        return Running(http, server, client)
