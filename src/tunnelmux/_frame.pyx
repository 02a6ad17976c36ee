"""The 12-byte yamux frame header and the arithmetic of the two flow-control windows.

Plain numbers in, plain numbers out: which frames to send, and when, is the engine's business.
The docstrings of the public names are in `_frame.pyi`.
"""

cimport cython

from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from collections import namedtuple

from tunnelmux.limits import INITIAL_WINDOW as _INITIAL_WINDOW

HEADER_SIZE = HEADER_BYTES
PROTOCOL_VERSION = 0

TYPE_DATA = <int>DATA
TYPE_WINDOW_UPDATE = <int>WINDOW_UPDATE
TYPE_PING = <int>PING
TYPE_GO_AWAY = <int>GO_AWAY

FLAG_SYN = <int>SYN
FLAG_ACK = <int>ACK
FLAG_FIN = <int>FIN
FLAG_RST = <int>RST

GO_AWAY_NORMAL = 0
GO_AWAY_PROTOCOL_ERROR = 1
GO_AWAY_INTERNAL_ERROR = 2

Header = namedtuple("Header", ["version", "type", "flags", "stream_id", "length"])


def encode_header(uint8_t type, uint16_t flags, uint32_t stream_id, uint32_t length):
    cdef bytes out = PyBytes_FromStringAndSize(NULL, HEADER_BYTES)
    write_header(<uint8_t *>PyBytes_AS_STRING(out), type, flags, stream_id, length)
    return out


def decode_header(bytes data not None):
    if len(data) < HEADER_BYTES:
        raise ValueError(f"a frame header has {HEADER_BYTES} bytes, not {len(data)}")
    cdef FrameHeader header = read_header(<const uint8_t *>PyBytes_AS_STRING(data))
    return tuple.__new__(
        Header, (header.version, header.type, header.flags, header.stream_id, header.length)
    )


@cython.final
cdef class SendWindow:
    # The credit is never negative.
    # The credit is never more than 2**32 - 1, the largest sum a peer can mean.

    def __init__(self, uint32_t credit=_INITIAL_WINDOW):
        self.credit_ = credit

    @property
    def credit(self):
        return self.credit_

    def grant(self, uint32_t delta):
        return self.grant_(delta)

    def spend(self, int64_t size):
        if size < 0 or size > self.credit_:
            raise ValueError(f"cannot spend {size} bytes of a credit of {self.credit_}")
        self.spend_(size)

    cdef bint grant_(self, uint32_t delta) noexcept:
        if self.credit_ + delta > UINT32_MAX:
            return False
        self.credit_ += delta
        return True

    cdef void spend_(self, int64_t size) noexcept:
        self.credit_ -= size


@cython.final
cdef class ReceiveWindow:
    # The credit and the unread bytes are never negative.
    # The credit rises only in the step that announces it to the peer.
    # After an update, credit and unread bytes together are the target, unless the target was
    # lowered below what had been given already: given credit is never taken back.

    def __init__(self, uint32_t target=_INITIAL_WINDOW, uint32_t credit=_INITIAL_WINDOW):
        self.target_ = target
        self.credit_ = credit
        self.unread_ = 0

    @property
    def target(self):
        return self.target_

    @property
    def credit(self):
        return self.credit_

    @property
    def unread(self):
        return self.unread_

    def accept(self, int64_t size):
        if size < 0:
            raise ValueError(f"{size} is no size")
        return self.accept_(size)

    def consume(self, int64_t size):
        if size < 0 or size > self.unread_:
            raise ValueError(f"cannot consume {size} bytes when {self.unread_} are unread")
        self.consume_(size)

    def update_due(self):
        return self.update_due_()

    def take_update(self):
        return self.take_update_()

    def resize(self, uint32_t target):
        self.target_ = target

    cdef bint accept_(self, int64_t size) noexcept:
        if size > self.credit_:
            return False
        self.credit_ -= size
        self.unread_ += size
        return True

    cdef void consume_(self, int64_t size) noexcept:
        self.unread_ -= size

    cdef bint update_due_(self) noexcept:
        cdef int64_t delta = self.target_ - self.unread_ - self.credit_
        if delta <= 0:
            return False
        return 2 * delta >= self.target_ or (self.credit_ < FRAME_BYTES <= delta)

    cdef uint32_t take_update_(self) noexcept:
        cdef int64_t delta = self.target_ - self.unread_ - self.credit_
        if delta <= 0:
            return 0
        self.credit_ += delta
        return <uint32_t>delta
