"""The packets of Socket.IO, read and written by python-socketio's packet classes.

Those classes do no I/O. What they accept is checked again here, so that everything a peer sends
becomes either one of the shapes below or a `BadPacket`. Socket.IO 2, which uses Engine.IO 3, has
the same packets with two differences: a client joins a namespace with a query behind its name, and
a refusal is a text.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl

from socketio import packet as socket

from tunnelmux.socketio.engine_packets import BadPacket, BoundedJson

__all__ = [
    "ACK",
    "CONNECT",
    "CONNECT_ERROR",
    "DISCONNECT",
    "EVENT",
    "Assembler",
    "SocketPacket",
    "encode_socket_packet",
]

CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR = range(5)
_BINARY = {socket.BINARY_EVENT: EVENT, socket.BINARY_ACK: ACK}

_LEAST_ATTACHMENT = 64
# The bytes that one attachment counts for at least: a million empty ones are work too.

_MOST_FIELDS = 64  # of the query behind a namespace; the same limit as for a request's query

# All that the packet classes raise on bytes they cannot use: wrong JSON, a placeholder that points
# nowhere, a nesting deeper than the interpreter's stack.
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


class SocketPacket(NamedTuple):
    """One Socket.IO packet, with its attachments put in.

    `data` is a list for EVENT (the name first) and ACK, a dict for CONNECT and CONNECT_ERROR, and a
    text in a CONNECT_ERROR that goes to a peer of Socket.IO 2.
    """

    kind: int
    namespace: str = "/"
    data: list[object] | dict[str, object] | str | None = None
    id: int | None = None


class _Packet(socket.Packet):  # type: ignore[misc]  # the library has no types
    json = BoundedJson


def encode_socket_packet(packet: SocketPacket) -> list[str | bytes]:
    """The Engine.IO messages of one Socket.IO packet: its text, then its attachments."""
    namespace = None if packet.namespace == "/" else packet.namespace
    made = _Packet(packet.kind, data=packet.data, namespace=namespace, id=packet.id)
    encoded = made.encode()
    return encoded if isinstance(encoded, list) else [encoded]


class Assembler:
    """Makes Socket.IO packets out of Engine.IO messages, which must come in order."""

    def __init__(self, max_bytes: int, version: int) -> None:
        self._max_bytes = max_bytes
        self._version = version
        """The version of Engine.IO; it decides the version of Socket.IO."""
        self._unfinished: socket.Packet | None = None
        self._size = 0

    def feed(self, message: str | bytes) -> SocketPacket | None:
        """The packet that is complete with this message, or None. Raises BadPacket."""
        try:
            if self._unfinished is not None:
                return self._attach(self._unfinished, message)
            if isinstance(message, bytes):
                raise BadPacket("an attachment came without the packet it belongs to")
            return self._begin(message)
        except _UNREADABLE:
            raise BadPacket("it is no Socket.IO packet") from None

    def _begin(self, message: str) -> SocketPacket | None:
        if not message:
            raise BadPacket("a message is empty")
        if self._version == 3 and message[0] == str(CONNECT):
            return _joining_of_version3(message)
        packet = _Packet(encoded_packet=message)
        if not packet.attachment_count:
            return _checked_socket(packet)
        if packet.packet_type not in _BINARY:
            raise BadPacket("a packet without room for attachments announces some")
        if len(message) + packet.attachment_count * _LEAST_ATTACHMENT > self._max_bytes:
            raise BadPacket("it announces too many attachments")
        self._unfinished, self._size = packet, len(message)
        return None

    def _attach(self, packet: socket.Packet, message: str | bytes) -> SocketPacket | None:
        if isinstance(message, str):
            raise BadPacket("a packet's attachments are cut short")
        self._size += max(len(message), _LEAST_ATTACHMENT)
        if self._size > self._max_bytes:
            raise BadPacket(f"a packet with its attachments is over {self._max_bytes} bytes")
        if not packet.add_attachment(message):
            return None
        self._unfinished = None
        return _checked_socket(packet)


def _joining_of_version3(message: str) -> SocketPacket:
    """A CONNECT of Socket.IO 2: `0/namespace?query,`. Raises ValueError."""
    namespace, _, query = message[1:].partition(",")[0].partition("?")
    if namespace and not namespace.startswith("/"):
        raise BadPacket("a namespace is no path")
    said: dict[str, object] = {**dict(parse_qsl(query, max_num_fields=_MOST_FIELDS))}
    return SocketPacket(CONNECT, namespace or "/", said or None)


def _checked_socket(packet: socket.Packet) -> SocketPacket:
    kind = _BINARY.get(packet.packet_type, packet.packet_type)
    if not CONNECT <= kind <= CONNECT_ERROR:
        raise BadPacket("its type is not from 0 to 6")
    data, namespace = packet.data, packet.namespace or "/"
    match kind:
        case 2 if not (isinstance(data, list) and data and isinstance(data[0], str)):
            raise BadPacket("an event has no name")
        case 3 if not isinstance(data, list) or packet.id is None:
            raise BadPacket("an acknowledgement does not name its event")
        case 0 if not (data is None or isinstance(data, dict)):
            raise BadPacket("the auth payload is not a JSON object")
        case 4 if not isinstance(data, dict):
            data = {"message": data if isinstance(data, str) else "no reason given"}
        case 1:
            data = None
    return SocketPacket(kind, namespace, data, packet.id)
