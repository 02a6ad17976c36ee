"""The numbers that bound a session and what comes in from outside, each with its reason.

Every field is a key of the `[limits]` table in proxy.toml and agent.toml.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INITIAL_WINDOW", "IngressLimits", "InternalLimits", "Limits"]

INITIAL_WINDOW = 262_144
"""Bytes each side may send on a new stream before any window update (yamux spec.md, "Window
Update"). Fixed by the protocol: a receiver cannot start lower, so it is no setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one yamux session may hold, and how long it waits. Sizes in bytes, times in seconds."""

    max_streams: int = 1024
    """Live streams per session, both directions together. The protocol grants every stream
    256 KiB unasked, so this times 256 KiB is the worst case of unread bytes one peer can make us
    hold. A peer's stream over the limit is reset; our own open fails with TooManyStreams."""

    accept_backlog: int = 256
    """Streams the peer opened and nobody accepted yet; one more is reset. hashicorp/yamux's
    AcceptBacklog, and what its openers expect."""

    max_unacked_opens: int = 256
    """Our opens the peer has not answered; one more waits. Equal to the backlog of every known
    peer, so that a burst of opens is never reset."""

    max_stream_window: int = 16_777_216
    """How far the receive window of a busy stream may grow: 16 MiB fill 1 Gbit/s at 130 ms of round
    trip. 262,144 switches growing off, and with it the pings that measure the round trip."""

    session_window_budget: int = 67_108_864
    """Bytes all windows of a session may have grown by together: four streams at their most. A
    device gets no more of the proxy's memory than this and 256 KiB for each of its streams."""

    process_window_budget: int = 268_435_456
    """The same for all sessions of a process together. Windows stop growing when it is spent;
    nothing fails."""

    window_idle: float = 10.0
    """A grown window that was not used for this long shrinks to 256 KiB again, by withholding
    credit: what was given cannot be taken back."""

    stream_send_buffer: int = 262_144
    """Bytes one stream may have queued for the wire; then its sender waits. One initial window:
    more could not leave before the peer answers anyway."""

    session_send_buffer: int = 4_194_304
    """Bytes all streams of a session may have queued together; then senders wait. Bounds what a
    slow network can pin per device: 16 streams with full buffers. One frame (max_frame_payload) of
    each stream does not count, so that slow readers of some streams never stop the others."""

    max_frame_payload: int = 16_384
    """Largest Data body we send. Small enough that a window update or a ping never waits long
    behind it, large enough that headers cost 0.07 %; every peer accepts it. At most 65,536."""

    flush_size: int = 65_536
    """Most bytes handed to the transport at once, and so the largest WebSocket message we send.
    Under every known peer's message limit."""

    pending_pongs: int = 32
    """Ping answers waiting for the transport; an older one is dropped for a newer. A flood of
    pings is thereby a flood of dropped answers, not of memory."""

    pending_resets: int = 1024
    """Resets for refused streams waiting for the transport; one more ends the session, because a
    peer that opens streams without reading our answers is attacking."""

    max_pings_per_second: int = 65_536
    """Ping requests from the peer in any one second; one more ends the session."""

    max_stray_frames: int = 65_536
    """Frames in a row for streams that do not exist; one more ends the session. Frames in flight
    after a reset are normal; this many without one good frame between them are not."""

    ack_delay: float = 10.0
    """A stream nobody accepted is acknowledged after this long all the same: hashicorp/yamux kills
    the whole session of an open that is not acknowledged within 75 s."""

    linger: float = 300.0
    """How long a stream closed by us waits for the peer's FIN before it is reset and forgotten.
    hashicorp/yamux's StreamCloseTimeout."""

    keepalive_interval: float = 10.0
    """Silence from the peer after which it is pinged."""

    keepalive_timeout: float = 8.0
    """Further silence after which the session is over. With keepalive_interval: a dead peer is
    noticed within 18 s, under the 20 s that the documentation promises."""

    close_grace: float = 5.0
    """How long closing a session may spend on flushing what was accepted for sending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressLimits:
    """What visitors, handshakes and targets are held to. Sizes in bytes, times in seconds."""

    max_head_bytes: int = 65_536
    """One HTTP head, request or response. Room for the largest cookies that browsers send (about
    4 KiB each, a dozen of them), and little enough that 10,000 visitors cannot pin gigabytes."""

    head_timeout: float = 10.0
    """From the first byte of a request head to its last; then 408. A head comes in one packet or
    a few, so this hurts only those who send one byte at a time to hold a connection."""

    idle_timeout: float = 75.0
    """How long a kept-alive connection may wait for its next request before it is closed. Above
    the 60 s that load balancers commonly reuse connections for, so that they close first."""

    connect_timeout: float = 10.0
    """The agent's wait for a target to take a connection; then 504. Targets are local or one hop
    away: three lost SYNs (1, 2 and 4 s apart) still fit in."""

    response_timeout: float = 60.0
    """From the end of a request to the first byte of its response head; then 504. Each 1xx
    response starts it anew. Longer work belongs behind a 1xx, a stream or a poll."""

    max_visitors: int = 10_000
    """Connections at once per ingress listener; one more gets 503. About the memory of a small
    server at 100 KiB each, and under the file descriptors a service usually gets."""

    handshake_timeout: float = 10.0
    """From accepting an agent's connection to the end of its WebSocket handshake, TLS included.
    Ten round trips over the slowest mobile network."""

    max_handshakes: int = 256
    """Tunnel handshakes in flight; one more waits in the kernel's queue. After a restart a whole
    fleet dials at once, and unauthenticated peers must not hold memory for all of it."""

    reconnect_wait: float = 5.0
    """A visitor whose device was lost less than this ago waits until then for its return. An
    agent that was restarted is back within 2 s; longer waits look like a hang. 0 turns it off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalLimits:
    """What callers of the proxy's internal API are held to. Sizes in bytes, times in seconds."""

    max_forward_body: int = 16_777_216
    """Body of a request to forward/http, and of its response, before base64; more gets 413. Each
    is held whole in memory, so larger ones belong on forward/raw, which streams."""

    forward_timeout: float = 60.0
    """A forward/http call from its head to its answer, and the most that its `timeout_ms` may ask
    for; then 504. As long as response_timeout, so that a caller waits no longer than a visitor."""

    max_forwards_per_session: int = 128
    """forward/http, forward/raw and forward/ws calls at once for one session; one more gets 503.
    An eighth of max_streams: a back end that forgets to close leaves visitors their streams."""

    max_callers: int = 1024
    """Connections at once to the internal API; one more gets 503. A back end needs one for each
    call in flight, and the proxy needs descriptors for its agents and visitors as well."""

    event_history: int = 1024
    """Session events kept for replay, about 400 bytes each. Covers a back end that restarts while
    a whole fleet of some hundred devices reconnects twice. A reload does not change it."""

    event_heartbeat: float = 15.0
    """Silence on /internal/events after which a comment is sent. Below the 30 s after which common
    middleboxes forget a connection, and how a reader that is gone is noticed."""

    session_expiry: float = 90.0
    """Silence after which a session is closed by the clean-up that runs every 30 s: a second net
    below the keepalive, five times as wide. Must be above keepalive_interval and
    keepalive_timeout together."""
