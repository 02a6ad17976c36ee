"""Watches what one engine puts on the wire and holds it to the rules that satisfy every known peer.

The rules are those of the strictest receivers together: an engine that keeps them works with
hashicorp/yamux, go-yamux, rust-yamux, js and smoldot alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from support.wire import ACK, DATA, FIN, GO_AWAY, INITIAL_WINDOW, PING, RST, SYN, Frame

MAX_FRAME = 65_536


@dataclass
class _Seen:
    """One stream as the wire shows it, from the watched side."""

    inbound: bool
    credit: int = INITIAL_WINDOW
    sent_syn: bool = False
    sent_ack: bool = False
    sent_fin: bool = False
    sent_rst: bool = False
    peer_fin: bool = False
    peer_rst: bool = False
    granted: int = INITIAL_WINDOW
    received: int = 0
    sent: int = 0

    @property
    def over(self) -> bool:
        """Whether the id may be used for another stream."""
        return self.sent_rst or self.peer_rst or (self.sent_fin and self.peer_fin)


@dataclass
class Referee:
    """Feed it every frame of both directions, in the order the watched engine had them."""

    is_client: bool
    streams: dict[int, _Seen] = field(default_factory=dict)
    pings_received: list[int] = field(default_factory=list)
    pings_out: int = 0
    gone: bool = False
    announced: set[int] = field(default_factory=set)

    def header_received(self, frame: Frame) -> None:
        """The engine has the header of *frame*, whose body is still coming.

        It may accept or refuse a stream on the strength of that."""
        seen = self.streams.get(frame.stream_id)
        known = frame.stream_id in self.announced
        if frame.type == DATA and frame.flags & SYN and not known and (seen is None or seen.over):
            self.streams[frame.stream_id] = _Seen(inbound=True)
            self.announced.add(frame.stream_id)

    def received(self, frame: Frame) -> None:
        """The watched engine was given *frame*. Rubbish is allowed here."""
        if frame.type == PING:
            if frame.flags & SYN:
                self.pings_received.append(frame.length)
            elif frame.flags & ACK:
                self.pings_out = 0
            return
        if frame.type == GO_AWAY or frame.stream_id == 0:
            return
        seen = self.streams.get(frame.stream_id)
        if frame.flags & SYN and frame.stream_id in self.announced:
            self.announced.discard(frame.stream_id)
        elif frame.flags & SYN and (seen is None or seen.over):
            seen = self.streams[frame.stream_id] = _Seen(inbound=True)
        if seen is None:
            return
        if frame.type == DATA:
            seen.received += frame.length
        elif not frame.flags & RST:
            seen.credit += frame.length
        seen.peer_fin |= bool(frame.flags & FIN)
        seen.peer_rst |= bool(frame.flags & RST)

    def sent(self, frame: Frame) -> None:
        """The watched engine emitted *frame*: it must be one every peer accepts."""
        assert frame.type <= GO_AWAY and frame.flags <= 0xF, f"undefined bits in {frame}"
        if frame.type == PING:
            self._sent_ping(frame)
        elif frame.type == GO_AWAY:
            assert frame.stream_id == 0 and frame.flags == 0 and frame.length <= 2, f"{frame}"
            assert not self.gone, "a second GoAway"
            self.gone = True
        else:
            self._sent_on_stream(frame)

    def _sent_ping(self, frame: Frame) -> None:
        assert frame.stream_id == 0 and frame.flags in (SYN, ACK), f"{frame}"
        if frame.flags == SYN:
            self.pings_out += 1
            assert self.pings_out == 1, "a second ping while one is unanswered"
        else:
            assert frame.length in self.pings_received, f"an answer nobody asked for: {frame}"
            self.pings_received.remove(frame.length)

    def _sent_on_stream(self, frame: Frame) -> None:
        stream_id = frame.stream_id
        assert stream_id != 0, f"{frame}"
        ours = stream_id % 2 == (1 if self.is_client else 0)
        seen = self.streams.get(stream_id)
        if frame.flags & RST:
            assert frame.type != DATA and frame.flags == RST, f"a reset with more to it: {frame}"
            assert seen is not None and not seen.sent_rst, f"reset of nothing: {frame}"
            seen.sent_rst = True
            return
        if frame.flags & SYN:
            assert ours and not frame.flags & ACK, f"{frame}"
            assert seen is None or not seen.sent_syn, f"SYN twice: {frame}"
            seen = self.streams[stream_id] = _Seen(inbound=False, sent_syn=True)
        assert seen is not None, f"first frame without SYN: {frame}"
        assert not seen.sent_rst, f"after our reset: {frame}"
        assert not seen.peer_rst, f"after the peer's reset: {frame}"
        if seen.inbound:
            assert bool(frame.flags & ACK) != seen.sent_ack, f"ACK belongs on the first: {frame}"
            seen.sent_ack = True
        else:
            assert not frame.flags & ACK, f"ACK on our own stream: {frame}"
        if frame.type == DATA:
            assert not seen.sent_fin, f"data after our FIN: {frame}"
            assert frame.length <= MAX_FRAME, f"{frame}"
            assert frame.length <= seen.credit, f"{frame} with a credit of {seen.credit}"
            seen.credit -= frame.length
            seen.sent += frame.length
        else:
            assert not (frame.length and seen.peer_fin), f"update after the peer's FIN: {frame}"
            assert frame.length or frame.flags, f"an update that says nothing: {frame}"
            seen.granted += frame.length
            outstanding = seen.granted - seen.received
            assert outstanding <= 16 * 1024 * 1024, f"{outstanding} bytes of credit outstanding"
        if frame.flags & FIN:
            # go-yamux may take a FIN on data for the end before its reader had the data, and
            # py-libp2p overlooks one that comes with an ACK.
            assert frame.type != DATA and not frame.flags & ACK, f"FIN needs its own frame: {frame}"
            assert not seen.sent_fin, f"FIN twice: {frame}"
            seen.sent_fin = True
