"""Connections that one process passes to another: what they say first, and the way they go.

A connection is looked at with MSG_PEEK, so that all of it is left to be read. It is passed by
SCM_RIGHTS (unix(7)), several in a message, over a socket pair that keeps messages apart. It must not
be in the pump when it is passed or closed: epoll would go on watching it, for its descriptor is open
elsewhere.
The docstrings of the public names are in `passing.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EINVAL, EMSGSIZE, ENOBUFS, ETOOMANYREFS, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from tunnelmux.pump.epoll cimport EPOLLERR, EPOLLHUP, EPOLLRDHUP, Member, Pump, os_error
from tunnelmux.pump.sockets cimport BareSocket, adopt

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "sys/socket.h" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    ssize_t recv(int fd, void *data, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    unsigned char *CMSG_DATA(cmsghdr *part)
    size_t CMSG_SPACE(size_t size)
    size_t CMSG_LEN(size_t size)
    int MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK
    int SCM_RIGHTS, SOL_SOCKET

cdef extern from "string.h" nogil:
    void *memmem(const void *data, size_t size, const void *wanted, size_t wanted_size)

cdef extern from "strings.h" nogil:
    int strncasecmp(const char *one, const char *other, size_t size)

cdef enum:
    SEEN = 8192  # bytes that are looked at: a ClientHello with post-quantum keys has two thousand
    LOOKS = 32  # how often one connection is looked at: each look sees all that came before it
    RECORD_HEAD = 5  # bytes before what a TLS record holds (RFC 8446 section 5.1)
    HANDSHAKE = 22  # the type of a record that holds a ClientHello
    CLIENT_HELLO = 1  # the type of a handshake message (RFC 8446 section 4)
    SERVER_NAME = 0  # the type of an extension, and that of a host name in it (RFC 6066 section 3)
    LONGEST_MESSAGE = 4096  # bytes that come with the connections
    MOST_CONNECTIONS = 32  # passed with one message: Linux takes 253
    ROOM = 256  # bytes of room for so many descriptors in a message


cdef tuple NOTHING_SAID = (b"", b"", b"")
MOST_AT_ONCE = MOST_CONNECTIONS


def first_words(Pump pump not None, BareSocket socket not None, *, bint is_secure):
    return look_at(pump, socket.fd, is_secure, False)


cdef tuple look_at(Pump pump, int fd, bint is_secure, bint is_last):
    """What a connection says first, as far as that is there; None while more has to come."""
    cdef ssize_t n
    while True:
        n = recv(fd, pump.input, SEEN, MSG_DONTWAIT | MSG_PEEK)
        if n >= 0 or errno != EINTR:
            break
    if n < 0 and errno == EAGAIN:
        return NOTHING_SAID if is_last else None
    n = max(n, 0)
    if not (is_last or n == 0 or n == SEEN or is_whole(pump.input, n, is_secure)):
        return None
    return (name_in_hello(pump.input, n), b"", b"") if is_secure else names_in(pump.input, n)


cdef bint is_whole(const uint8_t *data, ssize_t n, bint is_secure) noexcept:
    """Whether these bytes, of which there is one at least, hold a whole head or ClientHello."""
    if not is_secure:
        return memmem(data, n, b"\r\n\r\n", 4) != NULL
    if data[0] != HANDSHAKE:
        return True  # no TLS
    return n >= RECORD_HEAD and n >= RECORD_HEAD + (data[3] << 8 | data[4])


@cython.final
cdef class FirstLook(Member):
    cdef object socket
    cdef bint is_secure
    cdef int looks
    cdef readonly bint is_over
    cdef readonly tuple said

    def __init__(self, Pump pump not None, socket not None, *, bint is_secure):
        self.pump = pump
        self.socket = socket
        self.fd = socket.fileno()
        self.is_secure = is_secure
        self.said = NOTHING_SAID
        self.look(False)

    def wait(self, owner):
        self.owner = owner
        self.pump.add(self)

    def stop(self):
        self.pump.remove(self)

    cdef int on_event(self, uint32_t events) except -1:
        if not self.is_over:
            self.look(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) != 0)
            if self.is_over:
                self.pump.tell(self)
        return 0

    cdef int fail(self, object error) except -1:
        self.is_over = True
        return self.pump.tell(self)

    cdef int look(self, bint is_last) except -1:
        """See what is there, and whether that is enough to tell where it goes."""
        cdef tuple said
        self.looks += 1
        said = look_at(self.pump, self.fd, self.is_secure, is_last or self.looks >= LOOKS)
        if said is not None:
            self.is_over = True
            self.said = said
        return 0


def names_in_head(bytes seen not None):
    return names_in(<const uint8_t *>PyBytes_AS_STRING(seen), len(seen))


def server_name(bytes seen not None):
    return name_in_hello(<const uint8_t *>PyBytes_AS_STRING(seen), len(seen))


cdef tuple names_in(const uint8_t *data, ssize_t size):
    """The values of the three fields; a line without its CRLF may be cut, and does not count."""
    cdef const uint8_t *line = data
    cdef const uint8_t *end = data + size
    cdef const uint8_t *stop
    cdef bytes host = b"", device = b"", service = b""
    while True:
        stop = <const uint8_t *>memmem(line, end - line, b"\r\n", 2)
        if stop == NULL or (stop == line and line != data):
            return host, device, service
        if is_field(line, stop, b"host:", 5):
            host = value_of(line + 5, stop)
        elif is_field(line, stop, b"tunnelmux-device:", 17):
            device = value_of(line + 17, stop)
        elif is_field(line, stop, b"tunnelmux-service:", 18):
            service = value_of(line + 18, stop)
        line = stop + 2


cdef inline bint is_field(
    const uint8_t *line, const uint8_t *stop, const char *name, ssize_t size
) noexcept nogil:
    return stop - line >= size and strncasecmp(<const char *>line, name, size) == 0


cdef bytes value_of(const uint8_t *at, const uint8_t *stop):
    """What lies between, without the spaces and tabs around it (RFC 9110 section 5.5)."""
    while at < stop and (at[0] == 32 or at[0] == 9):
        at += 1
    while at < stop and (stop[-1] == 32 or stop[-1] == 9):
        stop -= 1
    return PyBytes_FromStringAndSize(<const char *>at, stop - at)


cdef bytes name_in_hello(const uint8_t *data, ssize_t size):
    """The host name in a ClientHello: what was cut off, or is broken, names none."""
    cdef const uint8_t *at = data + RECORD_HEAD + 4 + 2 + 32  # behind its type, version and random
    cdef const uint8_t *end = data + size
    cdef const uint8_t *stop
    cdef ssize_t named
    if size < RECORD_HEAD + 1 or data[0] != HANDSHAKE or data[RECORD_HEAD] != CLIENT_HELLO:
        return b""
    end = min(end, data + RECORD_HEAD + number_at(data + 3, end, 2))
    at = behind_block(at, end, 1)  # the session id
    at = behind_block(at, end, 2)  # the cipher suites
    at = behind_block(at, end, 1)  # the compression methods
    end = min(end, at + 2 + number_at(at, end, 2))
    at += 2
    while at < end:  # each extension: its type, and a block
        stop = behind_block(at + 2, end, 2)
        if number_at(at, end, 2) == SERVER_NAME:
            at += 2 + 2 + 2  # its type, its size, and that of the list of names
            named = number_at(at + 1, stop, 2)
            if at >= stop or at[0] != SERVER_NAME or at + 3 + named > stop:
                return b""
            return PyBytes_FromStringAndSize(<const char *>at + 3, named)
        at = stop
    return b""


cdef inline ssize_t number_at(const uint8_t *at, const uint8_t *end, int size) noexcept nogil:
    """The number in so many bytes; 0 where they are not there."""
    if end - at < size:
        return 0
    return at[0] if size == 1 else at[0] << 8 | at[1]


cdef inline const uint8_t *behind_block(
    const uint8_t *at, const uint8_t *end, int size
) noexcept nogil:
    """Where the block ends that begins with its size, at most *end*."""
    cdef ssize_t left = end - at
    if left < size:
        return end
    return min(end, at + size + number_at(at, end, size))


@cython.final
cdef class Passage(Member):
    cdef object socket

    def __init__(self, Pump pump not None, socket not None, owner):
        self.pump = pump
        self.socket = socket
        self.fd = socket.fileno()
        self.owner = owner
        pump.add(self)

    def send(self, bytes message not None, connections=()):
        cdef Py_ssize_t count = len(connections)
        cdef int fds[MOST_CONNECTIONS]
        cdef uint8_t room[ROOM]
        cdef iovec part
        cdef msghdr header
        cdef cmsghdr *rights
        cdef Py_ssize_t i
        if len(message) == 0 or len(message) > LONGEST_MESSAGE:
            raise os_error(EMSGSIZE)  # an empty message would look like the end
        if count > MOST_CONNECTIONS:
            raise os_error(EINVAL)
        part.iov_base = PyBytes_AS_STRING(message)
        part.iov_len = len(message)
        memset(&header, 0, sizeof(header))
        header.msg_iov = &part
        header.msg_iovlen = 1
        if count > 0:
            for i in range(count):
                fds[i] = connections[i].fileno()
            memset(room, 0, sizeof(room))
            header.msg_control = room
            header.msg_controllen = CMSG_SPACE(count * sizeof(int))
            rights = CMSG_FIRSTHDR(&header)
            rights.cmsg_level = SOL_SOCKET
            rights.cmsg_type = SCM_RIGHTS
            rights.cmsg_len = CMSG_LEN(count * sizeof(int))
            memcpy(CMSG_DATA(rights), fds, count * sizeof(int))
        while sendmsg(self.fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            # ETOOMANYREFS: this user has as many descriptors under way as it may have open.
            if errno == EAGAIN or errno == ENOBUFS or errno == ETOOMANYREFS:
                return False
            if errno != EINTR:
                raise os_error(errno)
        return True

    def receive(self, Py_ssize_t limit):
        cdef list received = []
        cdef uint8_t room[ROOM]
        cdef uint8_t data[LONGEST_MESSAGE]
        cdef iovec part
        cdef msghdr header
        cdef ssize_t n
        while len(received) < limit:
            part.iov_base = data
            part.iov_len = sizeof(data)
            memset(&header, 0, sizeof(header))
            header.msg_iov = &part
            header.msg_iovlen = 1
            header.msg_control = room
            header.msg_controllen = CMSG_SPACE(MOST_CONNECTIONS * sizeof(int))
            n = recvmsg(self.fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
            if n < 0 and (errno == EINTR or errno == ECONNRESET):
                continue  # a reset stands in front of what was sent before it
            if n < 0 and errno == EAGAIN:
                return received
            if n <= 0:  # the other end is gone
                if received:
                    break  # those first; the end comes again
                return None
            received.append((PyBytes_FromStringAndSize(<const char *>data, n), passed(&header)))
        self.want_turn()
        self.pump.wake()
        return received

    def stop(self):
        self.pump.remove(self)

    cdef int on_event(self, uint32_t events) except -1:
        return self.pump.tell(self)

    cdef int take_turn(self) except -1:
        return self.pump.tell(self)

    cdef int fail(self, object error) except -1:
        return self.pump.tell(self)


cdef list passed(msghdr *header):
    """The connections that came with a message, in their order; the last ones are missing where this
    process has no descriptor left for them."""
    cdef cmsghdr *rights = CMSG_FIRSTHDR(header)
    cdef list connections = []
    cdef int fds[MOST_CONNECTIONS]
    cdef size_t i, count
    if (
        rights == NULL or rights.cmsg_level != SOL_SOCKET or rights.cmsg_type != SCM_RIGHTS
        or rights.cmsg_len < CMSG_LEN(sizeof(int))
    ):
        return connections
    count = min((rights.cmsg_len - CMSG_LEN(0)) // sizeof(int), <size_t>MOST_CONNECTIONS)
    memcpy(fds, CMSG_DATA(rights), count * sizeof(int))
    for i in range(count):
        connections.append(adopt(fds[i]))
    return connections
