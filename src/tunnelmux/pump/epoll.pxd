# The C face of the pump, for the modules that keep sockets in it.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t

from tunnelmux.pump.counts cimport Histogram, RequestCounts
from tunnelmux.pump.lines cimport LineBuffer
from tunnelmux.yamux.links cimport Link

cdef extern from "sys/epoll.h" nogil:
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLERR, EPOLLHUP, EPOLLET


cdef enum:
    LANES = 256  # of first turns
    INPUT = 262144  # bytes read from a tunnel at once
    OUTPUT = 131072  # bytes of payload in one flush: half the pipe of a busy loopback connection
    CONTROL_ROOM = 4096  # bytes of control frames that a flush has room for behind its payload


cdef object os_error(int code)
cdef Py_ssize_t lane_of(str source) except -1


cdef struct Lane:
    Link turns
    Link link


cdef class Pump:
    cdef int epoll_fd
    cdef int wake_fd
    cdef bint woken
    cdef PyObject **members
    cdef Py_ssize_t members_size
    cdef uint8_t *input
    cdef void *spare
    cdef Py_ssize_t spare_count
    cdef bytes random_bytes
    cdef Py_ssize_t random_used
    cdef Link turns
    cdef Lane lanes[LANES]
    cdef Link first_turns
    cdef Link dirty
    cdef list news
    cdef list leaving
    cdef public LineBuffer lines
    cdef public RequestCounts requests
    cdef readonly Histogram batches
    cdef double lingered
    cdef readonly double now
    cdef double began
    cdef readonly Py_ssize_t count

    cdef double moment(self) noexcept
    cdef int add(self, Member member) except -1
    cdef int remove(self, Member member) except -1
    cdef int replace(self, Member member, Member other) except -1
    cdef int tell(self, Member member) except -1
    cdef uint8_t *take_buffer(self) except NULL
    cdef void give_buffer(self, uint8_t *buffer) noexcept
    cdef int delay_reset(self, int fd) except -1
    cdef const uint8_t *next_mask(self) except NULL
    cdef bint is_busy_(self) noexcept
    cdef bint wait_a_moment(self) noexcept
    cdef int handle_events(self) except -1
    cdef int take_turns(self) except -1
    cdef int take_first_turns(self, double until) except -1
    cdef int take_turn_of(self, Member member) except -1
    cdef int flush_dirty(self) except -1


cdef class Member:
    cdef Pump pump
    cdef readonly int fd
    cdef public object owner
    cdef Link turn_link
    cdef bint told
    cdef bint registered
    cdef bint is_first
    cdef Py_ssize_t lane

    cdef int on_event(self, uint32_t events) except -1
    cdef int take_turn(self) except -1
    cdef int fail(self, object error) except -1
    cdef int flush(self) except -1
    cdef int take_payload(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int on_change(self) except -1
    cdef void on_credit(self) noexcept
    cdef void want_turn(self) noexcept
