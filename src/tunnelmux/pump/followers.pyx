"""Followers of the two directions of one HTTP connection, without any I/O.

A `RequestFollower` reads what a visitor sends, an `AnswerFollower` what a target answers. Each takes
bytes as they come, in pieces of any size, and says which bytes to pass on. Each has a table below of
its states and the steps between them; a step that is not in it is a bug, and raises AssertionError.
The docstrings of the public names are in `followers.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp, memset

from tunnelmux.pump.chunks cimport BROKEN, CONTENT, DONE, TRAILERS, ChunkState, read_chunked
from tunnelmux.pump.head cimport (
    ACCEPTED, DECLINED, INCOMPLETE, RequestShape, ResponseShape, Verdict, find_head_end,
    rewrite_request, rewrite_response, scan_request, scan_response,
)
from tunnelmux.yamux.ring cimport ByteRing

from tunnelmux.pump.cookies import (
    head_clearing_only_own, head_without_own_cookies, head_without_parent_domains,
)

cdef enum:
    PIECE = 4096  # bytes of a head looked at in one go: most heads are shorter, bodies behind them not
    MINUTE = 60

cdef bytes CLOSE = b"Connection: close\r\n"

# -- The tables ---------------------------------------------------------------------------------
#
# State: {event: the state after it}. A state without a line is final.

REQUEST_TABLE = {
    REQUEST_IDLE: {HEAD_BEGAN: REQUEST_HEAD},
    REQUEST_HEAD: {HEAD_READ: REQUEST_READY, HEAD_DECLINED: REQUEST_DECLINED},
    REQUEST_READY: {
        SENT_WITHOUT_BODY: REQUEST_DONE,
        SENT_WITH_LENGTH: REQUEST_LENGTH,
        SENT_WITH_CHUNKS: REQUEST_CHUNKS,
        HEAD_DECLINED: REQUEST_DECLINED,  # it cannot be sent from here after all
    },
    REQUEST_LENGTH: {BODY_READ: REQUEST_DONE, BODY_BROKE: REQUEST_BROKEN},
    REQUEST_CHUNKS: {
        TRAILERS_BEGAN: REQUEST_TRAILERS,
        BODY_READ: REQUEST_DONE,
        BODY_BROKE: REQUEST_BROKEN,
    },
    REQUEST_TRAILERS: {BODY_READ: REQUEST_DONE, BODY_BROKE: REQUEST_BROKEN},
    REQUEST_DONE: {ANSWERED: REQUEST_IDLE, SEND_AGAIN: REQUEST_READY},
}

ANSWER_TABLE = {
    ANSWER_NONE: {ASKED: ANSWER_HEAD, MORE_CAME: ANSWER_UNASKED, ENDED: ANSWER_NONE},
    ANSWER_HEAD: {
        INTERIM_READ: ANSWER_HEAD,  # 1xx: another one follows (RFC 9110 15.2)
        HEAD_DOUBTED: ANSWER_DOUBT,
        HEAD_REFUSED: ANSWER_REFUSED,
        FINAL_WITHOUT_BODY: ANSWER_DONE,
        FINAL_WITH_LENGTH: ANSWER_LENGTH,
        FINAL_WITH_CHUNKS: ANSWER_CHUNKS,
        FINAL_UNTIL_END: ANSWER_UNTIL_END,
        ENDED: ANSWER_MISSING,
        ENDED_WITHIN_HEAD: ANSWER_REFUSED,
    },
    ANSWER_DOUBT: {
        INTERIM_READ: ANSWER_HEAD,
        HEAD_REFUSED: ANSWER_REFUSED,
        FINAL_WITHOUT_BODY: ANSWER_DONE,
        FINAL_WITH_LENGTH: ANSWER_LENGTH,
        FINAL_WITH_CHUNKS: ANSWER_CHUNKS,
        FINAL_UNTIL_END: ANSWER_UNTIL_END,
        ENDED_WITHIN_HEAD: ANSWER_REFUSED,
    },
    ANSWER_LENGTH: {ANSWER_READ: ANSWER_DONE, ENDED: ANSWER_BROKEN},
    ANSWER_CHUNKS: {
        ANSWER_TRAILERS_BEGAN: ANSWER_TRAILERS,
        ANSWER_READ: ANSWER_DONE,
        ANSWER_BROKE: ANSWER_BROKEN,
        ENDED: ANSWER_BROKEN,
    },
    ANSWER_TRAILERS: {
        ANSWER_READ: ANSWER_DONE, ANSWER_BROKE: ANSWER_BROKEN, ENDED: ANSWER_BROKEN,
    },
    ANSWER_UNTIL_END: {ENDED: ANSWER_DONE},  # RFC 9112 6.3, its last rule
    ANSWER_DONE: {TAKEN: ANSWER_NONE, MORE_CAME: ANSWER_UNASKED, ENDED: ANSWER_DONE},
}

_REQUEST_STATES = (
    "idle", "head", "ready", "length", "chunks", "trailers", "done", "declined", "broken",
)
_ANSWER_STATES = (
    "none", "head", "doubt", "length", "chunks", "trailers", "until end", "done", "missing",
    "refused", "broken", "unasked",
)

cdef signed char AFTER_REQUEST[REQUEST_STATES][REQUEST_EVENTS]
cdef signed char AFTER_ANSWER[ANSWER_STATES][ANSWER_EVENTS]


cdef void fill_tables():
    cdef int state, event
    memset(AFTER_REQUEST, -1, sizeof(AFTER_REQUEST))
    memset(AFTER_ANSWER, -1, sizeof(AFTER_ANSWER))
    for state, steps in REQUEST_TABLE.items():
        for event, after in steps.items():
            AFTER_REQUEST[state][event] = after
    for state, steps in ANSWER_TABLE.items():
        for event, after in steps.items():
            AFTER_ANSWER[state][event] = after

fill_tables()


# -- Requests -----------------------------------------------------------------------------------


@cython.final
cdef class RequestFollower:
    # `kept` holds the bytes of a head, and of a trailer section. A head that may have to be sent
    # again stays there until the end of the answer.

    def __cinit__(self, *args, **kwargs):
        self.kept = ByteRing.__new__(ByteRing)

    def __init__(self, judge, *, Py_ssize_t max_head_bytes=65536, int max_head_fields=256):
        self.judge = judge
        self.max_head = max_head_bytes
        self.max_fields = max_head_fields
        memset(&self.shape, 0, sizeof(RequestShape))

    @property
    def state(self):
        return _REQUEST_STATES[<int>self.state_]

    @property
    def kept_bytes(self):
        return self.text(0, self.kept.size)

    @property
    def steps(self):
        return self.shape.progress.steps + self.trailers_steps

    def feed(self, bytes data not None, *, bytes fields=b""):
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef Py_ssize_t at = 0, size
        cdef list going = []
        cdef bytes head
        while True:
            if self.state_ == REQUEST_READY:
                head = PyBytes_FromStringAndSize(NULL, self.kept.size + len(fields))
                size = self.write_head(
                    <const uint8_t *>PyBytes_AS_STRING(fields), len(fields),
                    <uint8_t *>PyBytes_AS_STRING(head),
                )
                going.append(head[:size])
                self.sent(False)
            if at == len(data) or self.state_ >= REQUEST_DONE:
                return at, b"".join(going)
            size = self.take(p + at, len(data) - at)
            if self.gives == GIVES_SAME:
                going.append(data[at:at + size])
            elif self.gives == GIVES_MADE:
                going.append(self.made)
            at += size

    def finish(self):
        self.answered()

    cdef int move(self, RequestEvent event) except -1:
        cdef signed char after = AFTER_REQUEST[<int>self.state_][<int>event]
        assert after >= 0, f"a request that is {self.state!r} met event {event}"
        self.state_ = <RequestState>after
        return 0

    cdef bytes text(self, Py_ssize_t at, Py_ssize_t end):
        """The kept bytes from *at* to *end*."""
        return (<char *>self.kept.base)[at:end] if end > at else b""

    cdef bytes span(self, Span span):
        """The kept bytes of this span."""
        return self.text(span.at, span.end)

    cdef bytes said(self):
        """The lines of the kept head that say who sent it."""
        cdef bytes said = b""
        cdef int i
        for i in range(self.shape.said.count):
            said += self.text(self.shape.said.spans[i].at, self.shape.said.spans[i].end)
        return said

    cdef bint names_visitor(self) noexcept:
        """Whether the kept head has a field that only a proxy sets, about its visitor."""
        return self.shape.said.count > 0

    cdef bint is_called(self, const char *method, Py_ssize_t size) noexcept:
        """Whether the kept head has this method."""
        return self.shape.method_size == size and memcmp(self.kept.base, method, size) == 0

    cdef bint may_repeat(self) noexcept:
        """Whether the request, whose head is kept, changes nothing and has no body."""
        if self.shape.chunked or self.shape.content_length:
            return False
        return self.shape.is_head or self.is_called(b"GET", 3)

    cdef bint in_body(self) noexcept:
        return REQUEST_LENGTH <= self.state_ <= REQUEST_TRAILERS

    cdef Py_ssize_t run_left(self) noexcept:
        """How many of the next bytes are content, to be passed on as they are."""
        if self.state_ == REQUEST_LENGTH:
            return <Py_ssize_t>self.left
        if self.state_ == REQUEST_CHUNKS and self.chunks.step == CONTENT:
            return <Py_ssize_t>self.chunks.left
        return 0

    cdef int skip_run(self, Py_ssize_t size) except -1:
        """*size* of these bytes were passed on without a look at their values."""
        cdef bint kept = True
        if self.state_ == REQUEST_LENGTH:
            self.left -= size
            return self.move(BODY_READ) if self.left == 0 else 0
        # Content alone: no byte of it is looked at.
        read_chunked(&self.chunks, NULL, size, &kept)
        return 0

    cdef Py_ssize_t take(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Take some of these bytes, at least one; `gives` says what to pass on. Not to be called when
        READY, DONE, DECLINED or BROKEN."""
        cdef Py_ssize_t used
        cdef bint kept = True
        if self.state_ == REQUEST_IDLE:
            self.move(HEAD_BEGAN)
        if self.state_ == REQUEST_HEAD:
            return self.take_head(data, size)
        if self.state_ == REQUEST_TRAILERS:
            return self.take_trailers(data, size)
        self.gives = GIVES_SAME
        if self.state_ == REQUEST_LENGTH:
            used = <Py_ssize_t>min(<int64_t>size, self.left)
            self.left -= used
            if self.left == 0:
                self.move(BODY_READ)
            return used
        used = read_chunked(&self.chunks, data, size, &kept)
        if not kept:
            self.gives = GIVES_NOTHING
        if self.chunks.step == DONE:
            self.move(BODY_READ)
        elif self.chunks.step == BROKEN:
            self.problem = "the chunked framing of the request is malformed"
            self.move(BODY_BROKE)
        elif self.chunks.step == TRAILERS:
            self.move(TRAILERS_BEGAN)
            self.trailers_looked = 0
            if used == 0:
                return self.take_trailers(data, size)
        return used

    cdef Py_ssize_t take_head(self, const uint8_t *data, Py_ssize_t size) except -1:
        cdef Py_ssize_t before = self.kept.size
        cdef Verdict verdict
        size = min(size, PIECE)
        self.gives = GIVES_NOTHING
        self.kept.push(data, size)
        verdict = scan_request(self.kept.base, self.kept.size, self.max_fields, &self.shape)
        if verdict == ACCEPTED and self.shape.head_size <= self.max_head:
            size = self.shape.head_size - before
            self.kept.size = self.shape.head_size
            self.move(HEAD_READ)
        elif verdict != INCOMPLETE or self.kept.size > self.max_head:
            self.move(HEAD_DECLINED)
        return size

    cdef Py_ssize_t take_trailers(self, const uint8_t *data, Py_ssize_t size) except -1:
        cdef Py_ssize_t before = self.kept.size, end
        self.gives = GIVES_NOTHING
        self.kept.push(data, size)
        end = find_head_end(
            self.kept.base, self.kept.size, &self.trailers_looked, &self.trailers_steps
        )
        if end < 0 and self.kept.size <= self.max_head:
            return size
        made = None
        if 0 <= end <= self.max_head:
            made = self.judge.trailers(self.text(0, end))
            size = end - before
        self.kept.reset()
        if made is None:
            self.problem = "the trailer fields of the request are malformed"
            self.move(BODY_BROKE)
            return size
        self.gives = GIVES_MADE
        self.made = made
        self.move(BODY_READ)
        return size

    cdef Py_ssize_t write_head(
        self, const uint8_t *fields, Py_ssize_t fields_size, uint8_t *out
    ) except -1:
        """Write the READY head, with these lines added, to *out*, which has room for `kept.size` and
        `fields_size` bytes. The caller then calls `sent`."""
        return rewrite_request(self.kept.base, &self.shape, fields, fields_size, out)

    cdef int sent(self, bint keep) except -1:
        """The head was passed on; *keep* it when it may have to be sent again."""
        self.left = self.shape.content_length
        memset(&self.chunks, 0, sizeof(ChunkState))
        if not keep:
            self.kept.reset()
        if self.shape.chunked:
            return self.move(SENT_WITH_CHUNKS)
        return self.move(SENT_WITH_LENGTH if self.left else SENT_WITHOUT_BODY)

    cdef int answered(self) except -1:
        """The answer to the request that is DONE is complete; the next one may begin."""
        self.move(ANSWERED)
        self.kept.reset()
        self.trailers_steps = 0
        memset(&self.shape, 0, sizeof(RequestShape))
        return 0


# -- Answers ------------------------------------------------------------------------------------


@cython.final
cdef class AnswerFollower:
    # `kept` holds the bytes of an incomplete head or trailer section.

    def __cinit__(self, *args, **kwargs):
        self.kept = ByteRing.__new__(ByteRing)
        self.method = b""
        self.cookie_hosts = ()

    def __init__(
        self, judge, *, Py_ssize_t max_head_bytes=65536, int max_head_fields=256,
        int max_interim_heads=16,
    ):
        self.judge = judge
        self.max_head = max_head_bytes
        self.max_fields = max_head_fields
        self.max_interims = max_interim_heads

    @property
    def state(self):
        return _ANSWER_STATES[<int>self.state_]

    @property
    def steps(self):
        return self.shape.progress.steps + self.more_steps

    def asked(self, bytes method not None, *, bint is_last=False):
        if self.state_ == ANSWER_DONE:
            self.move(TAKEN)
        self.asked_(method, is_last)

    def feed(self, bytes data not None, *, double now=0.0):
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef Py_ssize_t at = 0, size
        cdef list going = []
        while at < len(data) and not self.is_over():
            size = self.take(p + at, len(data) - at, now)
            if self.gives == GIVES_SAME:
                going.append(data[at:at + size])
            elif self.gives == GIVES_MADE:
                going.append(self.made)
            at += size
        return at, b"".join(going)

    def end(self):
        if not self.is_over():
            self.ended_()

    cdef int move(self, AnswerEvent event) except -1:
        cdef signed char after = AFTER_ANSWER[<int>self.state_][<int>event]
        assert after >= 0, f"an answer that is {self.state!r} met event {event}"
        self.state_ = <AnswerState>after
        return 0

    cdef int asked_(self, bytes method, bint is_last) except -1:
        """A request was sent with this method; when it `is_last`, the visitor leaves after it."""
        self.move(ASKED)
        self.method = method
        self.to_head = len(method) == 4 and memcmp(PyBytes_AS_STRING(method), b"HEAD", 4) == 0
        self.is_last = is_last
        self.status = 0
        self.content = self.more_steps = self.interim_bytes = self.interims = 0
        self.closes = self.announces = self.until_end = self.binds = False
        memset(&self.shape, 0, sizeof(ResponseShape))
        return 0

    cdef bint is_over(self) noexcept:
        """Whether it takes no more bytes: no answer is expected, or something is wrong with it."""
        return self.state_ == ANSWER_NONE or self.state_ >= ANSWER_DONE

    cdef Py_ssize_t take(self, const uint8_t *data, Py_ssize_t size, double now) except -1:
        """Take some of these bytes: at least one, unless the answer is found to be wrong. `gives` says
        what to pass on. Not to be called when `is_over`."""
        if self.state_ == ANSWER_HEAD or self.state_ == ANSWER_DOUBT:
            return self.take_head(data, size, now)
        if self.state_ == ANSWER_TRAILERS:
            return self.take_trailers(data, size)
        self.gives = GIVES_SAME
        if self.state_ == ANSWER_CHUNKS:
            return self.take_chunks(data, size)
        if self.state_ == ANSWER_LENGTH:
            size = <Py_ssize_t>min(<int64_t>size, self.left)
            self.left -= size
            if self.left == 0:
                self.move(ANSWER_READ)
        self.content += size
        return size

    cdef Py_ssize_t take_head(self, const uint8_t *data, Py_ssize_t size, double now) except -1:
        """Scan a head where it lies when all of it is there, else behind the kept part of it."""
        cdef Py_ssize_t before = self.kept.size, total = size, end = -1
        cdef const uint8_t *p = data
        cdef Verdict verdict
        self.gives = GIVES_NOTHING
        if before:
            self.kept.push(data, size)
            p, total = self.kept.base, self.kept.size
        if self.state_ == ANSWER_HEAD:
            verdict = scan_response(p, total, self.max_fields, self.to_head, &self.shape)
            if verdict == ACCEPTED and self.shape.until_end and self.method == b"SOURCE":
                verdict = DECLINED  # the judge refuses it, and says why
            if verdict == ACCEPTED and self.shape.head_size <= self.max_head:
                end = self.shape.head_size
                self.accept(p, before == 0)
            elif verdict == DECLINED:
                self.move(HEAD_DOUBTED)
                self.looked = 0
        if self.state_ == ANSWER_DOUBT:
            end = find_head_end(p, total, &self.looked, &self.more_steps)
            if 0 <= end <= self.max_head:
                self.consult(p, end)
            else:
                end = -1
        if end >= 0:
            self.kept.reset()
            if self.state_ == ANSWER_HEAD:
                self.count_interim(end, now)
            return end - before
        if total > self.max_head:
            self.refuse(f"the head of its answer is larger than {self.max_head} bytes")
        elif not before:
            self.kept.push(data, size)
        return size

    cdef int count_interim(self, Py_ssize_t size, double now) except -1:
        """Refuse the answer when it has too many interim heads: a target could send them for ever, and
        each may have to be read by h11."""
        if self.interims == 0 or now >= self.interims_since + MINUTE:
            self.interims_since = now
            self.interims = self.interim_bytes = 0
        self.interims += 1
        self.interim_bytes += size
        if self.interims > self.max_interims:
            self.refuse(
                f"its answer has more than {self.max_interims} interim heads (1xx) within a minute "
                f"(limits.max_interim_heads)"
            )
        elif self.interim_bytes > self.max_head:
            self.refuse(f"its interim heads (1xx) have more than {self.max_head} bytes together")
        else:
            return 0
        self.gives = GIVES_NOTHING
        return 0

    cdef int accept(self, const uint8_t *p, bint in_place) except -1:
        """Pass on the complete head at *p*, which the scanner accepted."""
        cdef ResponseShape *shape = &self.shape
        cdef bint parts = shape.closes or shape.is_old
        cdef bint changed = shape.has_hop or shape.sets_own or (
            (shape.sets_domain or shape.clears) and len(self.cookie_hosts) > 0
        )
        cdef bytes fields = b"", head
        cdef Py_ssize_t size
        if shape.status >= 200:
            self.status = shape.status
            self.closes, self.announces = parts, shape.announces
            self.until_end = shape.until_end
            self.binds = shape.binds
            if self.is_last or shape.until_end:
                fields = CLOSE
            # Whether a connection closes is decided for each hop (RFC 9112 9.6). The visitor's can go
            # on with another one to the target, or end when the visitor wants it.
            changed = changed or self.is_last or (parts and not shape.until_end)
        if changed:
            head = PyBytes_FromStringAndSize(NULL, shape.head_size + len(fields))
            size = rewrite_response(
                p, shape, <const uint8_t *>PyBytes_AS_STRING(fields), len(fields),
                <uint8_t *>PyBytes_AS_STRING(head),
            )
            self.give_made(self.hold_cookies(head[:size]))
        elif in_place:
            self.gives = GIVES_SAME
        else:
            self.give_made((<const char *>p)[:shape.head_size])
        if shape.status < 200:
            self.more_steps += shape.progress.steps
            memset(shape, 0, sizeof(ResponseShape))
            return self.move(INTERIM_READ)
        if shape.until_end:
            return self.move(FINAL_UNTIL_END)
        return self.begin_body(shape.chunked, shape.content_length)

    cdef int consult(self, const uint8_t *p, Py_ssize_t size) except -1:
        """Let the judge read the complete head at *p*, which the scanner declined."""
        verdict = self.judge.answer((<const char *>p)[:size], self.method)
        memset(&self.shape, 0, sizeof(ResponseShape))
        if isinstance(verdict, str):
            return self.refuse(verdict)
        cdef bint chunked, until_end, closes, announces, binds
        cdef int status
        cdef int64_t length
        head, status, length, chunked, until_end, closes, announces, binds = verdict
        head = self.hold_cookies(head)
        if status < 200:
            self.give_made(head + b"\r\n")
            return self.move(INTERIM_READ)
        self.status, self.until_end, self.closes, self.binds = status, until_end, closes, binds
        self.announces = announces
        self.give_made(head + (CLOSE if self.is_last or until_end else b"") + b"\r\n")
        if until_end:
            return self.move(FINAL_UNTIL_END)
        return self.begin_body(chunked, length)

    cdef int begin_body(self, bint chunked, int64_t length) except -1:
        if chunked:
            memset(&self.chunks, 0, sizeof(ChunkState))
            return self.move(FINAL_WITH_CHUNKS)
        self.left = length
        return self.move(FINAL_WITH_LENGTH if length > 0 else FINAL_WITHOUT_BODY)

    cdef bytes hold_cookies(self, bytes head):
        """The head without cookies set or cleared for other hosts than those that were asked, and
        without the proxy's own cookies."""
        head = head_without_own_cookies(head)
        if self.cookie_hosts:
            head = head_clearing_only_own(head)
        for host in self.cookie_hosts:
            head = head_without_parent_domains(head, host)
        return head

    cdef int give_made(self, bytes made) except -1:
        self.gives = GIVES_MADE
        self.made = made
        return 0

    cdef int refuse(self, str problem) except -1:
        self.problem = problem
        self.kept.reset()
        return self.move(HEAD_REFUSED)

    cdef Py_ssize_t take_chunks(self, const uint8_t *data, Py_ssize_t size) except -1:
        cdef bint kept = True
        cdef Py_ssize_t used = read_chunked(&self.chunks, data, size, &kept)
        if not kept:
            self.gives = GIVES_NOTHING
        self.content += used
        if self.chunks.step == DONE:
            self.move(ANSWER_READ)
        elif self.chunks.step == BROKEN:
            self.problem = "the chunked framing of the response is malformed"
            self.move(ANSWER_BROKE)
        elif self.chunks.step == TRAILERS:
            self.move(ANSWER_TRAILERS_BEGAN)
            self.looked = 0
            if used == 0:
                return self.take_trailers(data, size)
        return used

    cdef Py_ssize_t take_trailers(self, const uint8_t *data, Py_ssize_t size) except -1:
        cdef Py_ssize_t before = self.kept.size, end
        self.gives = GIVES_NOTHING
        self.kept.push(data, size)
        end = find_head_end(self.kept.base, self.kept.size, &self.looked, &self.more_steps)
        if end < 0 and self.kept.size <= self.max_head:
            return size
        made = None
        if 0 <= end <= self.max_head:
            made = self.judge.trailers((<const char *>self.kept.base)[:end])
            size = end - before
        self.kept.reset()
        if made is None:
            self.problem = "the trailer fields of the response are malformed"
            self.move(ANSWER_BROKE)
            return size
        self.content += end
        self.give_made(made)
        self.move(ANSWER_READ)
        return size

    cdef int ended_(self) except -1:
        """The target's connection has ended."""
        if self.kept.size and self.state_ <= ANSWER_DOUBT:
            self.problem = "the target closed the connection within the head of its answer"
            self.kept.reset()
            return self.move(ENDED_WITHIN_HEAD)
        if self.state_ == ANSWER_HEAD:
            self.problem = "the target closed the connection without an answer"
        elif self.state_ != ANSWER_UNTIL_END:
            self.problem = "the target ended within its answer"
        return self.move(ENDED)
