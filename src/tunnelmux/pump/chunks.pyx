"""Chunked bodies, followed while they pass, without any I/O.

The docstrings of the public names are in `chunks.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_AsStringAndSize, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

cdef enum:
    HTAB = 0x09
    LF = 0x0A
    CR = 0x0D
    SP = 0x20
    ZERO = 0x30
    NINE = 0x39
    SEMICOLON = 0x3B

cdef enum:
    MAX_DIGITS = 15  # of a size: fits 63 bits, whatever the next reader computes with
    MAX_LINE = 256  # bytes of a size line, its digits included


cdef int hexadecimal(uint8_t byte) noexcept nogil:
    """The digit's value, or -1."""
    if ZERO <= byte <= NINE:
        return byte - ZERO
    byte |= 0x20
    return byte - 0x57 if c"a" <= byte <= c"f" else -1


cdef ChunkStep after_size_byte(ChunkState *state, uint8_t byte) noexcept nogil:
    """A byte of a size line before its CR: digits, then blanks, then an extension."""
    cdef int digit
    if state.line == MAX_LINE:
        return BROKEN
    state.line += 1
    if state.step == SIZE:
        digit = hexadecimal(byte)
        if digit >= 0:
            state.left = (state.left << 4) | <uint64_t>digit
            state.digits += 1
            return SIZE if state.digits <= MAX_DIGITS else BROKEN
        if state.digits == 0:
            return BROKEN
    if state.step == EXTENSION:
        return EXTENSION if byte != LF else BROKEN
    if byte == SEMICOLON:
        return EXTENSION
    return BLANKS if byte == SP or byte == HTAB else BROKEN


cdef ChunkStep after_byte(ChunkState *state, uint8_t byte) noexcept nogil:
    """The step behind one byte that is not content (RFC 9112 7.1)."""
    if state.step <= EXTENSION:
        if byte != CR:
            return after_size_byte(state, byte)
        return SIZE_LF if state.digits > 0 else BROKEN
    if state.step == CONTENT_CR:
        return CONTENT_LF if byte == CR else BROKEN
    if state.step == END:
        return END_LF if byte == CR else TRAILERS
    if byte != LF:
        return BROKEN
    if state.step == SIZE_LF:
        state.digits = state.line = 0
        return CONTENT if state.left else END
    return SIZE if state.step == CONTENT_LF else DONE


cdef Py_ssize_t read_chunked(
    ChunkState *state, const uint8_t *p, Py_ssize_t size, bint *kept
) noexcept nogil:
    cdef Py_ssize_t at = 0, take
    cdef ChunkStep step
    cdef bint keeps
    while at < size and state.step < TRAILERS:
        if state.step == CONTENT:
            if at and not kept[0]:
                break
            kept[0] = True
            take = size - at
            if <uint64_t>take >= state.left:
                take = <Py_ssize_t>state.left
                state.step = CONTENT_CR
            state.left -= <uint64_t>take
            at += take
            continue
        # The step before this byte does not yet say what it is: a blank, say, ends the digits.
        keeps = p[at] == CR or not (
            state.step == BLANKS or state.step == EXTENSION
            or state.step == SIZE and hexadecimal(p[at]) < 0
        )
        if at and keeps != kept[0]:
            break
        step = after_byte(state, p[at])
        state.step = step
        if step == TRAILERS or step == BROKEN:
            break
        kept[0] = keeps
        at += 1
    return at


cdef Py_ssize_t content_at(
    const uint8_t *p, Py_ssize_t size, Py_ssize_t at, Py_ssize_t *length
) noexcept nogil:
    """Where the content of the chunk at *at* begins, and its length; -1 unless the chunk is here whole,
    as it must be, and not the last one."""
    cdef uint64_t left = 0
    cdef int digits = 0, digit
    cdef Py_ssize_t line = at
    while at < size:
        digit = hexadecimal(p[at])
        if digit < 0:
            break
        if digits == MAX_DIGITS:
            return -1
        left = (left << 4) | <uint64_t>digit
        digits += 1
        at += 1
    while at < size and (p[at] == SP or p[at] == HTAB):
        at += 1
    if at < size and p[at] == SEMICOLON:
        while at < size and p[at] != CR and p[at] != LF and at - line < MAX_LINE:
            at += 1
    if left == 0 or at - line > MAX_LINE or size - at < 2 or p[at] != CR or p[at + 1] != LF:
        return -1
    at += 2
    if size - at < 2 or left > <uint64_t>(size - at - 2):
        return -1
    length[0] = <Py_ssize_t>left
    return at if p[at + length[0]] == CR and p[at + length[0] + 1] == LF else -1


def whole_chunks(data not None, Py_ssize_t at):
    cdef char *raw
    cdef const uint8_t *p
    cdef Py_ssize_t size, begin, length = 0, total = 0, end = at
    cdef char *out
    cdef bytes content
    PyBytes_AsStringAndSize(data, &raw, &size)
    p = <const uint8_t *>raw
    if at < 0:
        raise ValueError("at is negative")
    while (begin := content_at(p, size, end, &length)) >= 0:
        total += length
        end = begin + length + 2
    content = PyBytes_FromStringAndSize(NULL, total)
    out = PyBytes_AS_STRING(content)
    while at < end:  # the same again, which cannot fail
        begin = content_at(p, size, at, &length)
        memcpy(out, raw + begin, length)
        out += length
        at = begin + length + 2
    return content, end


@cython.final
cdef class ChunkScanner:
    cdef ChunkState state

    def __init__(self):
        memset(&self.state, 0, sizeof(ChunkState))

    def feed(self, bytes data not None):
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef Py_ssize_t at = 0, size
        cdef bint kept = False
        cdef list going = []
        while (size := read_chunked(&self.state, p + at, len(data) - at, &kept)) > 0:
            if kept:
                going.append(data[at:at + size])
            at += size
        return at, b"".join(going)

    @property
    def done(self):
        return self.state.step == DONE

    @property
    def at_trailers(self):
        return self.state.step == TRAILERS

    @property
    def broken(self):
        return self.state.step == BROKEN
