"""The packets of Engine.IO v4 and Socket.IO v4 as python-engineio and python-socketio read them.

Their packet classes do no I/O and are taken as they are; what they let pass is checked here, so
that whatever a peer sends is either one of the shapes below or a `BadPacket`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from engineio import packet as engine
from engineio.payload import Payload
from socketio import packet as socket

__all__ = [
    "ACK",
    "CLOSE",
    "CONNECT",
    "CONNECT_ERROR",
    "DISCONNECT",
    "EVENT",
    "MESSAGE",
    "NOOP",
    "OPEN",
    "PING",
    "PONG",
    "UPGRADE",
    "Assembler",
    "BadPacket",
    "EnginePacket",
    "SocketPacket",
    "decode_packet",
    "decode_payload",
    "encode_packet",
    "encode_payload",
    "encode_socket_packet",
    "encoded_size",
]

OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = range(7)
CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR = range(5)
_BINARY = {socket.BINARY_EVENT: EVENT, socket.BINARY_ACK: ACK}

_LEAST_ATTACHMENT = 64
# What one attachment counts for at least, in bytes: an announced million of empty ones is work too.

# All that the packet classes raise on bytes they cannot use: wrong JSON, wrong base64, a
# placeholder that points nowhere, a nesting deeper than the interpreter's stack.
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


class BadPacket(Exception):
    """The peer sent what no Socket.IO peer may send. The message says what, and quotes nothing."""


class EnginePacket(NamedTuple):
    """One Engine.IO packet. `data` is text or bytes, and a dict for OPEN."""

    kind: int
    data: str | bytes | dict[str, object] = ""


class SocketPacket(NamedTuple):
    """One Socket.IO packet with its attachments in their places.

    `data` is a list for EVENT (the name first) and ACK, a dict for CONNECT and CONNECT_ERROR.
    """

    kind: int
    namespace: str = "/"
    data: list[object] | dict[str, object] | None = None
    id: int | None = None


# -- Engine.IO ------------------------------------------------------------------------------


def encode_packet(packet: EnginePacket) -> str | bytes:
    """One WebSocket message: text, or bytes for a binary MESSAGE."""
    encoded: str | bytes = engine.Packet(*packet).encode()
    return encoded


def decode_packet(encoded: str | bytes) -> EnginePacket:
    """What one WebSocket message holds. Raises BadPacket."""
    try:
        return _checked(engine.Packet(encoded_packet=encoded))
    except _UNREADABLE:
        raise BadPacket("it is no Engine.IO packet") from None


def encode_payload(packets: Sequence[EnginePacket]) -> str:
    """Packets as the body of a polling request or response."""
    payload: str = Payload([engine.Packet(*packet) for packet in packets]).encode()
    return payload


def decode_payload(encoded: str, max_packets: int) -> list[EnginePacket]:
    """The packets in the body of a polling request or response. Raises BadPacket."""
    if encoded.count("\x1e") >= max_packets:
        raise BadPacket(f"there are more than {max_packets} packets in one payload")
    if encoded.startswith("d="):
        raise BadPacket("it is JSONP, which ended with Engine.IO 3")
    try:
        decoded = _payload_class(max_packets)(encoded_payload=encoded)
        return [_checked(packet) for packet in decoded.packets]
    except _UNREADABLE:
        raise BadPacket("it is no Engine.IO payload") from None


def encoded_size(packet: EnginePacket, *, polling: bool) -> int:
    """About how many bytes a packet is on the wire; never less than it is.

    Our JSON is ASCII, so that characters are bytes.
    """
    if isinstance(packet.data, dict):
        return 1024
    length = len(packet.data)
    return 4 + (length * 4 // 3 + 4 if polling and isinstance(packet.data, bytes) else length)


@cache
def _payload_class(max_packets: int) -> type[Payload]:
    # The library's own limit (16) is less than a busy npm client puts into one request.
    return type("BoundedPayload", (Payload,), {"max_decode_packets": max_packets})


def _checked(packet: engine.Packet) -> EnginePacket:
    kind, data = packet.packet_type, packet.data
    if not OPEN <= kind <= NOOP:
        raise BadPacket("its type is not from 0 to 6")
    if kind == OPEN:
        if not isinstance(data, dict):
            raise BadPacket("its handshake is not a JSON object")
        return EnginePacket(kind, data)
    if kind == MESSAGE and not isinstance(data, str | bytes):
        raise BadPacket("its message is no Socket.IO packet")
    return EnginePacket(kind, data if isinstance(data, str | bytes) else "")


# -- Socket.IO ------------------------------------------------------------------------------


def encode_socket_packet(packet: SocketPacket) -> list[str | bytes]:
    """The Engine.IO messages of one Socket.IO packet: its text, then its attachments."""
    namespace = None if packet.namespace == "/" else packet.namespace
    made = socket.Packet(packet.kind, data=packet.data, namespace=namespace, id=packet.id)
    encoded = made.encode()
    return encoded if isinstance(encoded, list) else [encoded]


class Assembler:
    """Makes Socket.IO packets of Engine.IO messages, which must come in their order."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
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
        packet = socket.Packet(encoded_packet=message)
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


def _checked_socket(packet: socket.Packet) -> SocketPacket:
    kind = _BINARY.get(packet.packet_type, packet.packet_type)
    if not CONNECT <= kind <= CONNECT_ERROR:
        raise BadPacket("its type is not from 0 to 6")
    data, namespace = packet.data, packet.namespace or "/"
    match kind:
        case 2 if not (isinstance(data, list) and data and isinstance(data[0], str)):
            raise BadPacket("an event has no name")
        case 3 if not isinstance(data, list) or packet.id is None:
            raise BadPacket("an acknowledgement says not of what")
        case 0 if not (data is None or isinstance(data, dict)):
            raise BadPacket("the auth payload is not a JSON object")
        case 4 if not isinstance(data, dict):
            data = {"message": data if isinstance(data, str) else "no reason given"}
        case 1:
            data = None
    return SocketPacket(kind, namespace, data, packet.id)
