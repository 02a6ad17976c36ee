"""One epoll instance for all the sockets of a process, handled in batches without Python in between.

Linux only. The descriptor of an epoll instance is itself pollable: one Trio task waits for it and
calls `Pump.batch`, which handles all that is ready, in bounded portions, and returns the members that
Python has to look at. Sockets are watched edge-triggered, so that an idle one costs no system call.
The docstrings of the public names are in `epoll.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EBADF, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from tunnelmux.pump.counts cimport Histogram
from tunnelmux.yamux.links cimport Link, append_link, init_link, is_linked, unlink
from tunnelmux.pump.websocket cimport MAX_FRAME_HEAD

import os

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll_fd, epoll_event *events, int maximum, int timeout)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL

cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    static void trim_heap_(void) { malloc_trim(0); }
    #else
    static void trim_heap_(void) { }
    #endif
    """
    void trim_heap_() nogil

cdef extern from "sys/eventfd.h" nogil:
    int eventfd(unsigned int value, int flags)
    int EFD_NONBLOCK, EFD_CLOEXEC

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int CLOCK_MONOTONIC

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
    int ppoll(pollfd *watched, unsigned long count, const timespec *timeout, const void *signals)
    short POLLIN

cdef extern from "sys/ioctl.h" nogil:
    int ioctl(int fd, unsigned long request, ...)
    int TIOCOUTQ  # of a socket: SIOCOUTQ, tcp(7)

cdef extern from "unistd.h" nogil:
    int close(int fd)
    int dup(int fd)
    ssize_t read(int fd, void *data, size_t size)
    ssize_t write(int fd, const void *data, size_t size)

cdef enum:
    LINGER = 100_000  # nanoseconds that a batch waits for more, if no other task has anything to do
    EVENTS = 512  # descriptors handled in one round
    SLACK = 64  # bytes by which frame headers may go over the payload's bound
    KEPT_BUFFERS = 32  # spare output buffers a pump keeps
    MOST_LEAVING = 1024  # connections kept open until their peers took what was sent
    RANDOM_BYTES = 4096  # bytes of randomness fetched at once: a thousand masks


cdef double PORTION = 0.002  # seconds of a batch, after which the other tasks get their turn
cdef double FIRST_PORTION = 0.001  # seconds for first turns after the others, however long those took


cdef inline double monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + 1e-9 * now.tv_nsec


cdef int bytes_unsent(int fd) noexcept nogil:
    """Bytes that the peer has not acknowledged; 0 when the system does not say."""
    cdef int count = 0
    return count if ioctl(fd, TIOCOUTQ, &count) == 0 else 0


cdef object os_error(int code):
    return OSError(code, os.strerror(code))


cdef Py_ssize_t lane_of(str source) except -1:
    """The lane of peers with this address. Python's key makes it another one in each process."""
    return <size_t>hash(source) % LANES


def trim_heap():
    trim_heap_()


@cython.final
cdef class Pump:
    # A member is in `members` from `add` to `remove`, which hold a reference to it, so that links
    # and epoll need none. `turns` lists members that have something left to do. Those that begin
    # with a TLS handshake, which costs a hundred times as much as what others do, come after them,
    # so that a flood of handshakes keeps none of them waiting. They are in `lanes` by the address of
    # their peers, of which `first_turns` lists those in use; one of each has its turn before a
    # second of any, so that a flood from one address delays no other's handshake. `dirty` lists the
    # tunnels that may have something to send.

    def __cinit__(self):
        self.epoll_fd = self.wake_fd = -1
        init_link(&self.turns, NULL)
        init_link(&self.first_turns, NULL)
        cdef Py_ssize_t lane
        for lane in range(LANES):
            init_link(&self.lanes[lane].turns, NULL)
            init_link(&self.lanes[lane].link, &self.lanes[lane])
        init_link(&self.dirty, NULL)
        self.news = []
        self.leaving = []
        self.random_bytes = b""
        self.batches = Histogram(0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.002, 0.005, 0.02, 0.1)

    def __init__(self):
        cdef epoll_event event
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        self.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.epoll_fd < 0 or self.wake_fd < 0:
            raise os_error(errno)
        event.events = EPOLLIN | EPOLLET
        event.data.fd = self.wake_fd
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self.wake_fd, &event) < 0:
            raise os_error(errno)
        self.input = <uint8_t *>PyMem_RawMalloc(INPUT)
        if self.input == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef void *buffer
        cdef int fd
        if self.leaving is not None:
            for fd, _ in self.leaving:
                close(fd)
        while self.spare != NULL:
            buffer = self.spare
            self.spare = (<void **>buffer)[0]
            PyMem_RawFree(buffer)
        PyMem_RawFree(self.input)
        PyMem_RawFree(self.members)
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        if self.wake_fd >= 0:
            close(self.wake_fd)

    def fileno(self):
        return self.epoll_fd

    def wake(self):
        cdef uint64_t one = 1
        if not self.woken:
            self.woken = True
            write(self.wake_fd, &one, 8)

    @property
    def is_busy(self):
        return self.is_busy_()

    def batch(self, double now, bint linger=False):
        cdef Member member
        cdef list news
        self.began = monotonic()
        self.now = now
        self.lingered = 0
        while True:
            if self.handle_events() == 0 and not self.is_busy_():
                if not (linger and self.wait_a_moment() and self.handle_events()):
                    break
            self.take_turns()
            self.flush_dirty()
            if self.news or monotonic() - self.began > PORTION:
                break
        self.batches.note(monotonic() - self.began - self.lingered)
        news = self.news
        self.news = []
        for member in news:
            member.told = False
        return news

    cdef double moment(self) noexcept:
        """Seconds on the monotonic clock, read now; `now` is the time at which the batch began, on
        Trio's clock."""
        return monotonic()

    cdef bint is_busy_(self) noexcept:
        return (
            is_linked(&self.turns) or is_linked(&self.dirty) or is_linked(&self.first_turns)
        )

    cdef bint wait_a_moment(self) noexcept:
        """Whether something is ready within LINGER nanoseconds.

        Under load the next event is microseconds away, and waking Trio for it costs ten times what
        handling it does."""
        cdef pollfd watched
        cdef timespec moment
        cdef double since = monotonic()
        cdef int n
        watched.fd = self.epoll_fd
        watched.events = POLLIN
        moment.tv_sec = 0
        moment.tv_nsec = LINGER
        with nogil:
            n = ppoll(&watched, 1, &moment, NULL)
        self.lingered += monotonic() - since
        return n > 0

    cdef int handle_events(self) except -1:
        """Let every member whose descriptor is ready handle it; returns how many were ready."""
        cdef epoll_event events[EVENTS]
        cdef uint64_t count
        cdef Member member
        cdef int i, fd
        cdef int n = epoll_wait(self.epoll_fd, events, EVENTS, 0)
        if n < 0:
            if errno == EINTR:
                return 0
            raise os_error(errno)
        for i in range(n):
            fd = events[i].data.fd
            if fd == self.wake_fd:
                read(fd, &count, 8)
                continue
            if fd >= self.members_size or self.members[fd] == NULL:
                continue  # removed by what was handled before it
            member = <Member>self.members[fd]
            try:
                member.on_event(events[i].events)
            except Exception as error:
                member.fail(error)
        self.woken = False
        return n

    def close(self):
        cdef Py_ssize_t fd
        cdef Member member
        for fd in range(self.members_size):
            if self.members[fd] != NULL:
                member = <Member>self.members[fd]
                member.fail(OSError("the pump was stopped"))
                self.remove(member)
        while is_linked(&self.dirty):
            unlink(self.dirty.following)
        self.wake()  # their owners must be called

    # -- members --------------------------------------------------------------------------------

    cdef int add(self, Member member) except -1:
        cdef epoll_event event
        cdef Py_ssize_t size
        cdef PyObject **grown
        if member.fd < 0:
            raise os_error(EBADF)
        if member.fd >= self.members_size:
            size = max(64, self.members_size)
            while size <= member.fd:
                size *= 2
            grown = <PyObject **>PyMem_RawRealloc(self.members, size * sizeof(PyObject *))
            if grown == NULL:
                raise MemoryError()
            self.members = grown
            while self.members_size < size:
                self.members[self.members_size] = NULL
                self.members_size += 1
        if self.members[member.fd] != NULL:
            raise ValueError(f"descriptor {member.fd} is being pumped already")
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
        event.data.fd = member.fd
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, member.fd, &event) < 0:
            raise os_error(errno)
        Py_INCREF(member)
        self.members[member.fd] = <PyObject *>member
        member.registered = True
        self.count += 1
        return 0

    cdef int remove(self, Member member) except -1:
        cdef epoll_event event
        if not member.registered:
            return 0
        member.registered = False
        unlink(&member.turn_link)
        epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, member.fd, &event)
        self.members[member.fd] = NULL
        self.count -= 1
        Py_DECREF(member)
        return 0

    cdef int replace(self, Member member, Member other) except -1:
        """Put *other* in the place of *member*, for the same descriptor: no system call."""
        if not member.registered or other.fd != member.fd:
            raise ValueError(f"descriptor {other.fd} is not that of the member to be replaced")
        member.registered = False
        unlink(&member.turn_link)
        Py_INCREF(other)
        self.members[other.fd] = <PyObject *>other
        other.registered = True
        Py_DECREF(member)
        return 0

    cdef int tell(self, Member member) except -1:
        """Python has to see *member* after this batch."""
        if not member.told:
            member.told = True
            self.news.append(member)
        return 0

    # -- what the members share -----------------------------------------------------------------

    cdef uint8_t *take_buffer(self) except NULL:
        cdef void *buffer = self.spare
        if buffer != NULL:
            self.spare = (<void **>buffer)[0]
            self.spare_count -= 1
            return <uint8_t *>buffer
        buffer = PyMem_RawMalloc(MAX_FRAME_HEAD + OUTPUT + CONTROL_ROOM + SLACK)
        if buffer == NULL:
            raise MemoryError()
        return <uint8_t *>buffer

    cdef void give_buffer(self, uint8_t *buffer) noexcept:
        if self.spare_count >= KEPT_BUFFERS:
            PyMem_RawFree(buffer)
            return
        (<void **>buffer)[0] = self.spare
        self.spare = buffer
        self.spare_count += 1

    cdef const uint8_t *next_mask(self) except NULL:
        """Four bytes for a mask, from a strong source of entropy (RFC 6455 section 5.3)."""
        if self.random_used + 4 > len(self.random_bytes):
            self.random_bytes = os.urandom(RANDOM_BYTES)
            self.random_used = 0
        self.random_used += 4
        return <const uint8_t *>PyBytes_AS_STRING(self.random_bytes) + self.random_used - 4

    # -- connections that end with a reset -----------------------------------------------------

    cdef int delay_reset(self, int fd) except -1:
        """Keep the connection of *fd* open until its peer has all that was sent, or for a while.

        A reset discards what the kernel has not sent yet. The owner of *fd* closes it as always, and
        that takes effect when this second descriptor is closed as well."""
        cdef int second
        if bytes_unsent(fd) > 0 and len(self.leaving) < MOST_LEAVING:
            second = dup(fd)
            if second >= 0:
                self.leaving.append((second, self.now))
        return 0

    @property
    def leaving_count(self):
        return len(self.leaving)

    def close_left(self, double now, double patience):
        cdef list kept = []
        cdef int fd
        for fd, since in self.leaving:
            if bytes_unsent(fd) > 0 and now < since + patience:
                kept.append((fd, since))
            else:
                close(fd)
        self.leaving = kept

    # -- the second and third part of a batch -----------------------------------------------------

    cdef int take_turns(self) except -1:
        cdef Link last
        cdef Link *link
        cdef double until = self.began + PORTION
        cdef int left = EVENTS  # the others are first in the next round
        init_link(&last, NULL)
        append_link(&self.turns, &last)  # a turn asked for in this round waits for the next one
        while left and self.turns.following != &last:
            left -= 1
            link = self.turns.following
            unlink(link)
            self.take_turn_of(<Member>link.owner)
            if monotonic() > until:
                break
        unlink(&last)
        if is_linked(&self.first_turns):
            self.take_first_turns(monotonic() + FIRST_PORTION)
        return 0

    cdef int take_first_turns(self, double until) except -1:
        """Take one of each lane after the other until that time, and one at least."""
        cdef Lane *lane
        cdef Link *link
        cdef int left = EVENTS
        while left and is_linked(&self.first_turns):
            lane = <Lane *>self.first_turns.following.owner
            unlink(&lane.link)
            if not is_linked(&lane.turns):
                continue  # those that were in it have left
            left -= 1
            link = lane.turns.following
            unlink(link)
            if is_linked(&lane.turns):
                append_link(&self.first_turns, &lane.link)
            self.take_turn_of(<Member>link.owner)
            if monotonic() > until:
                break
        return 0

    cdef int take_turn_of(self, Member member) except -1:
        try:
            member.take_turn()
        except Exception as error:
            member.fail(error)
        return 0

    cdef int flush_dirty(self) except -1:
        cdef Link last
        cdef Link *link
        cdef Member member
        init_link(&last, NULL)
        append_link(&self.dirty, &last)
        while self.dirty.following != &last:
            link = self.dirty.following
            unlink(link)
            member = <Member>link.owner
            try:
                member.flush()
            except Exception as error:
                member.fail(error)
        unlink(&last)
        return 0


cdef class Member:
    # A socket in a pump. Its subclasses define the calls that they need.

    def __cinit__(self, *args, **kwargs):
        init_link(&self.turn_link, <void *>self)

    def __dealloc__(self):
        unlink(&self.turn_link)

    cdef int on_event(self, uint32_t events) except -1:
        return 0

    cdef int take_turn(self) except -1:
        return 0

    cdef int fail(self, object error) except -1:
        return 0

    cdef int flush(self) except -1:
        return 0

    cdef int take_payload(self, const uint8_t *data, Py_ssize_t size) except -1:
        return 0

    cdef int on_change(self) except -1:
        return 0

    cdef void on_credit(self) noexcept:
        """More may be sent on the member's stream than before."""

    cdef void want_turn(self) noexcept:
        cdef Lane *lane = &self.pump.lanes[self.lane]
        if not self.registered or is_linked(&self.turn_link):
            return
        append_link(&lane.turns if self.is_first else &self.pump.turns, &self.turn_link)
        if self.is_first and not is_linked(&lane.link):
            append_link(&self.pump.first_turns, &lane.link)
