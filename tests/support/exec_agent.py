"""An agent that answers /v1/exec out of a small table, in place of a device with an SSH server."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from support.http_rig import Peer
from support.internal import Bench
from support.proxies import agent_of, running
from tunnelmux.commands import Event, Exited, Output, Started, Truncated, encode_event, failure
from tunnelmux.config import DeviceConfig, InternalListener, ProxyConfig, Secret, TunnelListener
from tunnelmux.config.proxy import RegistrySource
from tunnelmux.mux import Stream
from tunnelmux.proxy import RunningProxy

__all__ = ["ExecAgent", "exec_agents", "exec_proxy"]


class ExecAgent:
    """Understands `echo`, `exit N`, `sleep SECONDS`, `flood BYTES`, and ways to misbehave."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[dict[str, object]] = []
        self.heads: list[bytes] = []
        self.running = 0
        self.ended_early = 0
        """Commands whose stream was reset before their end."""

    async def serve(self, stream: Stream) -> None:
        peer = Peer(stream)
        try:
            head = await peer.read_head()
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            request = json.loads(await peer.read_exactly(length))
        except (trio.BrokenResourceError, AssertionError):
            return
        self.heads.append(head)
        self.requests.append(request)
        self.running += 1
        try:
            await self._answer(peer, request)
        except trio.BrokenResourceError:
            self.ended_early += 1
        finally:
            self.running -= 1

    async def _answer(self, peer: Peer, request: dict[str, object]) -> None:
        word, _, rest = str(request["command"]).partition(" ")
        started = Started(str(request["commandId"]), 1_700_000_000.5)
        if word == "status":
            await self._refuse(peer, int(rest))
            return
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n")
        match word:
            case "echo":
                text = f"{rest} from {self.name}\n".encode()
                await self._tell(peer, started, Output("stdout", text), Exited(0, 0.25, len(text)))
            case "exit":
                complaint = Output("stderr", b"no luck\n")
                await self._tell(peer, started, complaint, Exited(int(rest), 0.5, 0, 8))
            case "sleep":
                await self._tell(peer, started)
                await self._sleep(peer, float(rest))
                await self._tell(peer, Exited(0, float(rest)))
            case "trouble":  # on one device after a second, on the others after 100
                await self._tell(peer, started)
                await self._sleep(peer, 1 if rest == self.name else 100)
                await self._tell(peer, Exited(3 if rest == self.name else 0, 1.0))
            case "bytes":
                data = bytes.fromhex(rest)
                await self._tell(peer, started, Output("stdout", data), Exited(0, 0.1, len(data)))
            case "flood":
                await self._tell(peer, started)
                for _ in range(int(rest) // 32_768):
                    await self._tell(peer, Output("stdout", b"x" * 32_768))
                await self._tell(peer, Truncated("stdout", int(rest)), Exited(0, 1.0, int(rest)))
            case "endless":  # until the stream is reset
                line = {
                    "started": encode_event(Started(str(request["commandId"]), 1.0)),
                    "truncated": encode_event(Truncated("stdout", 1)),
                    "other-id": encode_event(Started("c" * 200_000, 1.0)),
                    "message": encode_event(failure("failed", "m" * 200_000)),
                    "long-line": b" " * 65_536,
                    "bytes": encode_event(Output("stdout", b"\0")),
                }[rest]
                while True:
                    await peer.send(line)
            case "ssh":  # the `ssh` of its started and its exit, whatever they are
                events: list[Event] = [started, Exited(0, 0.1)]
                for event, said in zip(events, json.loads(rest), strict=True):
                    content = json.loads(encode_event(event)) | {"ssh": said}
                    await peer.send(json.dumps(content).encode("ascii") + b"\n")
            case "fail":
                await self._tell(peer, failure(rest, f"it was {rest}"))
            case "cut":
                await self._tell(peer, started)
                peer.stream.reset()  # type: ignore[attr-defined]
                return
            case "silence":
                await self._sleep(peer, 1e6)
            case "nonsense":
                await peer.send(b"this is no event\n")
            case "unfinished":
                await self._tell(peer, started)
        await peer.end()

    async def _tell(self, peer: Peer, *events: Event) -> None:
        await peer.send(b"".join(encode_event(event) for event in events))

    async def _sleep(self, peer: Peer, seconds: float) -> None:
        """Raises BrokenResourceError when the stream is reset meanwhile."""
        with trio.move_on_after(seconds):
            while True:
                await peer.stream.receive_some()
                await trio.sleep(0.01)

    async def _refuse(self, peer: Peer, status: int) -> None:
        body = json.dumps({"error": {"code": "X", "message": f"said {status}"}}).encode()
        reason = "Tunnelmux-Reason: busy\r\n" if status == 503 else ""
        head = f"HTTP/1.1 {status} No\r\n{reason}Content-Length: {len(body)}\r\n\r\n"
        await peer.send(head.encode() + body)
        await peer.end()


@asynccontextmanager
async def exec_agents(bench: Bench, *names: str) -> AsyncIterator[dict[str, ExecAgent]]:
    """These devices, connected for the length of the block."""
    agents = {name: ExecAgent(name) for name in names}

    async def connect(
        agent: ExecAgent, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with bench.agent(agent.name) as connected, trio.open_nursery() as streams:
            task_status.started()
            async for stream in connected.session:
                streams.start_soon(agent.serve, stream)

    async with trio.open_nursery() as nursery:
        for agent in agents.values():
            await nursery.start(connect, agent)
        yield agents
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def exec_proxy(
    *names: str, registry: RegistrySource | None = None
) -> AsyncIterator[tuple[RunningProxy, dict[str, ExecAgent]]]:
    """A whole proxy on loopback ports, its internal API without a secret, and these devices. With a
    registry, where it tells its address, its port is not chosen by the system."""
    internal = "127.0.0.1:0"
    if registry is not None:
        # An address of loopback that nothing else listens on.
        internal = f"127.{'.'.join(str(random.randint(1, 254)) for _ in range(3))}:3801"
    config = ProxyConfig(
        tunnel=TunnelListener(listen="127.0.0.1:0"),
        internal=InternalListener(listen=internal),
        registry=registry or RegistrySource(),
        devices=[DeviceConfig(name=name, token=Secret(f"token-of-{name}")) for name in names],
    )
    agents = {name: ExecAgent(name) for name in names}

    async def connect(
        agent: ExecAgent, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with agent_of(proxy, agent.name) as session, trio.open_nursery() as streams:
            task_status.started()
            async for stream in session:
                streams.start_soon(agent.serve, stream)

    async with running(config) as proxy, trio.open_nursery() as nursery:
        for agent in agents.values():
            await nursery.start(connect, agent)
        yield proxy, agents
        nursery.cancel_scope.cancel()
