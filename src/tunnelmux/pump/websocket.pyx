"""RFC 6455 data framing: binary payload out of frames and into frames, without any I/O.

The docstrings of the public names are in `websocket.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport UINT16_MAX, uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size) except NULL
    char *bytes_data "PyBytes_AS_STRING"(PyObject *data)
    int _PyBytes_Resize(PyObject **data, Py_ssize_t size) except -1

OPCODE_CONTINUATION = 0
OPCODE_TEXT = 1
OPCODE_BINARY = 2
OPCODE_CLOSE = 8
OPCODE_PING = 9
OPCODE_PONG = 10

cdef enum:
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10

cdef enum:
    FIN_BIT = 0x80
    RSV_BITS = 0x70
    MASK_BIT = 0x80


cdef void xor_copy(
    uint8_t *out, const uint8_t *data, Py_ssize_t size, const uint8_t *mask, Py_ssize_t phase
) noexcept nogil:
    """Copy *size* bytes XORed with *mask*, of which the first *phase* bytes were used already."""
    cdef uint8_t pattern[8]
    cdef uint64_t wide, word
    cdef Py_ssize_t i
    for i in range(8):
        pattern[i] = mask[(phase + i) & 3]
    memcpy(&wide, pattern, 8)
    for i in range(0, size - 7, 8):  # memcpy keeps it legal for unaligned data, and compiles away
        memcpy(&word, data + i, 8)
        word ^= wide
        memcpy(out + i, &word, 8)
    for i in range(size & ~<Py_ssize_t>7, size):
        out[i] = data[i] ^ pattern[i & 7]


def apply_mask(const uint8_t[::1] data not None, bytes mask not None):
    if len(mask) != 4:
        raise ValueError(f"a mask has 4 bytes, not {len(mask)}")
    cdef Py_ssize_t size = data.shape[0]
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
    if size:
        xor_copy(
            <uint8_t *>PyBytes_AS_STRING(out), &data[0], size,
            <const uint8_t *>PyBytes_AS_STRING(mask), 0,
        )
    return out


cdef Py_ssize_t write_frame_head(
    uint8_t *end, Py_ssize_t size, const uint8_t *mask
) noexcept nogil:
    """Write the head of a binary message of *size* bytes so that it ends at *end*. Returns its size.

    There must be room for MAX_FRAME_HEAD bytes before *end*. *mask* may be NULL."""
    cdef Py_ssize_t length = 2 if size <= MAX_CONTROL else 4 if size <= UINT16_MAX else 10
    cdef Py_ssize_t whole = length + (4 if mask != NULL else 0)
    cdef Py_ssize_t i
    cdef uint8_t *p = end - whole
    p[0] = FIN_BIT | BINARY
    p[1] = <uint8_t>size if length == 2 else 126 if length == 4 else 127
    for i in range(2, length):
        p[i] = <uint8_t>(<uint64_t>size >> (8 * (length - 1 - i)))
    if mask != NULL:
        p[1] |= MASK_BIT
        memcpy(p + length, mask, 4)
    return whole


def encode_binary(const uint8_t[::1] payload not None, bytes mask=None):
    cdef Py_ssize_t size = payload.shape[0]
    cdef uint8_t head[MAX_FRAME_HEAD]
    cdef const uint8_t *key = NULL
    cdef Py_ssize_t used
    cdef bytes out
    cdef uint8_t *p
    if mask is not None:
        if len(mask) != 4:
            raise ValueError(f"a mask has 4 bytes, not {len(mask)}")
        key = <const uint8_t *>PyBytes_AS_STRING(mask)
    used = write_frame_head(head + MAX_FRAME_HEAD, size, key)
    out = PyBytes_FromStringAndSize(NULL, used + size)
    p = <uint8_t *>PyBytes_AS_STRING(out)
    memcpy(p, head + MAX_FRAME_HEAD - used, used)
    if size == 0:
        return out
    if key != NULL:
        xor_copy(p + used, &payload[0], size, key, 0)
    else:
        memcpy(p + used, &payload[0], size)
    return out


@cython.final
cdef class FrameReader:
    # Between frames `head_have` is 0 and `left` is 0. A control frame gathers in `part`. A whole
    # Ping or Pong takes the place of the one before it that was not taken: the latest is all that an
    # answer needs (RFC 6455 section 5.5.3). A whole Close stays in `part`, because nothing is read
    # after it. So a peer can make us keep three frames, however many it sends. A frame that
    # `check_head` or `begin_frame` refused is never begun: `lost` stops the reading.

    def __init__(self, *, bint masked):
        self.masked = masked
        self.head_need = 2

    @property
    def has_control(self):
        return self.has_control_()

    cdef bint has_control_(self) noexcept:
        return self.ping_size > 0 or self.pong_size > 0 or self.closing_size > 0

    def take_control(self):
        cdef bytes pings = self.ping[:self.ping_size] + self.pong[:self.pong_size]
        cdef bytes closing = self.part[:self.closing_size]
        self.ping_size = self.pong_size = self.closing_size = 0
        return pings + closing

    def receive_data(self, const uint8_t[::1] data not None):
        cdef Py_ssize_t size = data.shape[0]
        cdef PyObject *out
        cdef Py_ssize_t used
        if size == 0 or self.close is not None:
            return b""
        out = new_bytes(NULL, size)
        try:
            used = self.split(&data[0], size, <uint8_t *>bytes_data(out))
            _PyBytes_Resize(&out, used)
            return <object>out
        finally:
            Py_XDECREF(out)

    cdef Py_ssize_t split(self, const uint8_t *data, Py_ssize_t size, uint8_t *out) except -1:
        """Write the payload in *data* to *out*. Returns its size."""
        cdef Py_ssize_t used = 0, written = 0
        while used < size and self.goes_on():
            used += self.take_head(data + used, size - used)
            if self.left and self.goes_on():
                used += self.take_body(data + used, size - used, out + written)
                written += self.given
        return written

    cdef bint goes_on(self) noexcept:
        """Whether the bytes that come next can still be read."""
        return self.close is None and not self.lost

    cdef Py_ssize_t take_head(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Read up to the first byte of a frame's body. Returns how many bytes of *data* that took."""
        cdef Py_ssize_t used = 0
        while used < size and self.left == 0 and self.goes_on():
            self.head[self.head_have] = data[used]
            self.head_have += 1
            used += 1
            self.steps += 1
            if self.head_have == 2:
                self.check_head()
            if self.head_have == self.head_need and not self.lost:
                self.begin_frame()
        return used

    cdef Py_ssize_t take_body(
        self, const uint8_t *data, Py_ssize_t size, uint8_t *out
    ) except -1:
        """Read on in the current frame's body. Returns how many bytes of *data* that took.

        Payload goes to *out*, which may be *data* itself; `given` says how many bytes it was."""
        cdef Py_ssize_t take = size if <uint64_t>size < self.left else <Py_ssize_t>self.left
        self.given = 0
        if self.kind == PAYLOAD:
            if self.masked or out != data:
                xor_copy(out, data, take, self.mask, self.phase)
                self.steps += take
            self.given = take
        elif self.kind == CONTROL:
            memcpy(self.part + self.part_size, data, take)  # bounded by check_head
            self.part_size += take
            self.steps += take
            if self.opcode == CLOSE:  # at most MAX_CONTROL bytes in all: see check_head
                xor_copy(self.close_payload + self.close_size, data, take, self.mask, self.phase)
                self.steps += take
                self.close_size += take
        self.phase = (self.phase + take) & 3
        self.left -= take
        if self.left == 0:
            self.end_frame()
        return take

    cdef int fail(self, int code, str sentence) except -1:
        """Keep the first thing that the peer did wrong. After a 1002 nothing more is read, because
        the beginning of the next frame is unknown."""
        if self.error is None:
            self.error = (code, sentence)
        if code == 1002:
            self.lost = True
        return 0

    cdef int check_head(self) except -1:
        """Check the first two bytes of a frame (section 5.2), which say how long its head is."""
        cdef uint8_t first = self.head[0], second = self.head[1]
        cdef uint8_t length = second & ~MASK_BIT
        self.opcode = first & 0x0F
        self.head_need = 2 + (2 if length == 126 else 8 if length == 127 else 0)
        self.head_need += 4 if self.masked else 0
        if first & RSV_BITS:
            return self.fail(1002, "a frame had a reserved bit set")
        if (second & MASK_BIT != 0) != self.masked:
            return self.fail(1002, f"a frame was {'not ' if self.masked else ''}masked")
        if self.opcode >= CLOSE:
            if self.opcode > PONG:
                return self.fail(1002, f"a frame had the reserved opcode {self.opcode}")
            if not first & FIN_BIT or length > MAX_CONTROL:
                return self.fail(1002, "a control frame was fragmented or too long")
            self.kind = CONTROL
            return 0
        if self.opcode > BINARY:
            return self.fail(1002, f"a frame had the reserved opcode {self.opcode}")
        if (self.opcode == CONTINUATION) != self.in_message:
            return self.fail(1002, "a message was continued that had not begun, or not ended")
        if self.opcode == TEXT:
            self.in_text = True
            self.fail(1003, "a text message came, and a tunnel carries binary messages only")
        elif self.opcode == BINARY:
            self.in_text = False
        self.in_message = not first & FIN_BIT
        self.kind = SKIPPED if self.in_text or self.error is not None else PAYLOAD
        return 0

    cdef int begin_frame(self) except -1:
        """Read the complete head of a frame."""
        cdef uint8_t length = self.head[1] & ~MASK_BIT
        cdef Py_ssize_t i, end = 4 if length == 126 else 10 if length == 127 else 2
        self.left = length if end == 2 else 0
        for i in range(2, end):
            self.left = (self.left << 8) | self.head[i]
        if (end == 4 and self.left < 126) or (end == 10 and self.left <= UINT16_MAX):
            return self.fail(1002, "a frame's length was not written in its shortest form")
        if self.left >> 63:
            return self.fail(1002, "a frame's length had its highest bit set")
        for i in range(4):
            self.mask[i] = self.head[end + i] if self.masked else 0
        self.phase = 0
        if self.kind == CONTROL:
            memcpy(self.part, self.head, self.head_have)
            self.part_size = self.head_have
            self.steps += self.head_have
        self.head_have = 0
        self.head_need = 2
        if self.left == 0:
            self.end_frame()
        return 0

    cdef int end_frame(self) except -1:
        if self.kind != CONTROL:
            return 0
        if self.opcode == PING:
            memcpy(self.ping, self.part, self.part_size)
            self.ping_size = self.part_size
            self.steps += self.part_size
        elif self.opcode == PONG:
            memcpy(self.pong, self.part, self.part_size)
            self.pong_size = self.part_size
            self.steps += self.part_size
        else:
            self.closing_size = self.part_size
            if self.close_size == 1:
                self.fail(1002, "a Close frame held half a code")
            elif self.close_size:
                code = (self.close_payload[0] << 8) | self.close_payload[1]
                text = self.close_payload[2:self.close_size]
                self.close = (code, text.decode("utf-8", "replace"))
            else:
                self.close = (1005, "")
        return 0
