"""The numbers that bound a session and what comes in from outside, each with its reason.

Every field is a key of the `[limits]` table in proxy.toml and agent.toml.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "INITIAL_WINDOW",
    "AccessLimits",
    "AuditLimits",
    "ExecLimits",
    "IngressLimits",
    "InternalLimits",
    "Limits",
    "ShellLimits",
    "SocketIOLimits",
    "most_of_one_tenant",
]

INITIAL_WINDOW = 262_144
"""Bytes each side may send on a new stream before any window update (yamux spec.md, "Window
Update"). Fixed by the protocol: a receiver cannot start lower, so it is no setting."""


def most_of_one_tenant(places: int) -> int:
    """How many of the places that all tenants share one tenant may take: three quarters. The
    default tenant may take all, because most installations have no other."""
    return max(1, places - places // 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one yamux session may hold, and how long it waits. Sizes in bytes, times in seconds."""

    max_streams: int = 1024
    """Live streams per session, both directions together. A peer's stream over the limit is reset;
    our own open fails with TooManyStreams."""

    accept_backlog: int = 256
    """Streams that the peer opened and that were not accepted yet; one more is reset.
    hashicorp/yamux's AcceptBacklog, and what its openers expect."""

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

    max_unread_bytes: int = 67_108_864
    """Bytes of a session that may wait for their readers, beside what its windows have grown by.
    The protocol grants 256 KiB to each stream unasked, which would be 256 MiB. With more, the
    stream whose reader has been still for longest is reset, of those with over 32 KiB. It takes
    256 readers at once that have stopped."""

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
    """A stream that was not accepted is acknowledged after this long all the same: hashicorp/yamux
    kills the whole session of an open that is not acknowledged within 75 s."""

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
    """Limits for visitors, handshakes and targets. Sizes in bytes, times in seconds."""

    max_head_bytes: int = 65_536
    """One HTTP head, request or response; and the interim heads (1xx) of one answer within a minute
    together. Room for the largest cookies that browsers send (about 4 KiB each, a dozen of them),
    and little enough that 10,000 visitors cannot pin gigabytes."""

    max_head_fields: int = 256
    """Fields of one HTTP head, and of one trailer section; a request with more gets 431, an answer
    502. Browsers send about 20, the busiest sites some 60; each costs its reader 10 µs in h11, so
    that a head full of them would delay all other requests by a tenth of a second.
    """

    max_unfinished_heads: int = 4_194_304
    """Bytes of request heads that an agent holds for one session because their ends are not there
    yet, beside the first 4 KiB of each; a head that would make it more gets 503. A proxy sends each
    head at once, so that few are ever unfinished; one that is hostile takes no memory by them."""

    max_interim_heads: int = 16
    """Interim heads (1xx) of one answer within a minute; with one more it is a 502. Early hints are
    a few, a sign of life (102) comes every 10 s or so, for as long as it takes; each costs its
    reader as much as a small answer, and a target could send them for ever."""

    head_timeout: float = 10.0
    """From the first byte of a request head to its last; then 408. A head comes in one packet or
    a few, so this ends only a client that sends one byte at a time to hold a connection."""

    idle_timeout: float = 75.0
    """How long a kept-alive connection may wait for its next request before it is closed. Above
    the 60 s that load balancers commonly reuse connections for, so that they close first."""

    connect_timeout: float = 10.0
    """The agent's wait for a target to take a connection; then 504. Targets are local or one hop
    away: three lost SYNs (1, 2 and 4 s apart) still fit in."""

    response_timeout: float = 60.0
    """From the end of a request to the first byte of its response head; then 504. Each 1xx
    response starts it again. Longer work needs a 1xx, a stream or polling."""

    max_idle_targets: int = 32
    """Idle connections to the target of one service that the pump keeps for the next visitor. As
    many as browsers of some visitors open at once; each is a stream and a socket of the device. 0
    keeps none.
    """

    target_idle_time: float = 4.0
    """How long one of them is kept. Below the 5 s after which Node.js and Apache end an idle
    connection, so that a request seldom meets a target that is just closing."""

    max_visitors: int = 10_000
    """Connections at once per ingress listener; one more takes the place of an idle one, of the
    address that has most of those, or gets 503, on a TCP port a reset. All TCP ports together have
    a quarter of the files that the process may open. About the memory of a small server at 100 KiB
    each, and under the file descriptors a service usually gets."""

    max_visitors_per_address: int = 5000
    """Of those, how many one address (of IPv6, one /64) may have, and on all TCP ports together;
    one more takes the place of an idle one, or gets 503, on a TCP port a reset. Half of them: no
    single address keeps the others out, and a large office behind one is let in. trusted_proxies
    are exempt on HTTP listeners."""

    handshake_timeout: float = 10.0
    """From accepting an agent's connection to the end of its WebSocket handshake, TLS included.
    Ten round trips over the slowest mobile network."""

    max_handshakes: int = 256
    """Tunnel handshakes in flight. One more takes the place of one that has been silent for half of
    first_byte_timeout; the first of an address, that of one whose address has most; else it waits.
    After a restart a whole fleet dials at once, and unauthenticated peers must not hold memory for
    all of it."""

    max_waiting_handshakes: int = 4096
    """Agents that wait for one of those places, unread; addresses take turns, and one has half of
    them at most. Each waits for two thirds of handshake_timeout, so that a third is left for its
    handshake; then, or if there are more, it is reset and comes again. Some thousand agents of a
    node that was lost are taken one after another; each costs a KiB and its socket meanwhile. 0:
    none waits."""

    max_arrivals_per_address: int = 128
    """Connections of one address (of IPv6, one /64) that have not finished their handshake or the
    head of their first request; one more takes the place of the oldest of them that is silent, of
    visitors one that has been for a second, or is reset. Half of max_handshakes: no single address
    keeps the others out, and a site of some hundred devices behind one address is in again within
    seconds. trusted_proxies are exempt."""

    first_byte_timeout: float = 5.0
    """From accepting a connection to its first byte, which agents and browsers send at once. Two
    lost packets (1 and 2 s) still fit in; a peer that connects and stays silent is soon dropped."""

    max_streams_per_visitor: int = 512
    """Requests and connections in progress to one device at once for visitors of one address (of
    IPv6, one /64); one more gets 503, on a TCP port a reset. Half of max_streams: an office, or a
    server that keeps a pool, has hundreds, and no single address has them all. Behind
    trusted_proxies it is the address that they name; without one there is no limit."""

    max_streams_per_port: int = 640
    """Connections to one device at once by one TCP port, from all addresses; one more is reset. Two
    thirds of the streams that visitors may have: a port that a crowd from many addresses floods
    leaves the device's other services a third. For all of them, set it to max_streams."""

    max_hop_streams: int = 16_384
    """Streams between two nodes of a cluster at once, in one direction: visitors at one of them of
    all devices on the other. One more is refused. Each costs some hundred bytes at rest."""

    max_hops_per_node: int = 256
    """Connections that one other node may have to this one; one more is refused. Each of its
    workers has one, twice as many while it is upgraded. Each may have max_hop_streams.
    """

    max_device_sessions: int = 4
    """Sessions of one device on as many nodes of a cluster; one more closes the oldest. An agent
    keeps two, and may be moving both. Each costs memory on its node, and look-ups read them all.
    With 1, agents are told of no other nodes."""

    reserved_streams: int = 64
    """Streams of each device that visitors leave free, but no more than an eighth of max_streams:
    with all others taken, the back end, commands and the agent's own API still get through."""

    max_measurements: int = 4
    """Agents that measure their way at once (`tunnelmux doctor --agent`), each device once; one
    more gets 503. Each may take as much of the line as it can for some seconds."""

    measurement_bytes: int = 4_194_304
    """Each way, of one measurement: 4 MiB show what a line of 100 Mbit/s does within half a second,
    and are little on one that is paid for by volume."""

    measurement_time: float = 2.0
    """Each way, of one measurement. TCP is at its full rate by then over any way on Earth."""

    body_stall: float = 60.0
    """How long the body of a request may move no byte; then 408, and its stream is free. What
    common reverse proxies allow between two reads; an upload that lives is never that quiet."""

    reconnect_wait: float = 5.0
    """A visitor whose device was lost less than this ago waits until then for its return. An
    agent that was restarted is back within 2 s; longer waits look like a hang. 0 turns it off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLimits:
    """What signing in and checking proofs may cost. Times in seconds."""

    access_max_passes: int = 16_384
    """Verdicts on proofs (cookies, tokens, passwords) that are cached; with one more the cache is
    emptied, and proofs are checked again. A kilobyte each; as many visitors at once as a proxy has
    connections for, and some more.
    """

    access_max_grants: int = 65_536
    """Sessions of people, and links, that the proxy keeps; with one more, those not in use are
    dropped; where all are in use, the new one gets 503. Under a kilobyte each: a person has a few,
    and they last for days.
    """

    access_max_guesses: int = 20
    """Wrong passwords of one address (of IPv6, one /64) in a minute; more get 429, right ones too
    unless they were right before. People who mistype need a few; at this rate a word list of a
    million takes a month. A /56 has 4 times as many, a /48 16 times, a provider (/16, of IPv6 /32)
    256 times."""

    access_max_guessers: int = 4096
    """Addresses whose wrong passwords are counted; the one counted first makes room. 200 bytes
    each, and as many as could be checked in two minutes."""

    access_max_checks: int = 2
    """Passwords checked at once, each with 16 MiB and 40 ms of a processor: scrypt is meant to be
    slow, and visitors who are signed in must not wait for it."""

    access_max_waiting_checks: int = 64
    """Requests that wait for such a check; one more gets 429. With two at once, 1.3 s of work:
    no visitor waits longer for an answer. Those for devices of one tenant take three quarters of
    them, those from one address (of IPv6, one /64) one quarter."""

    access_max_sign_ins: int = 60
    """Tickets and links accepted in a minute for one session or link; more get 429. Each is a write
    to the registry, which keeps it until it expires. A person who opens all services of some dozen
    devices at once stays under it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalLimits:
    """Limits for callers of the proxy's internal API. Sizes in bytes, times in seconds."""

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
    """Connections at once to the internal API; one more takes the place of one that is not
    authenticated yet, or gets 503. A back end needs one for each call in flight, and the proxy
    needs descriptors for its agents and visitors as well.
    """

    event_history: int = 1024
    """Session events kept for replay, about 400 bytes each. Covers a back end that restarts while
    a whole fleet of some hundred devices reconnects twice. A reload does not change it."""

    event_heartbeat: float = 15.0
    """Silence on /internal/events after which a comment is sent. Below the 30 s after which common
    middleboxes forget a connection. It also shows that a reader is gone."""

    max_feed_readers: int = 64
    """Callers of /internal/requests at once; one more gets 503. Each reads a line for each request:
    meant for a few people who watch, not as a second log. Those of devices of one tenant take
    three quarters at most.
    """

    feed_backlog: int = 1000
    """Requests that wait for one of them; with more, the oldest are dropped, and the caller is told
    how many. About 500 bytes each, so that 64 readers who do not read hold 32 MiB."""

    max_inspections: int = 8
    """Services that may be inspected at once; one more gets 409. Their requests leave the pump, and
    a person looks at one or two."""

    max_inspection_time: float = 3600.0
    """The longest that an inspection may last; more gets 400. A person switches it on to look at
    requests, and it should not stay on over night when it is forgotten.
    """

    inspection_requests: int = 200
    """Requests that one inspection keeps; the oldest make room. Some screens of a list."""

    inspection_memory: int = 16_777_216
    """Bytes that all inspections keep together, heads and bodies; the oldest requests make room.
    128 requests with two bodies of 64 KiB."""

    session_expiry: float = 90.0
    """Silence after which a session is closed by the clean-up that runs every 30 s: a second net
    below the keepalive, five times as wide. Must be above keepalive_interval and
    keepalive_timeout together."""

    max_exec_request: int = 1_048_576
    """Body of a call to /internal/exec: the command, its credentials and its stdin in base64; more
    gets 413. Scripts fit in; larger input belongs into a file on the device."""

    max_exec_devices: int = 1024
    """Devices that one call to /internal/exec may come to; more gets 400. A larger fleet takes
    several calls, so that one mistake cannot reach all of it.
    """

    max_exec_timeout: float = 3600.0
    """The most that the `timeout` of a command may ask for; more gets 400. What runs longer than an
    hour should not depend on one connection."""

    exec_concurrency: int = 32
    """Commands at once of one call to /internal/exec, and the most its `concurrency` may ask for:
    a hundred devices are through in seconds, and one operator does not take all of max_commands."""

    max_commands: int = 256
    """Commands at once of all calls together; one more waits for one of them to end, which each
    does within its timeout. With a window of 256 KiB each, at most 64 MiB are under way."""

    max_exec_answer: int = 16_777_216
    """The results of one call together, as JSON, where they are one document; output that is over
    is thrown away, and the result says so. The stream of events keeps nothing."""

    exec_stall: float = 60.0
    """How long a caller of /internal/exec may take nothing of its answer; then it is cut, and its
    commands end. Its devices' output waits meanwhile, and holds their streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecLimits:
    """Limits for commands over SSH on a device. Sizes in bytes, times in seconds."""

    max_concurrent: int = 64
    """Commands at once; one more is refused as busy, as are requests while so many others are still
    on their way in. Each costs a channel and at most 512 KiB of output that was not read yet: 32
    MiB together."""

    max_output: int = 8_388_608
    """Output kept of each command, of stdout and stderr each; the rest is read, counted and thrown
    away, and the result says so. A log or a dump fits in; a runaway command fills no memory."""

    max_request: int = 1_048_576
    """The JSON of one command, with its stdin in base64; more gets 413. It is held whole."""

    max_timeout: float = 3600.0
    """The longest `timeout` of a command; more is refused. The caller has given up by then, and a
    command that hangs would keep its place for ever.
    """

    login_timeout: float = 15.0
    """From dialling an SSH server to being logged in. Three lost SYNs (1, 2 and 4 s apart) and a
    server that looks its clients up in a slow DNS still fit in."""

    probe_timeout: float = 5.0
    """How long an idle connection may take to open a channel before it counts as dead and a new
    one is made. Nothing was asked for by then, so that nothing runs twice."""

    max_connections: int = 64
    """SSH connections at once, idle ones included; the one idle for longest makes room. About
    100 KiB and one file descriptor each."""

    connections_per_login: int = 4
    """Connections to one server with the same user and credential. With sessions_per_connection:
    32 commands at once on one server, and under the 10 unauthenticated connections from which on
    OpenSSH drops new ones (MaxStartups)."""

    sessions_per_connection: int = 8
    """Commands at once on one connection. OpenSSH allows 10 (MaxSessions); the rest is for ending
    those that take too long."""

    idle_connection: float = 60.0
    """How long an unused connection is kept. Logging in costs some 100 ms on both ends, an idle
    connection a process on the server."""

    ssh_keepalive: float = 15.0
    """Silence on a connection after which its server is asked for a sign of life; after three
    without an answer it is closed. A dead server is noticed within a minute."""

    kill_grace: float = 2.0
    """How long a command whose time is over may take to end after SIGTERM before SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellLimits:
    """Limits for the agent's own shell. Keys of `[shell]`. Times in seconds."""

    max_connections: int = 16
    """SSH connections at once, those that have not logged in yet included; one more is refused.
    Each costs some 100 KiB. The gateway makes one for each person and device."""

    max_sessions: int = 8
    """Shells and commands at once; one more is refused. Each is a process or several, on a device
    that may be small."""

    login_timeout: float = 15.0
    """From the connection to being logged in: the gateway does it in a few round trips, and
    sshd's two minutes would let a few silent ones take all places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLimits:
    """How much disk space the audit of commands may use, and how long records are kept. Keys of
    `[audit]`. Sizes in bytes, times in seconds.
    """

    max_bytes: int = 16_777_216
    """How large the file may grow before a new one is begun: about 40,000 commands, and small
    enough to be opened in an editor."""

    keep: int = 8
    """How many old files stay in any case, as `file.1` (the newest) to `file.8`."""

    keep_for: float = 604_800.0
    """An older file over `keep` is removed when its newest record is this old, and not before, so
    that records cannot be washed away by making many. A week: an incident is noticed by then. 0
    turns it off."""

    min_free: int = 268_435_456
    """Free space on the file system under which files over `keep` are removed all the same, oldest
    first, and the log says so. Other programs need the disk as well."""

    max_command: int = 4096
    """How many bytes of a command's text are recorded; its length and its SHA-256 always are. What
    people type fits in, and a record stays a line that can be read."""

    refusals_per_minute: int = 60
    """Records of commands that were not run. More of them in one minute are counted by reason, and
    a line says how many: a caller in a loop is seen with less. Those of one tenant's devices take
    three quarters of them at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLogLimits:
    """What an agent keeps of its log for people elsewhere. A key of its `[log]`."""

    keep_lines: int = 500
    """Lines that are kept in memory, for `tunnelmux logs`: about 150 KB, and some minutes of a
    busy device. With 0 nothing is kept, and nothing is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketIOLimits:
    """Limits for the two ends of a Socket.IO connection. Sizes in bytes, times in seconds.

    Pings, and what a peer may do before it is authenticated, are as for the tunnel:
    keepalive_interval, keepalive_timeout, first_byte_timeout, handshake_timeout,
    max_waiting_handshakes, max_handshakes and max_arrivals_per_address; twice as many of the last
    two for its connections, of which there are two for a client on polling.
    """

    socketio_max_payload: int = 16_777_216
    """One message or one polling body from the other side; more ends the connection. Room for the
    result of a command with the most output that is kept. Before a peer is authenticated,
    max_head_bytes holds instead.
    """

    socketio_max_packets: int = 4096
    """Packets in one polling body; more ends the connection. A client that was held up sends a
    few hundred at once; a body of empty ones would cost a hundred times its size in memory."""

    socketio_send_queue: int = 4_194_304
    """Bytes that may wait for the other side to read them; then senders wait. As
    session_send_buffer: what one slow network can pin."""

    socketio_max_silence: float = 300.0
    """The longest silence a main server may announce (its pingInterval and pingTimeout together).
    socket.io's own is 45 s; with a server that pings once an hour a dead one would go unnoticed."""

    socketio_max_cookies: int = 16
    """Cookies kept for one connection to a main server; the oldest makes room. Load balancers set
    one or two, and 16 of 4096 bytes still fit into the head of a request."""

    socketio_max_queued: int = 256
    """Commands that wait while [exec] max_concurrent run; one more is answered with "busy". A
    whole fleet's worth of one batch job, and at a second each none waits five minutes."""

    socketio_result_memory: int = 67_108_864
    """Bytes of results kept until the main server has acknowledged them, and to answer a command
    that is sent again. Acknowledged ones make room first; without any, commands get "busy"."""

    socketio_remembered: int = 8192
    """Ids of executed commands that are remembered, so that none runs twice. At 20 commands a
    second, those of the last seven minutes: much longer than any reconnect after which one is sent
    again.
    """

    socketio_max_sessions: int = 1024
    """Socket.IO agents at once on the proxy; one more gets 503. As max_callers: each is a
    descriptor or two and a few tasks. Clients that have not joined yet count under max_handshakes.
    """

    socketio_max_commands: int = 128
    """Commands at once for one Socket.IO agent; one more gets "busy". Twelve SSH connections'
    worth of sessions (MaxSessions is 10 in OpenSSH), more than one relay is known to hold."""

    socketio_start_timeout: float = 10.0
    """How long an agent that reports when it starts a command may let it wait; then another agent
    gets it. An agent that is that busy has its own queue full.
    """

    socketio_result_grace: float = 10.0
    """How long after a command's own timeout its result is waited for, and then reported as lost.
    Time for the agent to end the command, and for the answer on a slow line."""
