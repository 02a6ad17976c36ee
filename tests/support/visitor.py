"""A visitor of the HTTP ingress: one request, and the whole answer taken apart by h11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import h11
import trio

from tunnelmux.config import Address

__all__ = ["Answer", "fetch"]


@dataclass
class Answer:
    """A response that arrived whole."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str | None:
        """The stable code of `Tunnelmux-Reason`."""
        return self.headers.get("tunnelmux-reason")


async def fetch(
    address: Address,
    path: str = "/",
    *,
    device: str = "dev1",
    service: str | None = None,
    method: str = "GET",
    body: bytes = b"",
    headers: Sequence[tuple[str, str]] = (),
    timeout: float = 30.0,
) -> Answer:
    """Ask for *path* on a connection of its own; raises when the answer does not come whole."""
    fields = [("Host", "127.0.0.1"), ("Tunnelmux-Device", device), ("Connection", "close")]
    if service is not None:
        fields.append(("Tunnelmux-Service", service))
    if body:
        fields.append(("Content-Length", str(len(body))))
    request = h11.Request(method=method, target=path, headers=[*fields, *headers])
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=200_000)
    with trio.fail_after(timeout):
        stream = await trio.open_tcp_stream(address.host, address.port)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(_send, connection, stream, request, body)
            return await _receive(connection, stream)


async def _send(
    connection: h11.Connection, stream: trio.SocketStream, request: h11.Request, body: bytes
) -> None:
    await stream.send_all(connection.send(request) or b"")
    if body:
        await stream.send_all(connection.send(h11.Data(data=body)) or b"")
    await stream.send_all(connection.send(h11.EndOfMessage()) or b"")


async def _receive(connection: h11.Connection, stream: trio.SocketStream) -> Answer:
    answer = Answer(0, {})
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Response):
            answer = Answer(event.status_code, _decoded(event.headers))
        elif isinstance(event, h11.Data):
            answer.body += event.data
        elif isinstance(event, h11.EndOfMessage):
            answer.trailers = _decoded(event.headers)
            return answer
        else:
            assert isinstance(event, h11.InformationalResponse), "no answer before the end"


def _decoded(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("ascii"): value.decode("latin-1") for name, value in headers}
