"""The internal API without sockets: a server, callers and agents joined in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from support.http_rig import Peer
from support.ingress import Agent
from support.resettable import resettable_pair
from support.sessions import session_pair
from tunnelmux.backend import ProxyClient
from tunnelmux.config import Secret
from tunnelmux.limits import IngressLimits, InternalLimits, Limits
from tunnelmux.observability import AuditLog, AuditRecord
from tunnelmux.observability.audit import RefusalSummary
from tunnelmux.proxy.access.gate import Gate
from tunnelmux.proxy.commands.dispatcher import Dispatcher
from tunnelmux.proxy.internal import InternalServer, InternalSettings
from tunnelmux.proxy.internal.access import Access
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.sessions import EventLog, LocalHandle, MemoryStore

__all__ = ["DEVICES", "SECRET", "Bench", "RecordList", "Reply", "running_bench"]

DEVICES = ("dev1", "dev2", "dev3", "cam-1", "cam-2", "dev9")
"""Those that may connect; dev9 is disabled."""

SECRET = "the-secret-of-the-back-end"


class Reply:
    """A whole answer, taken apart."""

    def __init__(self, head: bytes, body: bytes) -> None:
        line, *fields = head.decode("latin-1").split("\r\n")
        self.status = int(line.split(" ")[1])
        pairs = [field.partition(": ") for field in fields if field]
        self.headers = {name.lower(): value for name, _, value in pairs}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code."""
        code = self.json["error"]["code"]
        assert isinstance(code, str)
        return code


class Caller(Peer):
    """One connection to the API."""

    async def ask(
        self,
        method: str,
        target: str,
        content: object = None,
        *,
        headers: str = f"Authorization: Bearer {SECRET}\r\n",
        body: bytes = b"",
        host: str = "127.0.0.1:3801",
    ) -> Reply:
        """Send one request and read its whole answer."""
        if content is not None:
            body = json.dumps(content).encode()
        length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{headers}{length}\r\n"
        await self.send(head.encode("latin-1") + body)
        return await self.read_reply(method)

    async def read_reply(self, method: str = "GET") -> Reply:
        reply = Reply(await self.read_head(), b"")
        if method != "HEAD":
            reply.body = await self.read_exactly(int(reply.headers.get("content-length", "0")))
        return reply


class RecordList:
    """The audit of a bench, kept in memory."""

    def __init__(self) -> None:
        self.all: list[AuditRecord] = []

    def write(self, record: AuditRecord | RefusalSummary) -> None:
        assert isinstance(record, AuditRecord)
        self.all.append(record)

    def close(self) -> None:
        pass


class Bench:
    """`server` is the API; `caller()` is a connection to it, `client` a library on it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        limits: InternalLimits | None = None,
        http_limits: IngressLimits | None = None,
        secret: str | None = SECRET,
    ) -> None:
        limits = limits or InternalLimits()
        self.events = EventLog(limits.event_history)
        self.store = MemoryStore(events=self.events)
        http_limits = http_limits or IngressLimits()
        known = [
            KnownDevice(name=name, token_sha256=name.encode().ljust(32), enabled=name != "dev9")
            for name in DEVICES
        ]
        self.records = RecordList()
        register = DeviceRegister(known)
        self.gate = Gate(register, self.store)
        self.dispatcher = Dispatcher(
            self.store,
            register,
            audit=AuditLog([self.records]),
            limits=limits,
            http_limits=http_limits,
        )
        self.server = InternalServer(
            self.store,
            self.events,
            dispatcher=self.dispatcher,
            settings=InternalSettings(
                access=Access(secret=Secret(secret) if secret else None),
                limits=limits,
                http_limits=http_limits,
            ),
        )
        self.server.decisions.gate = self.gate
        self._nursery = nursery
        self.client = ProxyClient("http://127.0.0.1:3801", secret=secret, dial=self._dial)

    async def _dial(self, capacity: int | None = None) -> trio.abc.HalfCloseableStream:
        front, inner = resettable_pair(capacity)
        remote = "192.0.2.9:40000"
        place = self.server.enter(remote)
        self._nursery.start_soon(self.server.handle, inner, remote, place)
        return front

    async def caller(self, capacity: int | None = None) -> Caller:
        """A connection on which at most `capacity` bytes wait to be read."""
        return Caller(await self._dial(capacity))

    async def ask(self, method: str, target: str, content: object = None, **more: Any) -> Reply:
        """One request on a connection of its own."""
        return await (await self.caller()).ask(method, target, content, **more)

    @asynccontextmanager
    async def agent(
        self,
        device: str = "dev1",
        token: str | None = None,
        limits: Limits | None = None,
        timeouts: Mapping[str | None, float] | None = None,
    ) -> AsyncIterator[Agent]:
        """The device's agent, registered for the length of the block. It has told the *timeouts*
        of its services."""
        async with session_pair(limits=limits) as (client, server):
            handle = LocalHandle(
                server,
                token=token or f"token-of-{device}",
                credential=(token or device).encode(),
                device=device,
                remote_address="192.0.2.7:50000",
            )
            handle.timeouts = timeouts or {}
            await self.store.register(handle.token, handle)
            try:
                yield Agent(client)
            finally:
                await self.store.unregister(handle.token, handle)


@asynccontextmanager
async def running_bench(
    *,
    limits: InternalLimits | None = None,
    http_limits: IngressLimits | None = None,
    secret: str | None = SECRET,
) -> AsyncIterator[Bench]:
    """A bench; what still runs when the block is left is cancelled."""
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            yield Bench(nursery, limits=limits, http_limits=http_limits, secret=secret)
            nursery.cancel_scope.cancel()
