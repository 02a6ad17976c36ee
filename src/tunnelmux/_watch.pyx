"""A socket in the pump that nobody reads yet, or any more.

The docstrings of the public names are in `_watch.pyi`.
"""

cimport cython

from libc.stdint cimport uint32_t

from tunnelmux._pump cimport EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLRDHUP, Member, Pump


@cython.final
cdef class SocketWatch(Member):
    cdef readonly object socket
    cdef readonly object error

    def __init__(self, Pump pump not None, socket, owner):
        self.pump = pump
        self.socket = socket
        self.fd = socket.fileno()
        self.owner = owner
        pump.add(self)

    def cancel(self):
        self.pump.remove(self)

    cdef int on_event(self, uint32_t events) except -1:
        if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            self.pump.remove(self)
            return self.pump.tell(self)
        return 0

    cdef int fail(self, object error) except -1:
        self.error = error
        self.pump.remove(self)
        return self.pump.tell(self)
