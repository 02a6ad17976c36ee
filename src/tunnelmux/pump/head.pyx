"""A strict scanner of HTTP/1.1 heads, without any I/O.

The docstrings of the public names are in `head.pyi`. Every index below `size` is checked where it
is used; the C functions take no Python object and cannot fail.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from tunnelmux.pump.cookies cimport (
    is_access_cookie, is_member_cookie, is_own_cookie, names_domain, next_pair, sets_own_cookie,
)
from tunnelmux.pump.field_names cimport (
    CLEAR_SITE_DATA, CONNECTION, CONTENT_LENGTH, DISGUISED, EXPECT, FORWARDING, HEAD_ONLY, HOP, HOST,
    KEEP_ALIVE, ORDINARY, OWN, SET_COOKIE, TRAILER, TRANSFER_ENCODING, FieldKind, kind_of,
)
from tunnelmux.pump.spans cimport MAX_DROPPED, Span, add_line, note_line, rewrite

cdef enum:
    HTAB = 0x09
    LF = 0x0A
    CR = 0x0D
    SP = 0x20
    HASH = 0x23
    COMMA = 0x2C
    DASH = 0x2D
    DOT = 0x2E
    SLASH = 0x2F
    ZERO = 0x30
    NINE = 0x39
    COLON = 0x3A
    A = 0x41
    Z = 0x5A
    OPENING = 0x5B  # "["
    CLOSING = 0x5D  # "]"
    UNDERSCORE = 0x5F
    DEL = 0x7F
    LONGEST_METHOD = 64  # as in `http.head`
    MAX_LENGTH_DIGITS = 18  # of Content-Length: fits 63 bits

cdef struct FieldLine:
    FieldKind kind
    Py_ssize_t name_at
    Py_ssize_t name_size
    Py_ssize_t value_at
    Py_ssize_t value_end
    bint odd  # there is whitespace around the value, other than one SP before it

cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGHS = 0x8080808080808080

# The bytes of a token (RFC 9110 5.6.2), letters in lower case and "_" as "-"; 0 for all others.
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


# -- Names and values -------------------------------------------------------------------------

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
    """Whether these bytes are *name*, in any case. *name* itself is in lower case."""
    cdef Py_ssize_t i
    for i in range(size):
        if FOLDED[p[i]] != <uint8_t>name[i]:
            return False
    return True


cdef bint is_named(
    const uint8_t *p, const FieldLine *line, const char *name, Py_ssize_t size
) noexcept nogil:
    """Whether the field has this name, in any case. *name* itself is in lower case."""
    return line.name_size == size and is_name(p + line.name_at, name, size)


cdef bint is_value(
    const uint8_t *p, const FieldLine *line, const char *value, Py_ssize_t size
) noexcept nogil:
    """Whether the field's value is *value*, in any case. *value* itself is in lower case."""
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


cdef bint is_host(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    """Whether this is a name in ASCII or an address, with an optional port (RFC 9110 7.2)."""
    cdef Py_ssize_t at = 0
    if size > 0 and p[0] == OPENING:
        at = 1
        while at < size and (p[at] == COLON or p[at] == DOT or hexadecimal(p[at])):
            at += 1
        if at == 1 or at == size or p[at] != CLOSING:
            return False
        at += 1
    else:
        while at < size and (p[at] == DASH or p[at] == DOT or is_letter_or_digit(p[at])):
            at += 1
        if at == 0:
            return False
    if at < size and p[at] == COLON:
        at += 1
        while at < size and ZERO <= p[at] <= NINE:
            at += 1
    return at == size


cdef inline bint is_letter_or_digit(uint8_t byte) noexcept nogil:
    return ZERO <= byte <= NINE or c"a" <= (byte | 0x20) <= c"z"


cdef inline bint hexadecimal(uint8_t byte) noexcept nogil:
    return ZERO <= byte <= NINE or c"a" <= (byte | 0x20) <= c"f"


cdef bint names_login(const uint8_t *p, const FieldLine *line) noexcept nogil:
    """Whether the value begins with a scheme whose login belongs to the connection."""
    cdef Py_ssize_t at = line.value_at
    while at < line.value_end and FOLDED[p[at]]:
        at += 1
    at -= line.value_at
    return (at == 4 and is_name(p + line.value_at, b"ntlm", 4)) or (
        at == 9 and is_name(p + line.value_at, b"negotiate", 9)
    )


# -- Lines ------------------------------------------------------------------------------------


cdef bint next_line(const uint8_t *p, Py_ssize_t size, Progress *progress) noexcept nogil:
    """Whether a whole line stands at `progress.at`; it ends at `progress.looked` then."""
    cdef const uint8_t *found = <const uint8_t *>memchr(
        p + progress.looked, LF, size - progress.looked
    )
    cdef Py_ssize_t stop = found - p + 1 if found != NULL else size
    progress.steps += stop - progress.looked
    progress.looked = stop
    return found != NULL


cdef Py_ssize_t find_head_end(
    const uint8_t *p, Py_ssize_t size, Py_ssize_t *looked, int64_t *steps
) noexcept nogil:
    cdef const uint8_t *found
    cdef Py_ssize_t at = looked[0]
    while at < size:
        found = <const uint8_t *>memchr(p + at, LF, size - at)
        if found == NULL:
            steps[0] += size - at
            at = size
            break
        steps[0] += found - p - at + 1
        at = found - p
        if size - at > 1 and p[at + 1] == LF:
            return at + 2
        if size - at > 2 and p[at + 1] == CR and p[at + 2] == LF:
            return at + 3
        if size - at < 2 or (size - at == 2 and p[at + 1] == CR):
            break  # the line that follows may be the blank one
        at += 1
    looked[0] = at
    return -1


cdef bint read_field(
    const uint8_t *p, Py_ssize_t start, Py_ssize_t end, FieldLine *line
) noexcept nogil:
    """Read one field line (RFC 9112 5) from *start* to *end*, the byte behind its LF. False when it is
    malformed; a folded line is, because it begins without a name."""
    cdef Py_ssize_t at = start
    while FOLDED[p[at]]:
        at += 1
    if at == start or p[at] != COLON:
        return False
    line.name_at = start
    line.name_size = at - start
    line.kind = kind_of(p + start, at - start)
    at += 1
    if p[at] == SP:
        at += 1
    line.odd = p[at] == SP or p[at] == HTAB
    while p[at] == SP or p[at] == HTAB:
        at += 1
    line.value_at = at
    at = text_end(p, at, end)
    if at != end - 2 or p[at] != CR:
        return False
    while at > line.value_at and (p[at - 1] == SP or p[at - 1] == HTAB):
        at -= 1
        line.odd = True
    line.value_end = at
    return True


cdef bint read_request_line(
    const uint8_t *p, Py_ssize_t size, RequestShape *shape
) noexcept nogil:
    """Read METHOD SP /TARGET SP HTTP/1.1 CRLF (RFC 9112 3) of *size* bytes; no CONNECT."""
    cdef Py_ssize_t at = 0
    cdef const uint8_t *query
    # Every registered method has only these. Some servers would take "head" for HEAD.
    while A <= p[at] <= Z or p[at] == DASH:
        at += 1
    if not 0 < at <= LONGEST_METHOD or p[at] != SP or (at == 7 and memcmp(p, b"CONNECT", 7) == 0):
        return False
    shape.method_size = at
    shape.is_head = at == 4 and memcmp(p, b"HEAD", 4) == 0
    at += 1
    shape.target_at = at
    if p[at] != SLASH:
        return False
    while SP < p[at] < DEL and p[at] != HASH:
        at += 1
    shape.target_size = at - shape.target_at
    if shape.target_size >= 23 and memcmp(p + shape.target_at, b"/.well-known/tunnelmux/", 23) == 0:
        return False  # the proxy itself may answer it
    if size - at != 11 or memcmp(p + at, b" HTTP/1.1\r\n", 11) != 0:
        return False
    query = <const uint8_t *>memchr(p + shape.target_at, c"?", shape.target_size)
    shape.path_size = query - p - shape.target_at if query != NULL else shape.target_size
    shape.line_size = size
    return True


cdef bint read_status_line(
    const uint8_t *p, Py_ssize_t size, ResponseShape *shape
) noexcept nogil:
    """Read HTTP/1.x SP 3DIGIT SP reason CRLF (RFC 9112 4) of *size* bytes."""
    cdef Py_ssize_t i
    if size < 15 or memcmp(p, b"HTTP/1.", 7) != 0 or p[8] != SP or p[12] != SP:
        return False
    if p[7] != ZERO and p[7] != ZERO + 1:
        return False
    for i in range(9, 12):
        if not ZERO <= p[i] <= NINE:
            return False
        shape.status = shape.status * 10 + (p[i] - ZERO)
    shape.is_old = p[7] == ZERO
    if not 100 <= shape.status <= 599:
        return False
    if shape.status == 101 or (shape.status < 200 and shape.is_old):
        return False
    return text_end(p, 13, size) == size - 2 and p[size - 2] == CR


# -- Heads ------------------------------------------------------------------------------------


cdef bint note_cookies(
    const uint8_t *p, const FieldLine *line, Py_ssize_t at, Py_ssize_t end, RequestShape *shape
) noexcept nogil:
    """Leave the proxy's own cookies out of this field. False when that takes too many places, or
    when there are two access cookies."""
    cdef Py_ssize_t look = line.value_at, start = 0, stop = 0
    cdef Py_ssize_t kept = -1, drop = line.value_at  # where the last pair that stays ends
    cdef bint dropping = False
    while next_pair(p, &look, line.value_end, &start, &stop):
        if is_own_cookie(p + start, stop - start):
            if is_access_cookie(p + start, stop - start):
                if shape.cookie.end:
                    return False
                shape.cookie.at, shape.cookie.end = start, stop
            elif shape.member.end == 0 and is_member_cookie(p + start, stop - start):
                shape.member.at, shape.member.end = start, stop
            if kept >= 0 and not note_line(&shape.dropped, drop, stop):
                return False
            drop = stop
            dropping = True
            continue
        if kept < 0 and dropping and not note_line(&shape.dropped, line.value_at, start):
            return False
        kept = drop = stop
    if dropping and kept < 0:
        return note_line(&shape.dropped, at, end)
    return True


cdef bint note_proof(
    const uint8_t *p, const FieldLine *line, Py_ssize_t at, Py_ssize_t end, RequestShape *shape
) noexcept nogil:
    """Note the credentials in this field, if it has any. False when it is the second such field."""
    if is_named(p, line, b"cookie", 6):
        return note_cookies(p, line, at, end, shape)
    if is_named(p, line, b"authorization", 13):
        shape.binds = shape.binds or names_login(p, line)
        if shape.login_line.end:
            return False
        shape.login.at, shape.login.end = line.value_at, line.value_end
        shape.login_line.at, shape.login_line.end = at, end
    return True


cdef bint drop_login(RequestShape *shape) noexcept nogil:
    return not shape.login_line.end or add_line(&shape.dropped, &shape.login_line)


cdef void note_page(
    const uint8_t *p, const FieldLine *line, RequestShape *shape
) noexcept nogil:
    """Note what a browser says of the page that made it send the request."""
    if is_named(p, line, b"sec-fetch-site", 14):
        shape.from_page = True
        shape.from_here = is_value(p, line, b"same-origin", 11) or is_value(p, line, b"none", 4)
    elif is_named(p, line, b"origin", 6):
        shape.from_page = True


cdef bint take_request_field(
    const uint8_t *p, Py_ssize_t at, Py_ssize_t end, RequestShape *shape
) noexcept nogil:
    """Read a request's field. False when it is ambiguous, by itself or with the fields before it."""
    cdef FieldLine line
    cdef Progress *progress = &shape.progress
    cdef Span *place
    if not read_field(p, at, end, &line) or line.odd:
        return False
    if line.kind == ORDINARY:
        note_page(p, &line, shape)
        return True
    if line.kind == TRAILER or line.kind == EXPECT:
        return True
    if line.kind == SET_COOKIE or line.kind == CLEAR_SITE_DATA:  # mean nothing in a request
        return True
    if line.kind == HEAD_ONLY:
        return note_proof(p, &line, at, end, shape)
    if line.kind == HOST:
        if progress.has_host or not is_host(p + line.value_at, line.value_end - line.value_at):
            return False
        shape.host.at, shape.host.end = line.value_at, line.value_end
        progress.has_host = True
    elif line.kind == CONTENT_LENGTH:
        shape.content_length = decimal(p, &line)
        if progress.has_length or shape.chunked or shape.content_length < 0:
            return False
        progress.has_length = True
    elif line.kind == TRANSFER_ENCODING:
        if progress.has_length or shape.chunked or line.value_end - line.value_at != 7:
            return False
        shape.chunked = memcmp(p + line.value_at, b"chunked", 7) == 0
        return shape.chunked
    elif line.kind == HOP or line.kind == DISGUISED:
        return False  # passing these on or leaving them out is not enough
    elif line.kind == CONNECTION:
        shape.closes = is_value(p, &line, b"close", 5)
        if progress.has_connection or not (shape.closes or is_value(p, &line, b"keep-alive", 10)):
            return False
        progress.has_connection = True
        return note_line(&shape.dropped, at, end)
    else:
        if line.kind == FORWARDING and not note_line(&shape.said, at, end):
            return False
        place = NULL
        if line.kind == OWN and is_named(p, &line, b"tunnelmux-device", 16):
            place = &shape.device
        elif line.kind == OWN and is_named(p, &line, b"tunnelmux-service", 17):
            place = &shape.service
        elif line.kind == OWN and is_named(p, &line, b"tunnelmux-access", 16):
            place = &shape.access
        if place != NULL:
            if place.end or line.value_end == line.value_at:
                return False
            place.at, place.end = line.value_at, line.value_end
        return note_line(&shape.dropped, at, end)
    return True


cdef Verdict scan_request(
    const uint8_t *p, Py_ssize_t size, int max_fields, RequestShape *shape
) noexcept nogil:
    cdef Progress *progress = &shape.progress
    cdef Py_ssize_t at
    cdef bint good
    if size > 0 and not (A <= p[0] <= Z or p[0] == DASH):
        return DECLINED  # no request line begins so: do not wait for its end
    while next_line(p, size, progress):
        at = progress.at
        progress.at = progress.looked
        progress.steps += progress.at - at
        if at == 0:
            good = read_request_line(p, progress.at, shape)
        elif p[at] == CR and progress.at - at == 2:
            shape.head_size = progress.at
            return ACCEPTED if progress.has_host else DECLINED
        else:
            progress.fields += 1
            good = progress.fields <= max_fields and take_request_field(p, at, progress.at, shape)
        if not good:
            return DECLINED
    return INCOMPLETE


cdef bint read_connection(
    const uint8_t *p, const FieldLine *line, ResponseShape *shape
) noexcept nogil:
    """Read a response's Connection. False when it names anything but these three. Servers that offer
    an upgrade may say `upgrade` in every answer (RFC 9110 7.8)."""
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


cdef bint take_response_field(
    const uint8_t *p, Py_ssize_t at, Py_ssize_t end, ResponseShape *shape
) noexcept nogil:
    """The same for a response."""
    cdef FieldLine line
    cdef Progress *progress = &shape.progress
    if not read_field(p, at, end, &line) or line.kind == DISGUISED:
        return False
    if line.kind <= HOST or FORWARDING <= line.kind <= EXPECT or line.kind == TRAILER:
        if line.kind == HEAD_ONLY and is_named(p, &line, b"www-authenticate", 16):
            shape.binds = shape.binds or names_login(p, &line)
        elif line.kind == CLEAR_SITE_DATA:
            shape.clears = True
        elif line.kind == SET_COOKIE:
            shape.sets_domain |= names_domain(p + line.value_at, line.value_end - line.value_at)
            shape.sets_own |= sets_own_cookie(p + line.value_at, line.value_end - line.value_at)
        return True
    if line.odd:
        return False
    if line.kind == CONTENT_LENGTH:
        shape.content_length = decimal(p, &line)
        if progress.has_length or progress.has_coding or shape.content_length < 0:
            return False
        progress.has_length = True
        if shape.status == 204:  # may have none (RFC 9110 8.6); some servers send a 0
            return shape.content_length == 0 and note_line(&shape.dropped, at, end)
        return shape.status >= 200
    if line.kind == TRANSFER_ENCODING:
        if progress.has_length or progress.has_coding or shape.is_old or shape.status < 200:
            return False
        if shape.status == 204 or not is_value(p, &line, b"chunked", 7):
            return False
        progress.has_coding = True
        return not shape.bodiless or note_line(&shape.dropped, at, end)
    if line.kind == CONNECTION:
        if progress.has_connection or shape.status < 200 or not read_connection(p, &line, shape):
            return False
        progress.has_connection = True
    elif line.kind == HOP:
        if shape.status < 200:
            return False
        shape.has_hop = True
    elif line.kind != KEEP_ALIVE:  # Tunnelmux-*, which a target must not send
        shape.has_hop = True
    return note_line(&shape.dropped, at, end)


cdef Verdict scan_response(
    const uint8_t *p, Py_ssize_t size, int max_fields, bint to_head, ResponseShape *shape
) noexcept nogil:
    cdef Progress *progress = &shape.progress
    cdef Py_ssize_t at
    cdef bint good
    while next_line(p, size, progress):
        at = progress.at
        progress.at = progress.looked
        progress.steps += progress.at - at
        if at == 0:
            good = read_status_line(p, progress.at, shape)
            shape.closes = shape.is_old
            shape.bodiless = (
                to_head or shape.status < 200 or shape.status == 204 or shape.status == 304
            )
        elif p[at] == CR and progress.at - at == 2:
            shape.head_size = progress.at
            settle(shape)
            return ACCEPTED
        else:
            progress.fields += 1
            good = progress.fields <= max_fields and take_response_field(p, at, progress.at, shape)
        if not good:
            return DECLINED
    return INCOMPLETE


cdef void settle(ResponseShape *shape) noexcept nogil:
    """Decide where the body ends (RFC 9112 6.3), once all fields are known."""
    cdef bint has_length = shape.progress.has_length
    if shape.bodiless:
        shape.announces = shape.content_length > 0 or shape.progress.has_coding  # as http/judge
        shape.content_length = 0
        if shape.status < 200:
            shape.closes = False
        return
    shape.chunked = shape.progress.has_coding
    shape.until_end = not has_length and not shape.chunked
    if not has_length:
        shape.content_length = -1
    if shape.until_end:
        shape.closes = True


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


# -- For Python -------------------------------------------------------------------------------


cdef object verdict_name(Verdict verdict):
    return "incomplete" if verdict == INCOMPLETE else "declined"


@cython.final
cdef class HeadScanner:
    cdef bytes data
    cdef bint of_request
    cdef bint to_head
    cdef int max_fields
    cdef RequestShape request
    cdef ResponseShape response
    cdef Verdict verdict

    def __init__(self, *, bint of_request, bint to_head=False, int max_fields=256):
        self.data = b""
        self.of_request = of_request
        self.to_head = to_head
        self.max_fields = max_fields
        memset(&self.request, 0, sizeof(RequestShape))
        memset(&self.response, 0, sizeof(ResponseShape))

    def feed(self, bytes data not None):
        cdef const uint8_t *p
        if self.verdict == INCOMPLETE:
            self.data += data
            p = <const uint8_t *>PyBytes_AS_STRING(self.data)
            if self.of_request:
                self.verdict = scan_request(p, len(self.data), self.max_fields, &self.request)
            else:
                self.verdict = scan_response(
                    p, len(self.data), self.max_fields, self.to_head, &self.response
                )
        if self.verdict != ACCEPTED:
            return verdict_name(self.verdict)
        return self.request_shape() if self.of_request else self.response_shape()

    @property
    def steps(self):
        if self.of_request:
            return self.request.progress.steps
        return self.response.progress.steps

    def rewritten(self, bytes fields=b""):
        cdef bytes out
        cdef Py_ssize_t size
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(self.data)
        cdef const uint8_t *added = <const uint8_t *>PyBytes_AS_STRING(fields)
        if self.verdict != ACCEPTED:
            return None
        out = PyBytes_FromStringAndSize(NULL, len(self.data) + len(fields))
        if self.of_request:
            size = rewrite_request(
                p, &self.request, added, len(fields), <uint8_t *>PyBytes_AS_STRING(out)
            )
        else:
            size = rewrite_response(
                p, &self.response, added, len(fields), <uint8_t *>PyBytes_AS_STRING(out)
            )
        return out[:size]

    cdef bytes text_of(self, const Span *span):
        return self.data[span.at:span.end]

    cdef dict request_shape(self):
        cdef RequestShape *shape = &self.request
        return {
            "head_size": shape.head_size,
            "line_size": shape.line_size,
            "method_size": shape.method_size,
            "target_at": shape.target_at,
            "target_size": shape.target_size,
            "path_size": shape.path_size,
            "host": self.text_of(&shape.host),
            "device": self.text_of(&shape.device),
            "service": self.text_of(&shape.service),
            "access": self.text_of(&shape.access),
            "login": self.text_of(&shape.login),
            "cookie": self.text_of(&shape.cookie),
            "member": self.text_of(&shape.member),
            "from_page": shape.from_page,
            "from_here": shape.from_here,
            "said": b"".join([self.text_of(&shape.said.spans[i]) for i in range(shape.said.count)]),
            "content_length": shape.content_length,
            "chunked": shape.chunked,
            "is_head": shape.is_head,
            "closes": shape.closes,
            "binds": shape.binds,
        }

    cdef dict response_shape(self):
        cdef ResponseShape *shape = &self.response
        return {
            "head_size": shape.head_size,
            "status": shape.status,
            "content_length": shape.content_length,
            "chunked": shape.chunked,
            "until_end": shape.until_end,
            "bodiless": shape.bodiless, "announces": shape.announces,
            "closes": shape.closes,
            "is_old": shape.is_old,
            "has_hop": shape.has_hop,
            "sets_domain": shape.sets_domain,
            "sets_own": shape.sets_own,
            "clears": shape.clears,
            "binds": shape.binds,
        }


def read_request(bytes data not None):
    return HeadScanner(of_request=True).feed(data)


def read_response(bytes data not None, *, bint to_head=False):
    return HeadScanner(of_request=False, to_head=to_head).feed(data)
