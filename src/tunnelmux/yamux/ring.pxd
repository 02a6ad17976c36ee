from libc.stdint cimport uint8_t


cdef class ByteRing:
    cdef uint8_t *base
    cdef Py_ssize_t capacity_
    cdef Py_ssize_t head
    cdef Py_ssize_t size

    cdef int push(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef void pull(self, uint8_t *out, Py_ssize_t size) noexcept
    cdef void skip(self, Py_ssize_t size) noexcept
    cdef void copy_front(self, uint8_t *out, Py_ssize_t size) noexcept
    cdef void reset(self) noexcept
    cdef int grow(self, Py_ssize_t need) except -1
    cdef void copy_out(self, uint8_t *base) noexcept
