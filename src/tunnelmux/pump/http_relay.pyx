"""A visitor's HTTP connection in the pump: its requests to targets, and their answers back.

`pump.followers` follows both directions; this module has the sockets. One request is in progress at
a time. Each is routed by its own head, to a leg: a stream to one connection of one target. What the
followers do not accept goes to Python, with every byte that was not passed on.
The docstrings of the public names are in `http_relay.pyi`.

One value, the `Ending`, says how a connection goes on after an exchange. It begins as GOES_ON with
each request and can only be raised. It takes effect when the answer is complete and, for the last
two, written:

| raised to  | by                                                                             |
|------------|--------------------------------------------------------------------------------|
| PARTS      | an answer that says the target closes, or is HTTP/1.0; bytes behind an answer  |
| HANDS_OVER | `finish_soon`, `give_up`, what the followers decline, what must be refused     |
| CLOSES     | a request that says `Connection: close`; a body that ends with its connection; |
|            | an answer before the end of its request; a visitor that has sent its end       |
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from tunnelmux._frame cimport HEADER_BYTES
from tunnelmux.pump.epoll cimport Member, Pump, lane_of
from tunnelmux.pump.followers cimport (
    ANSWER_BROKEN, ANSWER_DONE, ANSWER_HEAD, ANSWER_LENGTH, ANSWER_MISSING, ANSWER_NONE,
    ANSWER_REFUSED, ANSWER_UNTIL_END, GIVES_MADE, GIVES_SAME, HEAD_DECLINED, REQUEST_BROKEN,
    REQUEST_DECLINED, REQUEST_DONE, REQUEST_HEAD, REQUEST_IDLE, REQUEST_READY, SEND_AGAIN, TAKEN,
    AnswerFollower, RequestFollower,
)
from tunnelmux.pump.head cimport RequestShape, drop_login
from tunnelmux.pump.legs cimport Leg, LegUser, Route
from tunnelmux.pump.pump_socket cimport BROKEN, PumpSocket
from tunnelmux.pump.sockets cimport LingeringClose
from tunnelmux.pump.tunnel cimport Tunnel
from tunnelmux.yamux.links cimport append_link, init_link, is_linked, unlink
from tunnelmux.yamux.ring cimport ByteRing
from tunnelmux.yamux.streams cimport EngineStream

from tunnelmux.errors import StreamReset

cdef enum:
    TURN = 65536  # bytes read from a visitor in one turn, and the largest frame made of them
    LONGEST_HEAD = 32768  # bytes of a request's head: with the added lines it must fit into a frame
    RUN = 16384  # bytes of content: a longer run is read straight into the frame, without a copy
    TRAILERS_ROOM = 1024  # bytes by which trailer fields may grow when they are rewritten
    SMALL = 16384  # bytes: up to this much, a copy costs less than another system call

_OUTCOMES = (None, "finished", "local broke", "stream broke", "aborted", "handed back")


@cython.final
cdef class HttpRelay(LegUser):
    # `pending` holds bytes of the visitor that were read and not used. `unsent` holds bytes for the
    # visitor; the leg's peer gets credit for `owed` of them when they are written. `over` says that
    # only writing them is left before the `ending`. A head is kept while it may be sent again: it
    # has no body, its method is safe, and no byte of its answer has come.

    def __cinit__(self, *args, **kwargs):
        self.pending = ByteRing.__new__(ByteRing)
        self.unsent = ByteRing.__new__(ByteRing)
        init_link(&self.wait_link, <void *>self)

    def __init__(self, Pump pump not None, socket, owner, *, carrier, Py_ssize_t max_head_bytes,
                 int max_head_fields, int max_interim_heads, Py_ssize_t drain_bytes,
                 bytes early=b""):
        self.pump = pump
        self.local = socket if isinstance(socket, PumpSocket) else PumpSocket(socket)
        self.fd, self.lane = self.local.fd, lane_of(carrier.source)
        self.owner, self.carrier, self.is_first = owner, carrier, self.local.is_unanswered()
        self.heeds, self.traces = carrier.heeds, carrier.traces
        self.connection_is_shared = carrier.connection_is_shared
        self.drain_bytes, self.phase_since = drain_bytes, pump.now
        self.request = RequestFollower(carrier.judge, max_head_fields=max_head_fields,
                                       max_head_bytes=min(max_head_bytes, LONGEST_HEAD))
        self.answer = AnswerFollower(
            carrier.judge, max_head_bytes=max_head_bytes, max_head_fields=max_head_fields,
            max_interim_heads=max_interim_heads,
        )
        self.pending.push(<const uint8_t *>PyBytes_AS_STRING(early), len(early))

    def __dealloc__(self):
        unlink(&self.wait_link)

    def start(self, Member instead_of=None):
        self.phase_since = max(self.phase_since, self.pump.now)
        self.pump.add(self) if instead_of is None else self.pump.replace(instead_of, self)
        self.want_turn()
        self.pump.wake()

    def finish_soon(self):
        if self.ended_as != RUNNING:
            return
        self.ending = max(self.ending, HANDS_OVER)
        if self.answer.state_ == ANSWER_NONE and self.request.state_ == REQUEST_IDLE:
            self.hand_over(None, 0)
        self.pump.wake()

    def give_up(self, str problem, int status):
        if self.ended_as == RUNNING:
            self.hand_over(None, 0) if problem is None else self.fail_answer(problem, status)
            self.pump.wake()

    def leave(self):
        self.phase_since = max(self.phase_since, self.pump.now)
        self.lingering_close = LingeringClose(
            self.pump, self.local, self.owner, self.drain_bytes, self if self.registered else None
        )

    def abort(self):
        if self.lingering_close is not None:
            self.lingering_close.cancel()
        if self.ended_as == RUNNING:
            self.end(ABORTED)
            self.pump.wake()

    def take_pending(self):
        cdef bytes head = self.request.text(0, self.request.kept.size)
        if self.request.state_ <= REQUEST_READY or self.request.state_ == REQUEST_DECLINED:
            self.request.kept.reset()
            return head + self.pending.read(self.pending.size), b""
        return self.pending.read(self.pending.size), head

    def take_bound(self):
        bound, self.bound = self.bound, None
        return None if bound is None else (bound, self.route.opener)

    @property
    def outcome(self):
        return _OUTCOMES[self.ended_as]

    @property
    def destination(self):
        return self.route.destination if self.route is not None else None

    @property
    def stream_id(self):
        return self.stream_seen

    @property
    def phase(self):
        if self.lingering_close is not None:
            return "left" if self.lingering_close.is_over else "leaving"
        if self.unsent.size or self.answer.state_ >= ANSWER_LENGTH:
            return "answering"
        if self.request.in_body():
            return "sending"
        if self.answer.state_ != ANSWER_NONE:
            return "waiting"
        if self.request.state_ == REQUEST_READY:
            return "agreeing"
        return "idle" if self.request.state_ == REQUEST_IDLE and not self.pending.size else "reading"

    @property
    def unfinished(self):
        if self.answer.state_ == ANSWER_NONE or self.method is None:
            return None
        return (
            self.method.decode("ascii"),
            self.path.decode("ascii"),
            self.answer.status,
            self.bytes_in - self.bytes_in_before,
            self.answer.content,
            self.pump.moment() - self.began,
        )

    @property
    def is_spent(self):
        return self.local_eof and self.pending.size == 0 and self.request.state_ == REQUEST_IDLE

    # -- the pump's calls ---------------------------------------------------------------------------

    cdef int on_event(self, uint32_t events) except -1:
        self.local.on_event(events)
        if self.local.error is not None:
            return self.fail(self.local.error)
        if self.local.can_write and (self.unsent.size or self.local.is_sending()):
            self.write_unsent()
        if self.local.can_read:
            self.want_turn()
        return 0

    cdef int take_turn(self) except -1:
        self.read_local()
        self.is_first = self.is_first and self.local.is_unanswered()

    cdef int fail(self, object error) except -1:
        if self.error is None:
            self.error = error
        return self.end(LOCAL_BROKE if isinstance(error, OSError) else STREAM_BROKE)

    # -- the leg's calls ----------------------------------------------------------------------------

    cdef int on_agreed(self) except -1:
        self.phase_since = self.pump.now
        self.want_turn()
        return 0

    cdef void on_leg_room(self) noexcept:
        self.want_turn()

    cdef int on_bytes(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Follow what the target sends, and pass it on."""
        cdef AnswerFollower answer = self.answer
        cdef Leg leg = self.leg
        cdef Py_ssize_t used = 0, passed = 0, part
        cdef bint in_head = answer.state_ < ANSWER_LENGTH
        while used < size and self.ended_as == RUNNING and not self.over and not answer.is_over():
            part = answer.take(data + used, size - used, self.pump.now)
            if answer.gives == GIVES_SAME:
                used += part
                continue
            self.give_visitor(data + passed, used - passed, True)
            if answer.gives == GIVES_MADE:
                self.give_visitor(<uint8_t *>PyBytes_AS_STRING(answer.made), len(answer.made), False)
            leg.stream.give_back(part)
            used += part
            passed = used
        self.give_visitor(data + passed, used - passed, True)
        if used < size:
            leg.stream.give_back(size - used)
            if answer.is_over():  # the target sent more than the answer
                answer.closes = True
                self.ending = max(self.ending, PARTS)
        if self.ended_as != RUNNING or self.over:
            return 0
        if in_head and (answer.state_ >= ANSWER_LENGTH or answer.kept.size == 0):
            self.phase_since = self.pump.now  # an interim answer starts the wait for the final one anew
        return self.after_answer()

    cdef int on_leg_end(self, bint in_order) except -1:
        """The target's connection has ended."""
        cdef AnswerFollower answer = self.answer
        cdef bint agreed = self.leg.agreed
        self.drop_leg(LEG_CLOSED if in_order else LEG_RESET)
        if self.ended_as != RUNNING or self.over:
            return 0
        if answer.state_ == ANSWER_NONE:
            if agreed:
                self.want_turn()  # the next request gets another leg
                return 0
            self.request.move(HEAD_DECLINED)  # the path by h11 asks again, and gets the reason
            return self.hand_over(None, 0)
        if not in_order and answer.state_ == ANSWER_UNTIL_END:
            return self.fail_answer("the target broke the connection within its answer", 502)
        if answer.state_ == ANSWER_HEAD and answer.kept.size == 0 and self.may_send_again():
            return self.send_again()
        answer.ended_()
        return self.after_answer()

    # -- the visitor's requests ---------------------------------------------------------------------

    cdef int read_local(self) except -1:
        if self.ended_as != RUNNING or self.over:
            return 0
        if self.request.state_ <= REQUEST_HEAD and not self.read_head():
            return 0
        if self.request.state_ == REQUEST_READY:
            return self.send_request()
        if self.request.in_body():
            return self.read_body()
        return 0

    cdef Py_ssize_t pull(self, Py_ssize_t room) except -2:
        """Put the unused bytes and what the socket has into the pump's buffer. Returns how many; -1
        when the socket broke. The caller then calls `put_rest`."""
        cdef Py_ssize_t have = min(self.pending.size, room)
        cdef ssize_t n
        self.pending.copy_front(self.pump.input, have)
        if have < self.pending.size or have == room or not self.local.can_read or self.local_eof:
            return have
        n = self.local.read_into(self.pump.input + have, room - have)
        if n == BROKEN:
            self.fail(self.local.error)
            return -1
        if n == 0:
            self.local_eof = True
        return have + max(n, 0)

    cdef int put_rest(self, Py_ssize_t used, Py_ssize_t size) except -1:
        """Keep all but the first *used* of the *size* bytes that were pulled."""
        cdef Py_ssize_t had = min(self.pending.size, size)
        self.pending.skip(min(used, had))
        used = max(used, had)
        self.pending.push(self.pump.input + used, size - used)
        return 0

    cdef int read_head(self) except -1:
        """Read on in the head of the next request; 1 when it is complete and can be sent."""
        cdef RequestFollower request = self.request
        cdef Py_ssize_t used = 0, size
        if not self.local.can_read and not self.pending.size:
            return 0
        size = self.pull(TURN)
        if size < 0:
            return 0
        if size and request.state_ == REQUEST_IDLE:
            self.phase_since = self.pump.now
        while used < size and request.state_ <= REQUEST_HEAD:
            used += request.take(self.pump.input + used, size - used)
        self.put_rest(used, size)
        if request.state_ == REQUEST_READY:
            return 1
        if request.state_ == REQUEST_DECLINED or self.local_eof:
            self.hand_over(None, 0)  # Python finds the end, and what came before it
        elif self.local.can_read:
            self.want_turn()
        return 0

    cdef int send_request(self) except -1:
        """Send the READY head, with the part of its body that has come, if that is possible now."""
        cdef RequestFollower request = self.request
        cdef Tunnel tunnel
        cdef Py_ssize_t limit, used
        cdef uint8_t *gap
        if self.unsent.size:
            return 0  # the previous answer has to be written first
        if not self.find_leg() or not self.leg.agreed:
            return 0
        self.find_fields()
        if self.carrier.takes_login and not drop_login(&request.shape):
            request.move(HEAD_DECLINED)
            return self.hand_over(None, 0)
        limit = self.frame_limit()
        if limit < request.kept.size + len(self.fields) + TRAILERS_ROOM:
            return 0  # a flush, or credit from the peer, gives the next turn
        self.note_request()
        tunnel = self.leg.tunnel
        gap = tunnel.place()
        used = request.write_head(
            <const uint8_t *>PyBytes_AS_STRING(self.fields), len(self.fields), gap + HEADER_BYTES
        )
        if request.shape.binds:
            self.leg.bound = True
        if request.shape.closes:
            self.ending = max(self.ending, CLOSES)
        self.answer.asked_(self.method, request.shape.closes)
        request.sent(request.may_repeat())
        self.phase_since = self.pump.now
        if request.in_body():
            used += self.take_body(gap + HEADER_BYTES + used, limit - used)
        if self.ended_as != RUNNING:
            return 0
        tunnel.engine.place_frame(self.leg.stream, gap, used)
        tunnel.filled += HEADER_BYTES + used
        tunnel.mark_dirty()
        return self.after_reading()

    cdef int read_body(self) except -1:
        """Send the next part of the body, in one frame; read long runs straight into it."""
        cdef RequestFollower request = self.request
        cdef Tunnel tunnel = self.leg.tunnel
        cdef Py_ssize_t limit, used
        cdef ssize_t n
        cdef uint8_t *gap
        if not self.local.can_read and not self.pending.size:
            return 0
        limit = self.frame_limit()
        if limit < request.kept.size + TRAILERS_ROOM:
            return 0
        gap = tunnel.place()
        if self.pending.size == 0 and request.run_left() >= RUN:
            n = self.local.read_into(gap + HEADER_BYTES, min(limit, request.run_left()))
            used = max(n, 0)
            if n == BROKEN:
                tunnel.mark_dirty()
                return self.fail(self.local.error)
            if n == 0:
                self.local_eof = True
            if used:
                request.skip_run(used)
                self.bytes_in += used
                self.phase_since = self.pump.now
        else:
            used = self.take_body(gap + HEADER_BYTES, limit)
            if self.ended_as != RUNNING:
                return 0
        if used:
            tunnel.engine.place_frame(self.leg.stream, gap, used)
            tunnel.filled += HEADER_BYTES + used
        tunnel.mark_dirty()  # the buffer may have been taken for nothing
        return self.after_reading()

    cdef Py_ssize_t take_body(self, uint8_t *out, Py_ssize_t room) except -1:
        """Write the part of the body that has come to *out*, as it is passed on: how many bytes."""
        cdef RequestFollower request = self.request
        cdef Py_ssize_t size, used = 0, part, written = 0
        room -= request.kept.size + TRAILERS_ROOM
        if room <= 0:
            return 0
        size = self.pull(room)
        if size < 0:
            self.leg.tunnel.mark_dirty()
            return 0
        while used < size and request.in_body():
            part = request.take(self.pump.input + used, size - used)
            if request.gives == GIVES_SAME:
                memcpy(out + written, self.pump.input + used, part)
                written += part
            elif request.gives == GIVES_MADE:
                memcpy(out + written, PyBytes_AS_STRING(request.made), len(request.made))
                written += len(request.made)
            used += part
        self.put_rest(used, size)
        self.bytes_in += written
        if used:
            self.phase_since = self.pump.now
        return written

    cdef int after_reading(self) except -1:
        cdef RequestFollower request = self.request
        if request.state_ == REQUEST_DONE:
            self.phase_since = self.pump.now
        elif request.state_ == REQUEST_BROKEN:
            return self.fail_answer(request.problem, 400)
        elif self.local_eof and self.pending.size == 0:
            return self.fail_answer("the request ended within its body", 400)
        elif self.local.can_read or self.pending.size:
            self.want_turn()
        return 0

    cdef Py_ssize_t frame_limit(self) except -1:
        """How many bytes of payload a frame can have now; 0 when it has to wait: a turn follows."""
        cdef Tunnel tunnel = self.leg.tunnel
        cdef EngineStream stream = self.leg.stream
        cdef Py_ssize_t room = tunnel.engine.frame_room(stream)
        if (room == 0 and stream.sendable()) or (room and tunnel.space() < TURN):
            if not is_linked(&self.wait_link):
                append_link(&tunnel.waiting, &self.wait_link)
            tunnel.mark_dirty()
            return 0
        return min(TURN, room)

    cdef bint find_leg(self) except -1:
        """Find a leg for the READY head. False when Python has to handle the request."""
        if self.find_route() and self.leg is None:
            if self.may_send_again():
                self.leg = self.route.take_idle(self, self.pump.now)
            if self.leg is None:
                self.leg = self.route.open_leg(self)
                self.phase_since = self.pump.now
        if self.leg is None:
            self.request.move(HEAD_DECLINED)
            self.hand_over(None, 0)
            return False
        return True

    cdef bint find_route(self) except -1:
        """Find the request's route, and leave a leg that belongs to another one."""
        cdef RequestFollower request = self.request
        cdef RequestShape *shape = &request.shape
        cdef Route route = None
        if not self.traces or not self.carrier.traces_this(request.text(0, shape.head_size)):
            route = self.carrier.route(
                request.span(shape.host), request.span(shape.device), request.span(shape.service),
                request.said() if self.heeds else b"",
                (request.span(shape.cookie), request.span(shape.member)),
                request.span(shape.login), request.span(shape.access),
                shape.from_page and not shape.from_here,
            )
        if route is not self.route or self.has_login_of_another():
            self.drop_leg(LEG_KEPT)
            self.route = route
            self.about = None
        return route is not None

    cdef bint has_login_of_another(self) noexcept:
        """Whether the leg has a login, and the request may be another person's."""
        return (self.leg is not None and self.leg.bound and self.connection_is_shared
                and self.request.names_visitor())

    cdef int find_fields(self) except -1:
        """Find the lines to add to the request: they depend on its host and forwarding fields."""
        cdef RequestFollower request = self.request
        cdef bytes host = request.span(request.shape.host)
        cdef bytes said = request.said() if self.heeds else b""
        by = self.carrier.by
        if (
            self.fields is None or by is not self.by_seen
            or host != self.host_seen or said != self.said_seen
        ):
            self.fields = self.carrier.fields(host, said)
            self.answer.cookie_hosts = self.carrier.cookie_hosts(host, said)
            self.host_seen, self.said_seen, self.by_seen = host, said, by
            self.about = None
        return 0

    cdef bint may_send_again(self) noexcept:
        """Whether the request, which is READY or DONE, can be sent a second time (RFC 9110 9.2.2)."""
        return not self.sent_again and self.request.kept.size > 0 and self.request.may_repeat()

    cdef int send_again(self) except -1:
        """Send the request once more, on a new leg: a target may have closed its just then."""
        self.sent_again = True
        self.ending = min(self.ending, HANDS_OVER)  # its own `close` counts when it is sent
        self.answer.state_ = ANSWER_NONE
        self.request.move(SEND_AGAIN)
        self.want_turn()
        return 0

    cdef int note_request(self) except -1:
        """Keep what the log line of this request needs."""
        cdef RequestFollower request = self.request
        cdef RequestShape *shape = &request.shape
        self.stream_seen = self.leg.stream.id
        if self.about is None:
            self.about = self.carrier.about(self.route.destination)
        self.method = request.text(0, shape.method_size)
        self.path = request.text(shape.target_at, shape.target_at + shape.path_size)
        self.began = self.pump.moment()
        self.bytes_in_before = self.bytes_in
        return 0

    # -- the answers --------------------------------------------------------------------------------

    cdef int after_answer(self) except -1:
        """Call it when bytes of the answer, or its end, were taken."""
        cdef AnswerFollower answer = self.answer
        if answer.state_ == ANSWER_DONE:
            self.answered()
        elif answer.state_ in (ANSWER_MISSING, ANSWER_REFUSED, ANSWER_BROKEN):
            return self.fail_answer(answer.problem, 502)
        elif answer.state_ == ANSWER_NONE:
            if self.ending == PARTS and self.leg is not None:
                self.drop_leg(LEG_RESET)
                self.ending = GOES_ON
        elif answer.state_ >= ANSWER_LENGTH:
            self.request.kept.reset()
        return self.write_unsent()

    cdef int answered(self) except -1:
        """The answer is complete."""
        cdef AnswerFollower answer = self.answer
        self.note_answer()
        if self.leg is not None:
            self.leg.route.has_answered = True
        answer.move(TAKEN)
        answer.status = 0
        self.requests += 1
        self.sent_again = False
        self.phase_since = self.pump.now
        if self.leg is not None:
            self.leg.exchanges += 1
            self.leg.bound = self.leg.bound or answer.binds
            # A body that is announced only may come late, and would be read as the next answer.
            answer.closes = answer.closes or (answer.announces and not self.leg.bound)
        if answer.closes or self.has_login_of_another():
            self.ending = max(self.ending, PARTS)
        if answer.until_end or self.request.state_ != REQUEST_DONE or (
            self.local_eof and self.pending.size == 0
        ):
            self.ending = CLOSES
        if self.request.state_ != REQUEST_DONE:
            self.drop_leg(LEG_RESET)
        elif answer.closes or self.ending == PARTS:
            self.drop_leg(LEG_CLOSED)
        if self.ending == CLOSES:
            self.drop_leg(LEG_KEPT)
            self.over = True
            return self.wrap_up()
        self.request.answered()
        if self.ending == HANDS_OVER:
            self.over = True
            return self.wrap_up()
        self.ending = GOES_ON
        if self.pending.size or self.local.can_read:
            self.want_turn()
        return 0

    cdef int note_answer(self) except -1:
        """Count the request, and write its log line."""
        cdef int64_t came = self.bytes_in - self.bytes_in_before, went = self.answer.content
        cdef int status = self.answer.status
        cdef double now
        self.content_out += went
        if self.method is not None:
            now = self.pump.moment()
            if self.pump.requests is not None:
                self.pump.requests.note(status, came, went, max(now - self.began, 0.0))
            if self.about is not None and self.pump.lines is not None:
                self.pump.lines.add(
                    self.about, self.stream_seen, self.method, self.path, status, came, went,
                    self.began, now,
                )
        self.method = self.path = None
        return 0

    cdef int give_visitor(self, const uint8_t *data, Py_ssize_t size, bint owed) except -1:
        """Send bytes to the visitor, as far as its socket takes them, and keep the rest. When they
        are *owed*, the leg's peer gets credit once they are written."""
        cdef Py_ssize_t n = 0
        if size == 0 or self.ended_as != RUNNING:
            return 0
        if self.unsent.size and size > SMALL:
            self.write_unsent()
        if self.unsent.size == 0 and (owed or size > SMALL):
            n = self.write_some(data, size)
            if n < 0:
                return 0
            if owed:
                self.leg.stream.give_back(n)
        if n < size:
            self.unsent.push(data + n, size - n)
            if owed:
                self.owed += size - n
        return 0

    cdef Py_ssize_t write_some(self, const uint8_t *data, Py_ssize_t size) except -2:
        """How many bytes the socket took; -1 when it broke, which has ended the relay."""
        cdef ssize_t n
        if not self.local.can_write:
            return 0
        n = self.local.write(data, size)
        if n == BROKEN:
            self.fail(self.local.error)
            return -1
        self.bytes_out += n
        return n

    cdef int write_unsent(self) except -1:
        """Write the unsent bytes, then do what had to wait for that."""
        cdef ByteRing unsent = self.unsent
        cdef Py_ssize_t n, credit
        self.local.flush()
        while unsent.size and self.local.can_write and self.ended_as == RUNNING:
            n = self.write_some(
                unsent.base + unsent.head, min(unsent.size, unsent.capacity_ - unsent.head)
            )
            if n <= 0:
                break
            unsent.skip(n)
            credit = min(n, self.owed)
            if credit and self.leg is not None:
                self.owed -= credit
                self.leg.repay(credit)
        if self.ended_as != RUNNING or unsent.size:
            return 0
        if self.over:
            return self.wrap_up()
        if self.request.state_ == REQUEST_READY:
            self.want_turn()
        return 0

    # -- the end ------------------------------------------------------------------------------------

    cdef int drop_leg(self, LegEnd how) except -1:
        """Leave the leg, if there is one, as *how* says."""
        cdef Leg leg = self.leg
        if leg is None:
            return 0
        leg.stream.give_back(self.owed)
        self.owed = 0
        self.leg = None
        unlink(&self.wait_link)
        if how == LEG_KEPT and leg.agreed and leg.exchanges:
            if not leg.bound:
                return self.route.keep(leg, self.pump.now)
            if self.ended_as == HANDED_BACK:
                self.bound = leg.release()  # for `take_bound`
                return 0
        return leg.part(how != LEG_RESET and leg.agreed)

    cdef int fail_answer(self, str problem, int status) except -1:
        """There is no answer, or only part of one: answer with the *problem*, or cut the answer."""
        if self.answer.status:
            self.error = StreamReset(problem)
            return self.end(STREAM_BROKE)
        return self.hand_over(problem, status)

    cdef int hand_over(self, str problem, int status) except -1:
        """Give the connection to Python: for the next request, or to answer this one with the
        *problem*. What was received for the visitor is written first."""
        if self.ended_as != RUNNING:
            return 0
        self.problem = problem
        self.status = status
        self.ending = max(self.ending, HANDS_OVER) if problem is None else HANDS_OVER
        self.over = True
        return self.write_unsent()  # now: there may be no further event of the socket

    cdef int wrap_up(self) except -1:
        """Do what the ending says, once all was written."""
        if self.unsent.size or self.local.is_sending():
            return 0
        return self.end(FINISHED if self.ending == CLOSES else HANDED_BACK)

    cdef int end(self, Outcome outcome) except -1:
        if self.ended_as != RUNNING:
            return 0
        self.ended_as = outcome
        idle = self.answer.state_ == ANSWER_NONE
        self.drop_leg(LEG_KEPT if outcome == HANDED_BACK and idle else LEG_RESET)
        unlink(&self.wait_link)
        if outcome == FINISHED:
            self.leave()
            return 0
        self.pump.remove(self)
        return self.pump.tell(self)
