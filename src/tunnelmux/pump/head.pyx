"""A strict scanner of HTTP/1.1 heads and chunked bodies, without any I/O.

The docstrings of the public names are in `head.pyi`. Every index below `size` is checked where it
is used; the C functions take no Python object and cannot fail.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from tunnelmux.pump.cookies cimport names_domain
from tunnelmux.pump.field_names cimport (
    CONNECTION, CONTENT_LENGTH, EXPECT, FieldKind, FORWARDING, HEAD_ONLY, HOP, HOST, KEEP_ALIVE,
    ORDINARY, SET_COOKIE, TRAILER, TRANSFER_ENCODING, kind_of,
)

cdef enum:
    HTAB = 0x09
    LF = 0x0A
    CR = 0x0D
    SP = 0x20
    COMMA = 0x2C
    DASH = 0x2D
    SLASH = 0x2F
    ZERO = 0x30
    NINE = 0x39
    COLON = 0x3A
    SEMICOLON = 0x3B
    A = 0x41
    Z = 0x5A
    UNDERSCORE = 0x5F
    DEL = 0x7F

cdef enum:
    MAX_LENGTH_DIGITS = 18  # of Content-Length: fits 63 bits
    MAX_SIZE_DIGITS = 15  # of a chunk: fits 63 bits, whatever the next reader computes with

cdef enum ChunkStep:
    SIZE  # 0: where a body begins
    BLANKS
    EXTENSION
    SIZE_LF
    CONTENT
    CONTENT_CR
    CONTENT_LF
    LAST_CR
    LAST_LF

cdef struct FieldLine:
    FieldKind kind
    Py_ssize_t value_at
    Py_ssize_t value_end
    Py_ssize_t end  # where the next line begins
    bint blank  # no field, but the line that ends the head
    bint odd  # there is whitespace around the value, other than one SP before it

cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGHS = 0x8080808080808080

# The bytes of a token (RFC 9110 5.6.2), letters small and "_" as "-"; 0 for every other byte.
cdef uint8_t FOLDED[256]

cdef void fill_folded() noexcept:
    cdef int i
    memset(FOLDED, 0, 256)
    for byte in b"!#$%&'*+-.^`|~0123456789abcdefghijklmnopqrstuvwxyz":
        FOLDED[<int>byte] = <uint8_t>byte
    for i in range(A, Z + 1):
        FOLDED[i] = <uint8_t>(i + 0x20)
    FOLDED[UNDERSCORE] = DASH

fill_folded()


# -- Words ------------------------------------------------------------------------------------


cdef inline bint is_text(uint8_t byte) noexcept nogil:
    """Whether a field's value may hold it: VCHAR, SP, HTAB or obs-text (RFC 9110 5.5)."""
    return (byte >= SP and byte != DEL) or byte == HTAB


cdef Py_ssize_t text_end(const uint8_t *p, Py_ssize_t at, Py_ssize_t size) noexcept nogil:
    """Where the text that begins at *at* ends."""
    cdef uint64_t word, other
    cdef Py_ssize_t stop
    while at < size:
        while size - at >= 8:
            memcpy(&word, p + at, 8)
            other = word ^ (ONES * DEL)
            # A high bit is set when a byte of `word` is below SP, or one of `other` is 0.
            if ((word - ONES * SP) & ~word | (other - ONES) & ~other) & HIGHS:
                break
            at += 8
        stop = at + 8 if size - at > 8 else size
        while at < stop:
            if not is_text(p[at]):
                return at
            at += 1
    return at


cdef bint is_name(const uint8_t *p, const char *name, Py_ssize_t size) noexcept nogil:
    """Whether these bytes are *name*, which is in small letters, in any case."""
    cdef Py_ssize_t i
    for i in range(size):
        if FOLDED[p[i]] != <uint8_t>name[i]:
            return False
    return True


cdef bint is_value(
    const uint8_t *p, const FieldLine *line, const char *value, Py_ssize_t size
) noexcept nogil:
    """Whether the field's value is *value*, which is in small letters, in any case."""
    cdef const uint8_t *start = p + line.value_at
    return (
        line.value_end - line.value_at == size
        and is_name(start, value, size)
        and memchr(start, UNDERSCORE, size) == NULL
    )


cdef int64_t decimal(const uint8_t *p, const FieldLine *line) noexcept nogil:
    """The field's value as a number, or -1 when it is not one in its shortest form."""
    cdef Py_ssize_t digits = line.value_end - line.value_at, i
    cdef int64_t number = 0
    if not 1 <= digits <= MAX_LENGTH_DIGITS or (digits > 1 and p[line.value_at] == ZERO):
        return -1
    for i in range(line.value_at, line.value_end):
        if not ZERO <= p[i] <= NINE:
            return -1
        number = number * 10 + (p[i] - ZERO)
    return number


# -- Lines ------------------------------------------------------------------------------------


cdef Verdict line_end(
    const uint8_t *p, Py_ssize_t size, Py_ssize_t at, Py_ssize_t *end
) noexcept nogil:
    """Whether CRLF stands at *at*; *end* is then what follows it."""
    if at == size:
        return INCOMPLETE
    if p[at] != CR:
        return DECLINED
    if at + 1 == size:
        return INCOMPLETE
    end[0] = at + 2
    return ACCEPTED if p[at + 1] == LF else DECLINED


cdef Verdict read_field(
    const uint8_t *p, Py_ssize_t size, Py_ssize_t start, FieldLine *line
) noexcept nogil:
    """One field line (RFC 9112 5), or the blank one. A folded line begins with no name: declined."""
    cdef Py_ssize_t at = start
    cdef Verdict verdict
    line.blank = at == size or p[at] == CR
    if line.blank:
        return line_end(p, size, at, &line.end)
    while at < size and FOLDED[p[at]]:
        at += 1
    if at == size:
        return INCOMPLETE
    if at == start or p[at] != COLON:
        return DECLINED
    line.kind = kind_of(p + start, at - start)
    if line.kind == HEAD_ONLY:  # and this is a head
        line.kind = ORDINARY
    at += 1
    if at < size and p[at] == SP:
        at += 1
    line.odd = at < size and (p[at] == SP or p[at] == HTAB)
    while at < size and (p[at] == SP or p[at] == HTAB):
        at += 1
    line.value_at = at
    at = text_end(p, at, size)
    verdict = line_end(p, size, at, &line.end)
    if verdict != ACCEPTED:
        return verdict
    while at > line.value_at and (p[at - 1] == SP or p[at - 1] == HTAB):
        at -= 1
        line.odd = True
    line.value_end = at
    return ACCEPTED


cdef Verdict read_request_line(
    const uint8_t *p, Py_ssize_t size, RequestShape *shape
) noexcept nogil:
    """METHOD SP /TARGET SP HTTP/1.1 CRLF (RFC 9112 3), and no CONNECT."""
    cdef Py_ssize_t at = 0, left
    cdef const uint8_t *query
    # Every registered method is written in these. A "head" would be HEAD to some servers.
    while at < size and (A <= p[at] <= Z or p[at] == DASH):
        at += 1
    if at == size:
        return INCOMPLETE
    if at == 0 or p[at] != SP or (at == 7 and memcmp(p, b"CONNECT", 7) == 0):
        return DECLINED
    shape.method_size = at
    shape.is_head = at == 4 and memcmp(p, b"HEAD", 4) == 0
    at += 1
    shape.target_at = at
    if at < size and p[at] != SLASH:
        return DECLINED
    while at < size and SP < p[at] < DEL:
        at += 1
    shape.target_size = at - shape.target_at
    left = size - at if size - at < 11 else 11
    if memcmp(p + at, b" HTTP/1.1\r\n", left) != 0:
        return DECLINED
    if left < 11:
        return INCOMPLETE
    query = <const uint8_t *>memchr(p + shape.target_at, c"?", shape.target_size)
    shape.path_size = query - p - shape.target_at if query != NULL else shape.target_size
    shape.line_size = at + 11
    return ACCEPTED


cdef Verdict read_status_line(
    const uint8_t *p, Py_ssize_t size, ResponseShape *shape, Py_ssize_t *end
) noexcept nogil:
    """HTTP/1.x SP 3DIGIT SP reason CRLF (RFC 9112 4)."""
    cdef Py_ssize_t i
    if memcmp(p, b"HTTP/1.", size if size < 7 else 7) != 0:
        return DECLINED
    if size > 7 and p[7] != ZERO and p[7] != ZERO + 1:
        return DECLINED
    for i in range(8, size if size < 13 else 13):
        if i == 8 or i == 12:
            if p[i] != SP:
                return DECLINED
        elif not ZERO <= p[i] <= NINE:
            return DECLINED
        else:
            shape.status = shape.status * 10 + (p[i] - ZERO)
    if size < 13:
        return INCOMPLETE
    shape.is_old = p[7] == ZERO
    if not 100 <= shape.status <= 599:
        return DECLINED
    if shape.status == 101 or (shape.status < 200 and shape.is_old):
        return DECLINED
    return line_end(p, size, text_end(p, 13, size), end)


# -- Heads ------------------------------------------------------------------------------------


cdef bint drop(Dropped *dropped, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """Note a line to leave out; False when there are too many."""
    if dropped.count and dropped.spans[dropped.count - 1].end == at:
        dropped.spans[dropped.count - 1].end = end
        return True
    if dropped.count == MAX_DROPPED:
        return False
    dropped.spans[dropped.count].at = at
    dropped.spans[dropped.count].end = end
    dropped.count += 1
    return True


cdef Verdict scan_request(
    const uint8_t *p, Py_ssize_t size, const uint8_t *host, Py_ssize_t host_size,
    RequestShape *shape,
) noexcept nogil:
    cdef FieldLine line
    cdef bint has_host = False, has_length = False, has_connection = False
    cdef Verdict verdict
    cdef Py_ssize_t at
    if size <= 0:
        return INCOMPLETE
    memset(shape, 0, sizeof(RequestShape))
    verdict = read_request_line(p, size, shape)
    at = shape.line_size
    while verdict == ACCEPTED:
        verdict = read_field(p, size, at, &line)
        if verdict != ACCEPTED:
            break
        if line.blank:
            shape.head_size = line.end
            return ACCEPTED if has_host else DECLINED
        if line.odd:
            return DECLINED
        if line.kind == SET_COOKIE:  # means nothing in a request
            line.kind = ORDINARY
        if line.kind == HOST:
            if has_host or host_size <= 0 or line.value_end - line.value_at != host_size:
                return DECLINED
            if memcmp(p + line.value_at, host, host_size) != 0:
                return DECLINED
            has_host = True
        elif line.kind == CONTENT_LENGTH:
            shape.content_length = decimal(p, &line)
            if has_length or shape.chunked or shape.content_length < 0:
                return DECLINED
            has_length = True
        elif line.kind == TRANSFER_ENCODING:
            if has_length or shape.chunked or line.value_end - line.value_at != 7:
                return DECLINED
            if memcmp(p + line.value_at, b"chunked", 7) != 0:
                return DECLINED
            shape.chunked = True
        elif line.kind >= EXPECT:
            return DECLINED
        elif line.kind == CONNECTION:
            shape.closes = is_value(p, &line, b"close", 5)
            if has_connection or not (shape.closes or is_value(p, &line, b"keep-alive", 10)):
                return DECLINED
            if not shape.closes and not drop(&shape.dropped, at, line.end):
                return DECLINED
            has_connection = True
        elif line.kind != ORDINARY and not drop(&shape.dropped, at, line.end):
            return DECLINED
        at = line.end
    return verdict


cdef bint read_connection(
    const uint8_t *p, const FieldLine *line, ResponseShape *shape
) noexcept nogil:
    """A response's Connection: False when it names more than these three. Servers that offer an
    upgrade say so in each of their answers (RFC 9110 7.8)."""
    cdef Py_ssize_t at = line.value_at, start
    cdef bint keeps = False, closes = False
    while True:
        start = at
        while at < line.value_end and FOLDED[p[at]]:
            at += 1
        if memchr(p + start, UNDERSCORE, at - start) != NULL:
            return False
        if at - start == 5 and is_name(p + start, b"close", 5):
            closes = True
        elif at - start == 10 and is_name(p + start, b"keep-alive", 10):
            keeps = True
        elif at - start == 7 and is_name(p + start, b"upgrade", 7):
            shape.has_hop = True
        else:
            return False
        if at == line.value_end:
            shape.closes = closes or (shape.is_old and not keeps)
            return True
        if p[at] != COMMA:
            return False
        at += 1
        if at < line.value_end and p[at] == SP:
            at += 1


cdef Verdict scan_response(
    const uint8_t *p, Py_ssize_t size, bint to_head, ResponseShape *shape
) noexcept nogil:
    cdef FieldLine line
    cdef bint has_length = False, has_coding = False, has_connection = False
    cdef Verdict verdict
    cdef Py_ssize_t at = 0
    if size <= 0:
        return INCOMPLETE
    memset(shape, 0, sizeof(ResponseShape))
    verdict = read_status_line(p, size, shape, &at)
    shape.closes = shape.is_old
    shape.bodiless = (
        to_head or shape.status < 200 or shape.status == 204 or shape.status == 304
    )
    while verdict == ACCEPTED:
        verdict = read_field(p, size, at, &line)
        if verdict != ACCEPTED:
            break
        if line.blank:
            shape.head_size = line.end
            settle(shape, has_length, has_coding)
            return ACCEPTED
        if line.kind == SET_COOKIE:
            shape.sets_domain |= names_domain(p + line.value_at, line.value_end - line.value_at)
            line.kind = ORDINARY
        if line.kind >= TRAILER or (line.odd and line.kind != ORDINARY):
            return DECLINED
        if line.kind == CONTENT_LENGTH:
            shape.content_length = decimal(p, &line)
            if has_length or has_coding or shape.content_length < 0 or shape.status < 200:
                return DECLINED
            has_length = True
            if shape.status == 204:  # may have none (RFC 9110 8.6); some servers send a 0
                if shape.content_length or not drop(&shape.dropped, at, line.end):
                    return DECLINED
        elif line.kind == TRANSFER_ENCODING:
            if has_length or has_coding or shape.is_old or shape.status < 200:
                return DECLINED
            if shape.status == 204 or not is_value(p, &line, b"chunked", 7):
                return DECLINED
            has_coding = True
            if shape.bodiless and not drop(&shape.dropped, at, line.end):
                return DECLINED
        elif line.kind == CONNECTION:
            if has_connection or shape.status < 200 or not read_connection(p, &line, shape):
                return DECLINED
            has_connection = True
        elif line.kind == HOP:
            if shape.status < 200:
                return DECLINED
            shape.has_hop = True
        if line.kind == CONNECTION or line.kind == KEEP_ALIVE or line.kind == HOP:
            if not drop(&shape.dropped, at, line.end):
                return DECLINED
        at = line.end
    return verdict


cdef void settle(ResponseShape *shape, bint has_length, bint has_coding) noexcept nogil:
    """Where the body ends (RFC 9112 6.3), once all fields are known."""
    if shape.bodiless:
        shape.content_length = 0
        if shape.status < 200:
            shape.closes = False
        return
    shape.chunked = has_coding
    shape.until_end = not has_length and not has_coding
    if not has_length:
        shape.content_length = -1
    if shape.until_end:
        shape.closes = True


cdef Py_ssize_t rewrite(
    const uint8_t *p, Py_ssize_t size, const Dropped *dropped,
    const uint8_t *fields, Py_ssize_t fields_size, uint8_t *out,
) noexcept nogil:
    cdef Py_ssize_t at = 0, used = 0
    cdef int i
    for i in range(dropped.count):
        memcpy(out + used, p + at, dropped.spans[i].at - at)
        used += dropped.spans[i].at - at
        at = dropped.spans[i].end
    memcpy(out + used, p + at, size - 2 - at)
    used += size - 2 - at
    if fields_size > 0:
        memcpy(out + used, fields, fields_size)
        used += fields_size
    out[used] = CR
    out[used + 1] = LF
    return used + 2


cdef Py_ssize_t rewrite_request(
    const uint8_t *p, const RequestShape *shape, const uint8_t *fields, Py_ssize_t fields_size,
    uint8_t *out,
) noexcept nogil:
    return rewrite(p, shape.head_size, &shape.dropped, fields, fields_size, out)


cdef Py_ssize_t rewrite_response(
    const uint8_t *p, const ResponseShape *shape, const uint8_t *fields, Py_ssize_t fields_size,
    uint8_t *out,
) noexcept nogil:
    cdef Py_ssize_t size = rewrite(p, shape.head_size, &shape.dropped, fields, fields_size, out)
    out[7] = ZERO + 1  # HTTP/1.1: the version is this hop's (RFC 9110 2.5)
    return size


# -- Bodies -----------------------------------------------------------------------------------


cdef int hexadecimal(uint8_t byte) noexcept nogil:
    """The digit's value, or -1."""
    if ZERO <= byte <= NINE:
        return byte - ZERO
    byte |= 0x20
    return byte - 0x57 if c"a" <= byte <= c"f" else -1


cdef bint read_size(ChunkState *state, uint8_t byte) noexcept nogil:
    """A byte of a size line before its CR: digits, then blanks, then an extension."""
    cdef int digit
    if state.step == SIZE:
        digit = hexadecimal(byte)
        if digit >= 0:
            state.left = (state.left << 4) | <uint64_t>digit
            state.digits += 1
            return state.digits <= MAX_SIZE_DIGITS
        if state.digits == 0:
            return False
    state.extension += 1
    if state.extension > MAX_EXTENSION:
        return False
    if state.step == EXTENSION:
        return is_text(byte)
    if byte == SEMICOLON:
        state.step = EXTENSION
        return True
    state.step = BLANKS
    return state.padded and (byte == SP or byte == HTAB)


cdef bint read_framing(ChunkState *state, uint8_t byte) noexcept nogil:
    """One byte that is not content; False when it must not stand here (RFC 9112 7.1)."""
    if state.step <= EXTENSION:
        if byte != CR:
            return read_size(state, byte)
        state.step = SIZE_LF
        return state.digits > 0
    if state.step == CONTENT_CR or state.step == LAST_CR:
        state.step += 1
        return byte == CR
    if state.step == SIZE_LF:
        state.step = CONTENT if state.left else LAST_CR
        state.digits = state.extension = 0
    elif state.step == CONTENT_LF:
        state.step = SIZE
    else:
        state.done = byte == LF
    return byte == LF


cdef Py_ssize_t scan_chunked(
    ChunkState *state, const uint8_t *p, Py_ssize_t size
) noexcept nogil:
    cdef Py_ssize_t at = 0, take
    while at < size and not state.done and not state.broken:
        if state.step == CONTENT:
            take = size - at
            if <uint64_t>take >= state.left:
                take = <Py_ssize_t>state.left
                state.step = CONTENT_CR
            state.left -= <uint64_t>take
            at += take
        elif read_framing(state, p[at]):
            at += 1
        else:
            state.broken = True
    return at


# -- The face to Python -----------------------------------------------------------------------


cdef object verdict_name(Verdict verdict):
    return "incomplete" if verdict == INCOMPLETE else "declined"


def read_request(bytes data not None, bytes host not None):
    cdef RequestShape shape
    cdef Verdict verdict = scan_request(
        <const uint8_t *>PyBytes_AS_STRING(data), len(data),
        <const uint8_t *>PyBytes_AS_STRING(host), len(host), &shape,
    )
    if verdict != ACCEPTED:
        return verdict_name(verdict)
    return {
        "head_size": shape.head_size,
        "line_size": shape.line_size,
        "method_size": shape.method_size,
        "target_at": shape.target_at,
        "target_size": shape.target_size,
        "path_size": shape.path_size,
        "content_length": shape.content_length,
        "chunked": shape.chunked,
        "is_head": shape.is_head,
        "closes": shape.closes,
    }


def read_response(bytes data not None, *, bint to_head=False):
    cdef ResponseShape shape
    cdef Verdict verdict = scan_response(
        <const uint8_t *>PyBytes_AS_STRING(data), len(data), to_head, &shape
    )
    if verdict != ACCEPTED:
        return verdict_name(verdict)
    return {
        "head_size": shape.head_size,
        "status": shape.status,
        "content_length": shape.content_length,
        "chunked": shape.chunked,
        "until_end": shape.until_end,
        "bodiless": shape.bodiless,
        "closes": shape.closes,
        "is_old": shape.is_old,
        "has_hop": shape.has_hop,
        "sets_domain": shape.sets_domain,
    }


def relayed_request(bytes data not None, bytes host not None, bytes fields=b""):
    cdef RequestShape shape
    cdef bytes out
    cdef Py_ssize_t size
    if scan_request(
        <const uint8_t *>PyBytes_AS_STRING(data), len(data),
        <const uint8_t *>PyBytes_AS_STRING(host), len(host), &shape,
    ) != ACCEPTED:
        return None
    out = PyBytes_FromStringAndSize(NULL, shape.head_size + len(fields))
    size = rewrite_request(
        <const uint8_t *>PyBytes_AS_STRING(data), &shape,
        <const uint8_t *>PyBytes_AS_STRING(fields), len(fields),
        <uint8_t *>PyBytes_AS_STRING(out),
    )
    return out[:size]


def relayed_response(bytes data not None, *, bint to_head=False, bytes fields=b""):
    cdef ResponseShape shape
    cdef bytes out
    cdef Py_ssize_t size
    if scan_response(
        <const uint8_t *>PyBytes_AS_STRING(data), len(data), to_head, &shape
    ) != ACCEPTED:
        return None
    out = PyBytes_FromStringAndSize(NULL, shape.head_size + len(fields))
    size = rewrite_response(
        <const uint8_t *>PyBytes_AS_STRING(data), &shape,
        <const uint8_t *>PyBytes_AS_STRING(fields), len(fields),
        <uint8_t *>PyBytes_AS_STRING(out),
    )
    return out[:size]


@cython.final
cdef class ChunkScanner:
    cdef ChunkState state

    def __init__(self, *, bint padded=False):
        memset(&self.state, 0, sizeof(ChunkState))
        self.state.padded = padded

    def feed(self, bytes data not None):
        return scan_chunked(
            &self.state, <const uint8_t *>PyBytes_AS_STRING(data), len(data)
        )

    @property
    def done(self):
        return self.state.done

    @property
    def broken(self):
        return self.state.broken
