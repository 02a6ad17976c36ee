# The C face of the frame codec and the windows, for the other compiled modules.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t


cdef enum:
    HEADER_BYTES = 12
    FRAME_BYTES = 16384  # the size of frame a window update must make room for to be worth sending


cdef enum FrameType:
    DATA = 0
    WINDOW_UPDATE = 1
    PING = 2
    GO_AWAY = 3


cdef enum FrameFlag:
    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


cdef struct FrameHeader:
    uint8_t version
    uint8_t type
    uint16_t flags
    uint32_t stream_id
    uint32_t length


cdef inline uint32_t read_u32(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline void write_u32(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 24)
    p[1] = <uint8_t>(value >> 16)
    p[2] = <uint8_t>(value >> 8)
    p[3] = <uint8_t>value


cdef inline FrameHeader read_header(const uint8_t *p) noexcept nogil:
    cdef FrameHeader header
    header.version = p[0]
    header.type = p[1]
    header.flags = <uint16_t>((p[2] << 8) | p[3])
    header.stream_id = read_u32(p + 4)
    header.length = read_u32(p + 8)
    return header


cdef inline void write_header(
    uint8_t *p, uint8_t type, uint16_t flags, uint32_t stream_id, uint32_t length
) noexcept nogil:
    p[0] = 0
    p[1] = type
    p[2] = <uint8_t>(flags >> 8)
    p[3] = <uint8_t>flags
    write_u32(p + 4, stream_id)
    write_u32(p + 8, length)


cdef class SendWindow:
    cdef int64_t credit_

    cdef bint grant_(self, uint32_t delta) noexcept
    cdef void spend_(self, int64_t size) noexcept


cdef class ReceiveWindow:
    cdef int64_t target_
    cdef int64_t credit_
    cdef int64_t unread_

    cdef bint accept_(self, int64_t size) noexcept
    cdef void consume_(self, int64_t size) noexcept
    cdef bint update_due_(self) noexcept
    cdef uint32_t take_update_(self) noexcept
