"""A proxy of two workers as processes: which is where, and its internal API."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

import msgspec
import trio

from support.daemons import DaemonSet
from support.http_rig import Peer
from support.tunnels import Tunnel
from support.visitor import Answer, fetch
from tunnelmux.config import Address

__all__ = ["Kept", "Workers"]

PATIENCE = 60.0
SECRET = "the-secret-of-the-internal-api-01"


class Workers(Tunnel):
    """Two workers with one device each: the parent gives an agent to the one that has fewer."""

    at_internal: Address

    timeout = 60
    """Seconds after which a worker that does not answer is killed: no test is to lose one because
    its machine is busy."""

    def __init__(self, daemons: DaemonSet) -> None:
        super().__init__(daemons)
        daemons.secrets.add(SECRET)

    def file(self, more: str = "", **options: Any) -> str:
        """proxy.toml."""
        internal = f'[internal]\nlisten = "127.0.0.1:0"\nsecret = "{SECRET}"\n'
        own = f"[proxy]\nworkers = 2\nworker_timeout = {self.timeout}\n"
        return self.proxy_file(more=f"{own}{internal}{more}", **options)

    async def start(self, web: Address, more: str = "", **options: Any) -> None:
        """Start the proxy, and the agents of dev1 and dev2."""
        self.proxy = await self.daemons.start("proxy", self.file(more, **options))
        await self.proxy.logged("workers started")
        self.at_tunnel = await self.proxy.listening("tunnel.listen")
        self.at_http = await self.proxy.listening("ingress.http.listen")
        self.at_internal = await self.proxy.listening("internal.listen")
        for device in ("dev1", "dev2"):
            services = {"web": f"http://{web}", "raw": f"tcp://{web}"}
            # At once again when a worker has ended: the tests wait for it.
            more_of_agent = "[backoff]\nminimum = 0.05\nearly = 0.1\nmaximum = 0.2\n"
            await self.start_agent(services, device=device, more=more_of_agent)

    def worker_of(self, device: str) -> str:
        """The worker that has the device's session."""
        started = [
            line
            for line in self.proxy.events
            if line.get("event") == "session started" and line.get("device") == device
        ]
        return str(started[-1]["worker"])

    def pid_of(self, worker: str) -> int:
        """Its process, the last one of that name."""
        ready = [
            line
            for line in self.proxy.events
            if line.get("event") == "worker ready" and line.get("worker") == worker
        ]
        pid = ready[-1]["pid"]
        assert isinstance(pid, int)
        return pid

    def kill(self, worker: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the worker a signal."""
        os.kill(self.pid_of(worker), number)

    async def answers(self, device: str) -> None:
        """Return when the device's page comes through."""
        with trio.fail_after(PATIENCE):
            while (answer := await self.fetch(device=device)).status != 200:  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert answer.body == b"hello\n"

    async def ask(self, path: str, method: str = "GET", content: object = None) -> Answer:
        """One call of the internal API, on a connection of its own."""
        body = msgspec.json.encode(content) if content is not None else b""
        fields = [("Authorization", f"Bearer {SECRET}")]
        return await fetch(self.at_internal, path, method=method, body=body, headers=fields)

    async def json(self, path: str, method: str = "GET", content: object = None) -> Any:
        """What such a call answers, which is no error."""
        answer = await self.ask(path, method, content)
        assert answer.status == 200, answer.body
        return msgspec.json.decode(answer.body)

    async def counted(self, name: str) -> float:
        """The sum of all series of that name in /metrics."""
        text = (await self.ask("/metrics")).body.decode()
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, flags=re.MULTILINE)
        assert found, name
        return sum(map(float, found))

    async def kept(self) -> Kept:
        """A visitor's connection that is kept from request to request."""
        return Kept(Peer(await self.visit()))


class Kept:
    """One kept connection of a visitor."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    async def get(self, device: str, path: str = "/") -> bytes:
        """The whole answer's content."""
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nTunnelmux-Device: {device}\r\n\r\n"
        with trio.fail_after(PATIENCE):
            await self.peer.send(head.encode("ascii"))
            answer = await self.peer.read_head()
            assert answer.startswith(b"HTTP/1.1 200"), answer
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", answer)
            assert length is not None, answer
            return await self.peer.read_exactly(int(length[1]))

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.peer.stream)
