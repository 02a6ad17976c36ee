# The C face of a connection that is being closed, for the HTTP relay.

from tunnelmux.pump.epoll cimport Member
from tunnelmux.pump.pump_socket cimport PumpSocket


cdef class Goodbye(Member):
    cdef PumpSocket wire
    cdef Py_ssize_t left
    cdef readonly bint is_over

    cdef int finish(self) except -1
