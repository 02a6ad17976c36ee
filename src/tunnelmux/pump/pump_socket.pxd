# The C face of a connected socket, for tunnels, relays and visitors.

from libc.stdint cimport uint8_t, uint32_t

from tunnelmux.pump.tls_records cimport RecordWatch

cdef enum:
    NOTHING = -1  # there is nothing to read now
    BROKEN = -2  # nothing more can be read or written: `error` says why
    RECORD = 16384  # bytes of the largest TLS record (RFC 8446 section 5.1)
    CIPHER = 262144  # bytes of records that are read at once


cdef class PumpSocket:
    cdef readonly int fd
    cdef readonly object socket
    cdef bint can_read
    cdef bint can_write
    cdef bint hung_up
    cdef bint at_end
    cdef readonly object error
    cdef object tls
    cdef object incoming
    cdef object outgoing
    cdef bytes cipher
    cdef Py_ssize_t cipher_at
    cdef bint closing
    cdef Py_ssize_t portion
    cdef bint held
    cdef bint answered
    cdef bint within
    cdef bint garbled
    cdef bint closed
    cdef RecordWatch watch

    cdef int on_event(self, uint32_t events) except -1
    cdef int pending_error(self) noexcept
    cdef int fail(self, int code) except -1
    cdef bint has_input(self) noexcept
    cdef bint is_unanswered(self) noexcept
    cdef ssize_t read_into(self, uint8_t *data, Py_ssize_t room) except -3
    cdef ssize_t receive_plain(self, uint8_t *data, Py_ssize_t room) except -3
    cdef ssize_t receive_records(self, uint8_t *data, Py_ssize_t room) except -3
    cdef Py_ssize_t take_records(self, Py_ssize_t size, uint8_t *data, Py_ssize_t room) except -3
    cdef Py_ssize_t decrypt(self, uint8_t *data, Py_ssize_t room) except -3
    cdef ssize_t write(self, const uint8_t *data, Py_ssize_t size) except -3
    cdef ssize_t send_plain(self, const uint8_t *data, Py_ssize_t size) except -3
    cdef bint flush(self) except -1
    cdef bint is_sending(self) except -1
    cdef int end_writing(self) except -1
