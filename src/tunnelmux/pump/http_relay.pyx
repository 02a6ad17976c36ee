"""A visitor's kept-alive HTTP connection joined to a stream, in the pump.

Every request's head is read by the strict scanner of `pump.head`, gets the forwarding fields, and goes
on; every response is followed closely enough to know where it ends. One request is in progress at a
time, so a request is only ever begun when the one before it was answered whole. What the scanner
does not accept goes back to Python, with every byte that was not passed on.
The docstrings of the public names are in `http_relay.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp, memcpy, memset

from tunnelmux._frame cimport HEADER_BYTES
from tunnelmux.pump.head cimport (
    ACCEPTED, DECLINED, INCOMPLETE, ChunkState, RequestShape, ResponseShape, Verdict,
    rewrite_request, rewrite_response, scan_chunked, scan_request, scan_response,
)
from tunnelmux.pump.pump_socket cimport BROKEN, NOTHING
from tunnelmux.pump.relay cimport FINISHED, HANDED_BACK, RUNNING, STREAM_BROKE, TURN, Relay
from tunnelmux.yamux.ring cimport ByteRing
from tunnelmux.yamux.streams cimport EngineStream
from tunnelmux.pump.tunnel cimport SENSIBLE, Tunnel

from tunnelmux.errors import StreamReset
from tunnelmux.pump.cookies import head_without_parent_domains

cdef enum:
    LONGEST_WAIT = 16384  # bytes of an unfinished head that are kept before h11 is asked about it

cdef bytes LAST = b"Connection: close\r\n"


@cython.final
cdef class HttpRelay(Relay):
    # `pending` are bytes of the visitor that were read and not used; `pending_is_new` says that
    # nobody has looked at them. `sent_head` is the head of the request in progress while it may be
    # sent again: it has no body, changes nothing, and not a byte of its answer has come. After one
    # that `is_last` nothing more is read.

    def __cinit__(self, *args, **kwargs):
        self.pending = ByteRing.__new__(ByteRing)
        self.sent_head = ByteRing.__new__(ByteRing)
        self.answer_head = ByteRing.__new__(ByteRing)

    def __init__(self, Tunnel tunnel not None, EngineStream stream not None, socket, owner, *,
                 bytes host not None, bytes fields not None, Py_ssize_t max_head_bytes,
                 bytes early not None):
        super().__init__(tunnel, stream, socket, owner)
        self.host = host
        self.fields = fields
        self.max_head = max_head_bytes
        self.phase_since = tunnel.pump.now
        self.pending.push(<const uint8_t *>PyBytes_AS_STRING(early), len(early))
        self.pending_is_new = True

    def start_awaiting(self, bytes answer not None):
        super().start_awaiting(answer)
        self.reads = False  # a request is sent once it is known that somebody takes it

    def finish_soon(self):
        self.stopping = True
        if self.request == REQUEST_HEAD and self.response == RESPONSE_NONE:
            self.hand_over(None, 0)
            self.pump.wake()

    def give_up(self, str problem not None, int status):
        if self.ended_as == RUNNING:
            self.hand_over(problem, status)
            self.pump.wake()

    def take_pending(self):
        return self.pending.read(self.pending.size)

    @property
    def phase(self):
        if self.answer is not None:
            return "agreeing"
        if self.response == RESPONSE_BODY or self.stream.inbox.size:
            return "answering"
        if self.request == REQUEST_BODY:
            return "sending"
        if self.response == RESPONSE_HEAD:
            return "waiting"
        return "reading" if self.pending.size else "idle"

    @property
    def unfinished(self):
        if self.response == RESPONSE_NONE or self.method is None:
            return None
        return (
            self.method.decode("ascii"),
            self.path.decode("ascii"),
            self.answer_status,
            self.bytes_in - self.bytes_in_before,
            self.content_out - self.content_out_before,
            self.pump.moment() - self.began,
        )

    @property
    def is_spent(self):
        return self.local.at_end and self.pending.size == 0

    # -- the visitor's requests ---------------------------------------------------------------------

    cdef int read_local(self) except -1:
        if not self.reads or self.local.at_end or self.ended_as != RUNNING:
            return 0
        if self.request == REQUEST_DONE or self.leaving or self.closing:
            return 0
        if self.request == REQUEST_BODY and self.pending.size == 0:
            return self.read_body()
        return self.read_some()

    cdef Py_ssize_t frame_limit(self) except -1:
        """Bytes of payload for which a frame can be placed now; 0 when its time will come."""
        cdef Py_ssize_t room = self.tunnel.engine.frame_room(self.stream)
        cdef Py_ssize_t space = self.tunnel.space()
        if room == 0:
            if self.stream.outbox.size:
                self.wait_for_flush()
            return 0
        if space < TURN:
            self.wait_for_flush()
            return 0
        return min(TURN, self.stream.send_window.credit_)

    cdef int read_some(self) except -1:
        """Go on with what was read before, and with what the socket has, as far as a frame holds."""
        cdef Py_ssize_t have = self.pending.size, used
        cdef Py_ssize_t limit = self.frame_limit() - len(self.fields)
        cdef uint8_t *buffer = self.pump.input
        cdef ssize_t n = 0
        if not self.local.can_read and not self.pending_is_new:
            return 0
        if limit < SENSIBLE:
            return 0  # a turn comes with a flush, or with credit
        if have == 0:
            self.phase_since = self.pump.now
        if have < limit:
            self.pending.pull(buffer, have)
            n = self.read_behind(buffer + have, limit - have)
            if n < 0:
                return 0
            used = self.use(buffer, have + n)
            if used < have + n:
                self.pending.push(buffer + used, have + n - used)
        else:
            self.pending.copy_front(buffer, limit)
            self.pending.skip(self.use(buffer, limit))
        # What is left of a head was looked at; anything else has to wait for its turn.
        self.pending_is_new = self.pending.size > 0 and self.request != REQUEST_HEAD
        if self.local.at_end and self.pending.size == 0 and self.request == REQUEST_BODY:
            self.hand_over("the request ended within its body", 400)
        elif self.local.at_end and self.response == RESPONSE_NONE:
            self.hand_over(None, 0)  # Python finds the end, and whatever came before it
        elif self.request != REQUEST_DONE and (self.local.can_read or self.pending_is_new):
            self.want_turn()
        return 0

    cdef ssize_t read_behind(self, uint8_t *buffer, Py_ssize_t room) except -2:
        """What the socket has, into *buffer*: how many bytes; -1 when it broke."""
        cdef ssize_t n
        if not self.local.can_read:
            return 0
        n = self.local.read_into(buffer, room)
        if n == BROKEN:
            self.local_failed()
            return -1
        return 0 if n == NOTHING else n

    cdef int on_broken(self) except -1:
        """The visitor is gone: nobody can be answered."""
        return self.local_failed()

    cdef void on_credit(self) noexcept:
        if self.local.can_read or self.pending_is_new:
            self.want_turn()

    cdef int read_body(self) except -1:
        """Like any relay, straight into the frame; but no further than the request goes."""
        cdef Py_ssize_t limit, good
        cdef ssize_t n
        cdef uint8_t *gap
        if not self.local.can_read:
            return 0
        limit = self.frame_limit()
        if limit == 0:
            return 0
        if not self.request_chunked:
            limit = <Py_ssize_t>min(<int64_t>limit, self.request_left)
        gap = self.tunnel.place()
        n = self.local.read_into(gap + HEADER_BYTES, limit)
        self.tunnel.mark_dirty()  # at least the buffer may have been taken for nothing
        if n > 0:
            good = self.body_part(gap + HEADER_BYTES, n)
            if good < n:
                self.pending.push(gap + HEADER_BYTES + good, n - good)
                self.pending_is_new = True
            if good and self.ended_as == RUNNING:
                self.tunnel.engine.place_frame(self.stream, gap, good)
                self.tunnel.filled += HEADER_BYTES + good
                self.bytes_in += good
            if self.local.can_read and self.request == REQUEST_BODY:
                self.want_turn()
        elif n == 0:
            self.hand_over("the request ended within its body", 400)
        elif n == BROKEN:
            self.local_failed()
        return 0

    cdef Py_ssize_t use(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Take what the visitor sent, one request as far as it is here; how many bytes that was."""
        cdef Py_ssize_t used = 0, good
        if size and self.request == REQUEST_HEAD:
            used = self.begin_request(data, size)
        if self.request == REQUEST_BODY and used < size:
            good = self.body_part(data + used, size - used)
            if good and self.ended_as == RUNNING:
                self.place_body(data + used, good)
            used += good
        return used

    cdef Py_ssize_t begin_request(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Send on the head that *data* begins with; how many bytes that took, 0 for none."""
        cdef RequestShape shape
        cdef Verdict verdict = scan_request(
            data, size, <const uint8_t *>PyBytes_AS_STRING(self.host), len(self.host), &shape
        )
        cdef uint8_t *gap
        cdef Py_ssize_t out
        if verdict == DECLINED or (verdict == INCOMPLETE and size > LONGEST_WAIT):
            self.hand_over(None, 0)
            return 0
        if verdict == INCOMPLETE:
            return 0
        if shape.head_size > self.max_head:
            self.hand_over(None, 0)
            return 0
        gap = self.tunnel.place()
        out = rewrite_request(
            data, &shape, <const uint8_t *>PyBytes_AS_STRING(self.fields), len(self.fields),
            gap + HEADER_BYTES,
        )
        self.tunnel.engine.place_frame(self.stream, gap, out)
        self.tunnel.filled += HEADER_BYTES + out
        self.tunnel.mark_dirty()
        if self.about is not None:
            self.note_request(data, &shape)
        self.to_head = shape.is_head
        self.is_last = shape.closes
        self.request_left = shape.content_length
        self.request_chunked = shape.chunked
        self.sent_head.reset()
        if self.request_left == 0 and not shape.chunked and (
            self.to_head or (shape.method_size == 3 and memcmp(data, b"GET", 3) == 0)
        ):
            self.sent_head.push(data, shape.head_size)
        self.response = RESPONSE_HEAD
        self.request = REQUEST_BODY
        if shape.chunked:
            memset(&self.request_chunks, 0, sizeof(ChunkState))
        elif self.request_left == 0:
            self.request_complete()
        return shape.head_size

    cdef int note_request(
        self, const uint8_t *data, const RequestShape *shape
    ) except -1:
        """Keep what the log says of this request."""
        self.method = data[:shape.method_size]
        self.path = data[shape.target_at:shape.target_at + shape.path_size]
        self.answer_status = 0
        self.began = self.pump.moment()
        self.bytes_in_before = self.bytes_in
        self.content_out_before = self.content_out
        return 0

    cdef Py_ssize_t body_part(self, const uint8_t *data, Py_ssize_t size) except -1:
        """How many of these bytes belong to the request in progress, which may end with them."""
        cdef Py_ssize_t good
        if self.request_chunked:
            good = scan_chunked(&self.request_chunks, data, size)
            if self.request_chunks.broken:
                self.hand_over("the request's chunks are not what they should be", 400)
            elif self.request_chunks.done:
                self.request_complete()
            return good
        good = <Py_ssize_t>min(<int64_t>size, self.request_left)
        self.request_left -= good
        if self.request_left == 0:
            self.request_complete()
        return good

    cdef int place_body(self, const uint8_t *data, Py_ssize_t size) except -1:
        cdef uint8_t *gap = self.tunnel.place()
        memcpy(gap + HEADER_BYTES, data, size)
        self.tunnel.engine.place_frame(self.stream, gap, size)
        self.tunnel.filled += HEADER_BYTES + size
        self.bytes_in += size
        return 0

    cdef int request_complete(self) except -1:
        self.request = REQUEST_DONE
        self.phase_since = self.pump.now
        return 0

    # -- the target's responses ---------------------------------------------------------------------

    cdef int take_payload(self, const uint8_t *data, Py_ssize_t size) except -1:
        cdef bint was_kept = self.answer_head.size > 0
        cdef Py_ssize_t passed
        cdef bytes rest
        if self.ended_as != RUNNING or self.closing or self.leaving:
            self.stream.give_back(size)
            return 0
        if self.answer is not None:
            return self.take_agreement(data, size)
        if was_kept:  # part of a head: look at it as a whole
            self.answer_head.push(data, size)
            data = self.answer_head.base
            size = self.answer_head.size
        passed = self.follow(data, size)
        if self.ended_as != RUNNING or self.closing or self.leaving:
            self.stream.give_back(size - passed)
            self.answer_head.reset()
            return self.pass_on_end()
        if was_kept:
            rest = data[passed:size]
            self.answer_head.reset()
            data = <const uint8_t *>PyBytes_AS_STRING(rest)
            size -= passed
            passed = 0
        if size > passed:
            self.answer_head.push(data + passed, size - passed)
        return 0

    cdef int take_agreement(self, const uint8_t *data, Py_ssize_t size) except -1:
        Relay.take_payload(self, data, size)
        if self.ended_as == HANDED_BACK:  # another answer: nobody goes on with this stream
            self.stream.reset_(0, "the relay was given up")
        elif self.answer is None and self.ended_as == RUNNING:
            self.reads = True
            self.phase_since = self.pump.now
            self.want_turn()
        return 0

    cdef Py_ssize_t follow(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Read along and pass on; how many bytes that took. What is left then is part of a head, or
        nobody's."""
        cdef Py_ssize_t used = 0, passed = 0, part
        while used < size and self.ended_as == RUNNING and not (self.closing or self.leaving):
            if self.response == RESPONSE_HEAD:
                part = self.follow_head(data + used, size - used)
                if part == 0:
                    break
                if self.parting_head is not None:
                    self.pass_on(data + passed, used - passed)
                    self.pass_on_head(part)
                    passed = used + part
            elif self.response == RESPONSE_BODY:
                part = self.follow_body(data + used, size - used)
            else:
                self.closing = True  # what nobody had asked for ends the connection
                break
            used += part
        self.pass_on(data + passed, used - passed)
        return used

    cdef int pass_on(self, const uint8_t *data, Py_ssize_t size) except -1:
        if size and self.ended_as == RUNNING:
            Relay.take_payload(self, data, size)
        return 0

    cdef int pass_on_head(self, Py_ssize_t size) except -1:
        """The head of *size* bytes without what concerned the target's connection only, and with
        what concerns the visitor's."""
        cdef bytes head = self.parting_head
        self.parting_head = None
        # What is added counts as received, before it counts as consumed: the peer gets no credit
        # for it.
        self.stream.give_back(size - len(head))
        self.pass_on(<const uint8_t *>PyBytes_AS_STRING(head), len(head))
        return 0

    cdef Py_ssize_t follow_head(self, const uint8_t *data, Py_ssize_t size) except -1:
        """The size of the head that *data* begins with, now the response's; 0 when it is not
        complete, or not what can be passed on."""
        cdef ResponseShape shape
        cdef bytes head, fields
        cdef bint holds
        cdef Verdict verdict = scan_response(data, size, self.to_head, &shape)
        if verdict == DECLINED or size > self.max_head and verdict == INCOMPLETE:
            self.hand_over("its answer is not plain HTTP, or its head is too large", 502)
            return 0
        if verdict == INCOMPLETE:
            return 0
        self.sent_head.reset()
        self.phase_since = self.pump.now
        if shape.status < 200:
            return shape.head_size
        self.answer_status = shape.status
        self.closes = shape.until_end or self.is_last
        self.parts = (shape.closes or shape.is_old) and not self.closes
        holds = shape.sets_domain and not self.parent_cookies
        if self.parts or self.is_last or shape.has_hop or holds:
            # The visitor's connection can go on, with another one to the target; or it ends, as
            # the visitor wanted, and the target's may have its own mind (RFC 9112 9.6).
            fields = LAST if self.closes else b""
            head = PyBytes_FromStringAndSize(NULL, shape.head_size + len(fields))
            size = rewrite_response(
                data, &shape, <const uint8_t *>PyBytes_AS_STRING(fields), len(fields),
                <uint8_t *>PyBytes_AS_STRING(head),
            )
            head = head[:size]
            self.parting_head = head_without_parent_domains(head, self.host) if holds else head
        self.response_chunked = shape.chunked
        self.response_until_end = shape.until_end
        self.response_left = shape.content_length
        self.response = RESPONSE_BODY
        if shape.chunked:
            memset(&self.response_chunks, 0, sizeof(ChunkState))
            self.response_chunks.padded = True
        elif self.response_left == 0:
            self.answered()
        return shape.head_size

    cdef Py_ssize_t follow_body(self, const uint8_t *data, Py_ssize_t size) except -1:
        """How many of these bytes belong to the response, which may end with them."""
        cdef Py_ssize_t good = size
        if self.response_chunked:
            good = scan_chunked(&self.response_chunks, data, size)
        elif not self.response_until_end:
            good = <Py_ssize_t>min(<int64_t>size, self.response_left)
        self.content_out += good
        if self.response_chunked:
            if self.response_chunks.broken:
                self.error = StreamReset("the response's chunks are not what they should be")
                self.end(STREAM_BROKE)
            elif self.response_chunks.done:
                self.answered()
        elif not self.response_until_end:
            self.response_left -= good
            if self.response_left == 0:
                self.answered()
        return good

    cdef int answered(self) except -1:
        """The response is complete."""
        if self.method is not None and self.pump.lines is not None:
            self.pump.lines.add(
                self.about,
                self.method,
                self.path,
                self.answer_status,
                self.bytes_in - self.bytes_in_before,
                self.content_out - self.content_out_before,
                self.began,
                self.pump.moment(),
            )
            self.method = self.path = None
        self.response = RESPONSE_NONE
        self.requests += 1
        self.phase_since = self.pump.now
        if self.closes or self.request != REQUEST_DONE or self.local.at_end:
            self.closing = True  # once all of it was written
            return 0
        self.request = REQUEST_HEAD
        if self.stopping or self.parts:
            self.leaving = True
            return 0
        if self.pending.size or self.local.can_read:
            self.want_turn()
        return 0

    # -- the end ------------------------------------------------------------------------------------

    cdef int on_change(self) except -1:
        cdef EngineStream stream = self.stream
        if self.ended_as != RUNNING:
            return 0
        if stream.error_ is not None and stream.inbox.size == 0:
            return self.stream_over()
        if self.answer is not None:
            return self.stream_over() if stream.remote_fin else 0
        if self.local.can_read or self.pending_is_new:
            self.want_turn()
        return self.write_out()

    cdef int pass_on_end(self) except -1:
        """Called when all that came for the visitor may have been written."""
        if self.ended_as != RUNNING:
            return 0
        if self.stream.inbox.size and self.answer is None:  # else it is no part of an answer
            return 0
        if self.local.is_sending():
            return 0
        if self.leaving:
            return self.leave_stream()
        if self.closing:
            return self.end(FINISHED)
        if self.stream.remote_fin or self.stream.error_ is not None:
            return self.stream_over()
        return 0

    cdef int stream_over(self) except -1:
        """Nothing more comes from the stream."""
        cdef bytes rest
        cdef bint complete = self.stream.remote_fin and self.stream.error_ is None
        if self.response == RESPONSE_NONE:
            return self.hand_over(None, 0)
        if self.response == RESPONSE_HEAD:
            if self.sent_head.size == 0 or self.answer_head.size:
                return self.hand_over("it closed the connection without an answer", 502)
            # A target may end an idle connection at the moment a request is sent on it. This one
            # may be sent again (RFC 9110 9.2.2), on a new one.
            rest = self.take_pending()
            self.pending.write(self.sent_head.read(self.sent_head.size))
            self.pending.write(rest)
            return self.hand_over(None, 0)
        if complete and self.response_until_end:
            self.answered()
            return self.pass_on_end()
        self.error = self.stream.error_ or StreamReset("the target ended within its answer")
        return self.end(STREAM_BROKE)

    cdef int hand_over(self, str problem, int status) except -1:
        """Let Python go on from here: with the next request, or by saying what the *problem* is
        with this one. What was received for the visitor is written first."""
        if self.ended_as != RUNNING:
            return 0
        if problem is not None and self.response == RESPONSE_BODY:
            self.error = StreamReset(problem)
            return self.end(STREAM_BROKE)
        self.problem = problem
        self.status = status
        self.reads = False
        self.leaving = True
        return self.pass_on_end()

    cdef int leave_stream(self) except -1:
        if self.response == RESPONSE_NONE and self.answer is None:
            self.stream.close(self.pump.now)
        else:
            self.stream.reset_(0, "the relay was given up")
        return self.end(HANDED_BACK)
