"""An agent reduced to its connection: what a proxy sees of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from tunnelmux.config import hash_token
from tunnelmux.limits import Limits
from tunnelmux.mux import Session, open_session
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.proxy.tunnels.enrolment import Enrolment
from tunnelmux.proxy.tunnels.tunnel import TunnelServer, TunnelSettings
from tunnelmux.sessions import MemoryStore, SessionHandle
from tunnelmux.transports import memory_stream_pair, parse_url
from tunnelmux.transports.admission import Admission
from tunnelmux.transports.websocket import start_websocket_client


def known(name: str, token: str, *, enabled: bool = True) -> KnownDevice:
    """A device as the proxy knows it."""
    return KnownDevice(name=name, token_sha256=bytes.fromhex(hash_token(token)), enabled=enabled)


@dataclass
class Dialled:
    """The agent's end of a session, and what came with the 101."""

    session: Session
    headers: dict[bytes, bytes]


class TunnelBench:
    """A tunnel server without sockets, and agents that dial it through memory."""

    def __init__(
        self,
        nursery: trio.Nursery,
        devices: Sequence[KnownDevice] = (known("dev1", "token-of-dev1"),),
        *,
        settings: TunnelSettings | None = None,
        max_handshakes: int = 256,
        enrolment: Enrolment | None = None,
        register: type[DeviceRegister] = DeviceRegister,
    ) -> None:
        self.store = MemoryStore()
        self.devices = register(devices, enrolment.load() if enrolment else ())
        self.server = TunnelServer(
            devices=self.devices,
            store=self.store,
            settings=settings or TunnelSettings(),
            admission=Admission("tunnel", limit=max_handshakes),
            enrolment=enrolment,
        )
        self._nursery = nursery

    async def connect_raw(self, remote: str = "192.0.2.7:50000") -> trio.abc.HalfCloseableStream:
        """A connection that has said nothing yet, counted as an accepted one is."""
        place = self.server.admission.enter(remote)
        there, here = memory_stream_pair()
        if place is None:
            await there.aclose()
        else:
            place.has_spoken()
            self._nursery.start_soon(self.server.handle, there, remote, place)
        return here

    @asynccontextmanager
    async def dial(
        self,
        token: str | None = "token-of-dev1",
        *,
        path: str = "/tunnel/connect",
        name: str | None = None,
        instance: str | None = None,
        remote: str = "192.0.2.7:50000",
        limits: Limits | None = None,
        said: Sequence[tuple[bytes, bytes]] = (),
    ) -> AsyncIterator[Dialled]:
        """Connect as an agent would; raises ConnectRefused as it would read it."""
        headers = [*said]
        if token is not None:
            headers.append((b"Authorization", b"Bearer " + token.encode()))
        if name is not None:
            headers.append((b"Tunnelmux-Device", name.encode()))
        if instance is not None:
            headers.append((b"Tunnelmux-Instance", instance.encode()))
        stream = await self.connect_raw(remote)
        url = parse_url(f"ws://proxy.example.com:3800{path}")
        websocket = await start_websocket_client(self._nursery, stream, url, headers=headers)
        async with open_session(websocket, is_client=True, limits=limits) as session:
            yield Dialled(session, dict(websocket.response_headers))

    async def arrived(self, device: str = "dev1") -> SessionHandle:
        """The device's session, as soon as the proxy has registered it."""
        handle = await self.store.wait_for_device(device, trio.current_time() + 30)
        assert handle is not None, f"{device} was never registered"
        return handle


async def gone(bench: TunnelBench) -> None:
    """Return when the proxy holds no session any more."""
    with trio.fail_after(30):
        while bench.server.sessions:  # noqa: ASYNC110  no event says so
            await trio.sleep(0.01)
