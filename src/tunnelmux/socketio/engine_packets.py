"""The packets of Engine.IO: one in each WebSocket message, several in a polling body.

Version 4 uses python-engineio's packet classes, which do no I/O. Version 3, which Socket.IO 2
speaks, is written here: each packet has its length before it, and the client sends the pings. The
result of both is checked, so that everything a peer sends becomes either an `EnginePacket` or a
`BadPacket`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from engineio import json as engine_json
from engineio import packet as engine
from engineio.payload import Payload

__all__ = [
    "CLOSE",
    "MESSAGE",
    "NOOP",
    "OPEN",
    "PING",
    "PONG",
    "UPGRADE",
    "BadPacket",
    "BoundedJson",
    "Codec",
    "EnginePacket",
    "Version3",
    "Version4",
    "encoded_size",
]

OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = range(7)

# Everything that reading malformed bytes can raise: wrong JSON, wrong base64, wrong UTF-8, a
# nesting deeper than the interpreter's stack.
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)

MOST_VALUES = 100_000
"""Values in one JSON text. A command's result has about ten; its output is one text. Sixteen
megabytes of empty objects would take 400 MB, and more than a second of all other work."""

_ENVELOPE = 12
# At most so many bytes beside a packet's data: in version 3 nine digits, a colon and the type.


class BadPacket(Exception):
    """The peer sent something malformed. The message says what is wrong, and quotes nothing."""


class EnginePacket(NamedTuple):
    """One Engine.IO packet. `data` is text or bytes, and a dict for OPEN."""

    kind: int
    data: str | bytes | dict[str, object] = ""


class BoundedJson:
    """JSON as the packet classes of python-engineio and python-socketio want it, with a bound."""

    dumps = staticmethod(engine_json.dumps)

    @staticmethod
    def loads(text: str) -> Any:
        """The value of a peer's text. Raises ValueError, RecursionError, and BadPacket for more
        than MOST_VALUES values, which are counted first: that costs little."""
        if len(text) > MOST_VALUES:
            # Without escaped quotes, every second part between quotes is outside of strings.
            unescaped = text.replace("\\\\", "").replace('\\"', "")
            parts = unescaped.split('"', 2 * MOST_VALUES)
            count = sum(part.count(",") + part.count("[") + part.count("{") for part in parts[::2])
            if count > MOST_VALUES or len(parts) > 2 * MOST_VALUES:
                raise BadPacket(f"it has more than {MOST_VALUES} values")
        return engine_json.loads(text)


class _Packet(engine.Packet):  # type: ignore[misc]  # the library has no types
    json = BoundedJson


class Codec(Protocol):
    """Encodes and decodes the packets of one version of Engine.IO."""

    @property
    def version(self) -> int:
        """The `EIO` in the query of requests."""

    @property
    def client_pings(self) -> bool:
        """Whether the client sends the pings; else the server does."""

    def encode_packet(self, packet: EnginePacket) -> str | bytes:
        """One WebSocket message: text, or bytes for a binary MESSAGE."""

    def decode_packet(self, encoded: str | bytes) -> EnginePacket:
        """The packet in one WebSocket message. Raises BadPacket."""

    def encode_payload(self, packets: Sequence[EnginePacket]) -> bytes:
        """Packets as the body of a polling request or response, which is UTF-8 text."""

    def decode_payload(self, body: bytes, max_packets: int) -> list[EnginePacket]:
        """The packets in the body of a polling request or response. Raises BadPacket."""


def encoded_size(packet: EnginePacket, *, polling: bool) -> int:
    """An upper bound for the bytes of a packet on the wire.

    Our JSON is ASCII, so that each character is one byte.
    """
    if isinstance(packet.data, dict):
        return 1024
    length = len(packet.data)
    if polling and isinstance(packet.data, bytes):
        length = length * 4 // 3 + 4
    return _ENVELOPE + length


# -- version 4 ------------------------------------------------------------------------------


class Version4:
    """Engine.IO 4, of Socket.IO 3 and 4: packets in a body are separated by one character."""

    version: ClassVar[int] = 4
    client_pings: ClassVar[bool] = False

    def encode_packet(self, packet: EnginePacket) -> str | bytes:
        encoded: str | bytes = _Packet(*packet).encode()
        return encoded

    def decode_packet(self, encoded: str | bytes) -> EnginePacket:
        try:
            return _checked(_Packet(encoded_packet=encoded))
        except _UNREADABLE:
            raise BadPacket("it is no Engine.IO packet") from None

    def encode_payload(self, packets: Sequence[EnginePacket]) -> bytes:
        payload: str = Payload([_Packet(*packet) for packet in packets]).encode()
        return payload.encode("utf-8")

    def decode_payload(self, body: bytes, max_packets: int) -> list[EnginePacket]:
        if body.count(b"\x1e") >= max_packets:
            raise _too_many(max_packets)
        if body.startswith(b"d="):
            raise BadPacket("it is JSONP, which Engine.IO 4 does not have")
        if _LENGTH_FIRST.match(body):
            raise BadPacket("it is a payload of Engine.IO 3, as Socket.IO 2 sends it")
        try:
            pieces = body.decode("utf-8").split("\x1e") if body else []
            return [_checked(_Packet(encoded_packet=piece)) for piece in pieces]
        except _UNREADABLE:
            raise BadPacket("it is no Engine.IO payload") from None


_LENGTH_FIRST = re.compile(rb"[0-9]{1,9}:0\{|\x00[\x00-\x09]{1,9}\xff0\{")


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


# -- version 3 ------------------------------------------------------------------------------

_MOST_DIGITS = 9  # of a length: no body is that large
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")


class Version3:
    """Engine.IO 3, of Socket.IO 2: each packet in a body has its length before it.

    It reads both kinds of body: all text, or with raw binary packets. It writes text, with binary
    packets in base64, which every peer can read.
    """

    version: ClassVar[int] = 3
    client_pings: ClassVar[bool] = True

    def __init__(self, *, text_only: bool = False) -> None:
        self._text_only = text_only
        """Whether the peer asked for base64 in WebSocket messages too (`b64=1`)."""

    def encode_packet(self, packet: EnginePacket) -> str | bytes:
        if isinstance(packet.data, bytes) and not self._text_only:
            return bytes([packet.kind]) + packet.data
        return _text_of(packet)

    def decode_packet(self, encoded: str | bytes) -> EnginePacket:
        try:
            if isinstance(encoded, str):
                return _read_text(encoded)
            kind, data = encoded[0], encoded[1:]
        except _UNREADABLE:
            raise BadPacket("it is no Engine.IO packet") from None
        if kind != MESSAGE:
            raise BadPacket("a binary packet is not a message")
        return EnginePacket(MESSAGE, data)

    def encode_payload(self, packets: Sequence[EnginePacket]) -> bytes:
        texts = [_text_of(packet) for packet in packets]
        return "".join(f"{_units_in(text)}:{text}" for text in texts).encode("utf-8")

    def decode_payload(self, body: bytes, max_packets: int) -> list[EnginePacket]:
        try:
            is_binary = body[:1] in (b"\x00", b"\x01")
            packets: list[EnginePacket] = []
            for piece in _cut_binary(body) if is_binary else _cut_text(body):
                if len(packets) >= max_packets:
                    raise _too_many(max_packets)
                packets.append(self.decode_packet(piece))
        except _UNREADABLE:
            raise BadPacket("it is no payload of Engine.IO 3") from None
        if not packets:
            raise BadPacket("a payload is empty")
        return packets


def _text_of(packet: EnginePacket) -> str:
    kind, data = packet
    if isinstance(data, bytes):
        return f"b{kind}{base64.b64encode(data).decode('ascii')}"
    return f"{kind}{json.dumps(data) if isinstance(data, dict) else data}"


def _read_text(text: str) -> EnginePacket:
    """Read a packet in text form. Raises one of _UNREADABLE, or BadPacket."""
    if text[0] == "b":
        if text[1] != str(MESSAGE):
            raise BadPacket("a binary packet is not a message")
        return EnginePacket(MESSAGE, base64.b64decode(text[2:], validate=True))
    kind = "0123456".index(text[0])
    if kind != OPEN:
        return EnginePacket(kind, text[1:])
    handshake = BoundedJson.loads(text[1:])
    if not isinstance(handshake, dict):
        raise BadPacket("its handshake is not a JSON object")
    return EnginePacket(kind, handshake)


def _units_in(text: str) -> int:
    """The length of a text as JavaScript counts it, in UTF-16 code units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def _cut_text(body: bytes) -> Iterator[str]:
    """The packets of a text body: `LENGTH:PACKET` each, the length in UTF-16 code units.

    Raises ValueError. The work is linear in the body's size, however many packets there are.
    """
    text = body.decode("utf-8")
    is_wide = _ASTRAL.search(text) is not None
    if is_wide:  # then one character of ours can be two of JavaScript's
        text = _ASTRAL.sub(_as_pair, text)
    at = 0
    while at < len(text):
        colon = text.index(":", at, at + _MOST_DIGITS + 1)
        size = _number(text[at:colon])
        at = colon + 1 + size
        if at > len(text):
            raise ValueError("a packet is longer than the payload")
        piece = text[colon + 1 : at]
        if is_wide:
            piece = piece.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        if piece:  # engine.io sends one empty packet when it has none
            yield piece


def _as_pair(match: re.Match[str]) -> str:
    high, low = divmod(ord(match[0]) - 0x10000, 0x400)
    return chr(0xD800 + high) + chr(0xDC00 + low)


def _number(digits: str) -> int:
    if not digits.isascii() or not digits.isdecimal():
        raise ValueError("a length is no number")
    return int(digits)


def _cut_binary(body: bytes) -> Iterator[str | bytes]:
    """The packets of a binary body: for each a byte 0 (text) or 1 (binary), the digits of its
    length as bytes, the byte 255, and the packet. Raises ValueError.
    """
    at = 0
    while at < len(body):
        is_binary = body[at]
        end = body.index(b"\xff", at + 1, at + 2 + _MOST_DIGITS)
        digits = body[at + 1 : end]
        if is_binary > 1 or not digits or max(digits) > 9:
            raise ValueError("a packet has no length")
        size = int("".join(map(str, digits)))
        at = end + 1 + size
        if at > len(body):
            raise ValueError("a packet is longer than the payload")
        piece = body[end + 1 : at]
        yield piece if is_binary else piece.decode("utf-8")


def _too_many(most: int) -> BadPacket:
    return BadPacket(f"there are more than {most} packets in one payload")
