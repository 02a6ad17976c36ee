# The C face of the reader of chunked bodies. `chunks.pyi` says what is accepted.

from libc.stdint cimport uint8_t, uint64_t


cdef enum ChunkStep:
    SIZE  # 0: where a body begins
    BLANKS
    EXTENSION
    SIZE_LF
    CONTENT
    CONTENT_CR
    CONTENT_LF
    END  # behind the last chunk's line
    END_LF
    TRAILERS  # the bytes from here to a blank line are fields, which the caller reads
    DONE
    BROKEN  # the next byte is not allowed there; nothing more is read


cdef struct ChunkState:
    # All zero at the beginning of a body.
    uint64_t left  # content bytes of this chunk still to come
    ChunkStep step
    int digits
    int line  # bytes of this size line


# Read a run of bytes that are either all passed on as they are (`kept`) or all dropped: blanks and
# extensions behind a size mean nothing to the next reader. Returns their number: 0 only at TRAILERS,
# DONE or BROKEN, or when there are no bytes.
cdef Py_ssize_t read_chunked(
    ChunkState *state, const uint8_t *p, Py_ssize_t size, bint *kept
) noexcept nogil
