# The C face of sockets that were accepted, and of a connection that is being closed.

from tunnelmux.pump.epoll cimport Member
from tunnelmux.pump.pump_socket cimport PumpSocket


cdef class BareSocket:
    cdef int fd
    cdef int of_family

    cdef void shut(self) noexcept


cdef BareSocket adopt(int fd)


cdef class LingeringClose(Member):
    cdef PumpSocket wire
    cdef Py_ssize_t left
    cdef readonly bint is_over

    cdef int finish(self) except -1
