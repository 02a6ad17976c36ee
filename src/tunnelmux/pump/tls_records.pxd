# The C face of the watch over records of TLS, for connected sockets.

from libc.stdint cimport uint8_t


cdef class RecordWatch:
    cdef readonly bint is_over
    cdef bint is_lost
    cdef bint is_open
    cdef int head
    cdef Py_ssize_t size
    cdef Py_ssize_t left
    cdef Py_ssize_t taken
    cdef Py_ssize_t records
    cdef Py_ssize_t reads
    cdef Py_ssize_t filled
    cdef Py_ssize_t without_data

    cdef void count(self, const uint8_t *data, Py_ssize_t size) noexcept
    cdef void note_data(self, Py_ssize_t size, bint is_new) noexcept
    cdef int weigh(self, object tls) except -1


cdef RecordWatch watch_of(object tls)
