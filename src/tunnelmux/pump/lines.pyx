"""The log's lines about requests, written by the code that carries the requests.

The docstrings of the public names are in `lines.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

cdef enum:
    DIGITS = 20  # of the longest number
    AROUND = 256  # bytes of a line beside its texts: names and numbers
    ESCAPED = 6  # bytes that one byte of a text becomes at most
    LONGEST_TEXT = 4096  # as `observability.logs` has it

cdef double RESOLUTION = 0.001  # seconds for which a time of day is good

cdef const char *HEX = b"0123456789abcdef"


@cython.final
cdef class LineBuffer:
    # `stamp` is the time of day as it was at `stamped_at`.

    def __init__(self, clock):
        self.clock = clock

    def __dealloc__(self):
        PyMem_RawFree(self.base)

    def __len__(self):
        return self.size

    def add_request(self, bytes about not None, uint32_t stream, bytes method not None, bytes path not None,
                    int status, int64_t bytes_in, int64_t bytes_out, double began, double now):
        self.add(about, stream, method, path, status, bytes_in, bytes_out, began, now)

    def take(self):
        cdef bytes lines = PyBytes_FromStringAndSize(<char *>self.base, self.size)
        self.size = 0
        self.doubtful = False
        return lines

    cdef int add(
        self, bytes about, uint32_t stream, bytes method, bytes path, int status, int64_t bytes_in,
        int64_t bytes_out, double began, double now
    ) except -1:
        cdef int64_t steps = <int64_t>(max(now - began, 0.0) * 10_000 + 0.5)
        cdef int64_t rest = steps % 10_000
        if self.stamp is None or now - self.stamped_at > RESOLUTION:
            self.stamp = self.clock()
            self.stamped_at = now
        self.reserve(
            AROUND + len(self.stamp) + len(about)
            + ESCAPED * (min(len(method), LONGEST_TEXT) + min(len(path), LONGEST_TEXT))
        )
        self.put(b'{"timestamp": "', 15)
        self.put_bytes(self.stamp)
        self.put(b'", ', 3)
        self.put_bytes(about)
        self.put(b', "stream": ', 12)
        self.put_number(stream)
        self.put(b', "method": "', 13)
        self.put_quoted(method)
        self.put(b'", "path": "', 12)
        self.put_quoted(path)
        self.put(b'", "status": ', 13)
        self.put_number(status)
        self.put(b', "bytes_in": ', 14)
        self.put_number(bytes_in)
        self.put(b', "bytes_out": ', 15)
        self.put_number(bytes_out)
        self.put(b', "seconds": ', 13)
        self.put_number(steps // 10_000)
        self.put(b".000", 4 - (rest > 9) - (rest > 99) - (rest > 999))
        self.put_number(rest)
        self.put(b"}\n", 2)
        return 0

    cdef int reserve(self, Py_ssize_t size) except -1:
        """Make room for *size* more bytes."""
        cdef Py_ssize_t capacity = max(self.capacity, 4096)
        cdef void *grown
        while capacity < self.size + size:
            capacity *= 2
        if capacity == self.capacity:
            return 0
        grown = PyMem_RawRealloc(self.base, capacity)
        if grown == NULL:
            raise MemoryError()
        self.base = <uint8_t *>grown
        self.capacity = capacity
        return 0

    # The caller has reserved room for what these write.

    cdef void put(self, const char *text, Py_ssize_t size) noexcept:
        memcpy(self.base + self.size, text, size)
        self.size += size

    cdef void put_bytes(self, bytes text) noexcept:
        self.put(PyBytes_AS_STRING(text), len(text))

    cdef void put_quoted(self, bytes text) noexcept:
        """Write the inside of a JSON string, in ASCII (RFC 8259 section 7); bytes are Latin-1. Of a
        long one, write its beginning."""
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(text)
        cdef uint8_t *out = self.base + self.size
        cdef Py_ssize_t i
        cdef uint8_t c
        for i in range(min(len(text), LONGEST_TEXT)):
            c = p[i]
            if c == c"=" or c == c":":
                self.doubtful = True
            if c == c'"' or c == c"\\":
                out[0] = c"\\"
                out[1] = c
                out += 2
            elif 0x20 <= c < 0x7F:
                out[0] = c
                out += 1
            else:
                memcpy(out, b"\\u00", 4)
                out[4] = HEX[c >> 4]
                out[5] = HEX[c & 15]
                out += 6
        self.size = out - self.base
        if len(text) > LONGEST_TEXT:
            self.put(b"\\u2026", 6)

    cdef void put_number(self, int64_t number) noexcept:
        """Write a number that is not negative, in decimal."""
        cdef char digits[DIGITS]
        cdef int at = DIGITS
        while True:
            at -= 1
            digits[at] = c"0" + number % 10
            number = number // 10
            if number <= 0:
                break
        self.put(digits + at, DIGITS - at)
