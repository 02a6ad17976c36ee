from libc.stdint cimport int64_t, uint64_t

cdef enum:
    MOST_BOUNDS = 24


cdef class Histogram:
    cdef double limits[MOST_BOUNDS]
    cdef uint64_t counts[MOST_BOUNDS + 1]
    cdef int size
    cdef double total

    cdef void note(self, double value) noexcept nogil


cdef class RequestCounts:
    cdef uint64_t classes[6]
    cdef uint64_t bytes_in_
    cdef uint64_t bytes_out_
    cdef readonly Histogram seconds

    cdef void note(
        self, int status, int64_t bytes_in, int64_t bytes_out, double seconds
    ) noexcept nogil
