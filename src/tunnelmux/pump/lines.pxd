from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef class LineBuffer:
    cdef uint8_t *base
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity
    cdef object clock
    cdef bytes stamp
    cdef double stamped_at
    cdef readonly bint doubtful

    cdef int add(
        self, bytes about, uint32_t stream, bytes method, bytes path, int status, int64_t bytes_in,
        int64_t bytes_out, double began, double now
    ) except -1
    cdef int reserve(self, Py_ssize_t size) except -1
    cdef void put(self, const char *text, Py_ssize_t size) noexcept
    cdef void put_bytes(self, bytes text) noexcept
    cdef void put_quoted(self, bytes text) noexcept
    cdef void put_number(self, int64_t number) noexcept
