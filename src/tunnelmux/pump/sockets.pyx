"""Short-lived sockets, accepted and connected at little cost.

The docstrings of the public names are in `sockets.pyi`.
"""

cimport cython

from libc.errno cimport EAGAIN, ECONNABORTED, EINPROGRESS, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from tunnelmux.pump.epoll cimport INPUT, Member, Pump, os_error
from tunnelmux.pump.pump_socket cimport NOTHING, PumpSocket

cdef extern from "sys/socket.h" nogil:
    struct sockaddr:
        pass
    struct sockaddr_storage:
        unsigned short ss_family
    int accept4(int fd, sockaddr *address, unsigned int *size, int flags)
    int connect(int fd, const sockaddr *address, unsigned int size)
    int getsockopt(int fd, int level, int name, void *value, unsigned int *size)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)
    int socket(int family, int kind, int protocol)
    int AF_INET, AF_INET6, SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_LINGER, SO_DOMAIN
    struct linger:
        int l_onoff
        int l_linger

cdef extern from "netinet/in.h" nogil:
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
    uint16_t htons(uint16_t port)
    uint16_t ntohs(uint16_t port)

cdef extern from "arpa/inet.h" nogil:
    const char *inet_ntop(int family, const void *address, char *text, unsigned int size)
    int inet_pton(int family, const char *text, void *address)

cdef extern from "unistd.h" nogil:
    int close(int fd)

cdef enum:
    LONGEST_ADDRESS = 64  # bytes of an address as text: INET6_ADDRSTRLEN is 46
    MOST_OPTIONS = 16
    UNKNOWN = -1  # the family of a socket that came from another process: few have to know it


@cython.final
cdef class BareSocket:
    def __cinit__(self):
        self.fd = -1

    def fileno(self):
        return self.fd

    def close(self):
        self.shut()

    def reset(self):
        cdef linger at_once
        at_once.l_onoff = 1
        at_once.l_linger = 0
        if self.fd >= 0:
            setsockopt(self.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(linger))
            self.shut()

    @property
    def family(self):
        cdef unsigned int size = sizeof(int)
        if self.of_family == UNKNOWN:
            getsockopt(self.fd, SOL_SOCKET, SO_DOMAIN, &self.of_family, &size)
        return self.of_family

    def detach(self):
        cdef int fd = self.fd
        self.fd = -1
        return fd

    def __dealloc__(self):
        self.shut()

    cdef void shut(self) noexcept:
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1


cdef BareSocket bare_socket(int fd, int family):
    cdef BareSocket made
    try:
        made = BareSocket.__new__(BareSocket)
    except MemoryError:
        close(fd)
        raise
    made.fd = fd
    made.of_family = family
    return made


def adopted(int fd):
    return adopt(fd)


cdef BareSocket adopt(int fd):
    return bare_socket(fd, UNKNOWN)


@cython.final
cdef class Acceptor(Member):
    def __init__(self, Pump pump not None, int fd, owner):
        self.pump = pump
        self.fd = fd
        self.owner = owner
        pump.add(self)

    def accept(self, Py_ssize_t limit):
        cdef list accepted = []
        cdef sockaddr_storage address
        cdef unsigned int size
        cdef int fd
        while len(accepted) < limit:
            size = sizeof(address)
            fd = accept4(
                self.fd, <sockaddr *>&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC
            )
            if fd >= 0:
                accepted.append((bare_socket(fd, address.ss_family), address_text(&address)))
            elif errno == EAGAIN:
                return accepted
            elif errno != EINTR and errno != ECONNABORTED:  # aborted: that peer has left already
                if accepted:
                    break  # return those first; the next call meets the error again
                raise os_error(errno)
        self.again()
        return accepted

    def again(self):
        self.want_turn()
        self.pump.wake()

    def stop(self):
        self.pump.remove(self)

    cdef int on_event(self, uint32_t events) except -1:
        return self.pump.tell(self)

    cdef int take_turn(self) except -1:
        return self.pump.tell(self)


cdef str address_text(const sockaddr_storage *address):
    """HOST:PORT, with an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    cdef char text[LONGEST_ADDRESS]
    cdef const sockaddr_in *four = <const sockaddr_in *>address
    cdef const sockaddr_in6 *six = <const sockaddr_in6 *>address
    if address.ss_family == AF_INET:
        inet_ntop(AF_INET, &four.sin_addr, text, sizeof(text))
        return f"{text.decode('ascii')}:{ntohs(four.sin_port)}"
    if address.ss_family == AF_INET6:
        inet_ntop(AF_INET6, &six.sin6_addr, text, sizeof(text))
        return f"[{text.decode('ascii')}]:{ntohs(six.sin6_port)}"
    return ""


@cython.final
cdef class LingeringClose(Member):
    # Reads without TLS: what comes is thrown away.

    def __init__(self, Pump pump not None, PumpSocket wire not None, owner, Py_ssize_t max_bytes,
                 Member instead_of=None):
        self.pump = pump
        self.wire = wire
        self.fd = wire.fd
        self.owner = owner
        self.left = max_bytes
        if instead_of is None:
            pump.add(self)
        else:
            pump.replace(instead_of, self)
        wire.end_writing()
        wire.can_read = True
        self.want_turn()

    def cancel(self):
        self.is_over = True
        self.pump.remove(self)

    cdef int on_event(self, uint32_t events) except -1:
        self.wire.on_event(events)
        if self.wire.can_write and self.wire.is_sending():
            self.wire.flush()
        if self.wire.can_read:
            self.want_turn()
        return 0

    cdef int take_turn(self) except -1:
        cdef ssize_t n
        if self.wire.held and self.wire.error is None:
            return 0  # nothing more is read before the peer has read something
        n = self.wire.receive_plain(self.pump.input, min(INPUT, self.left))
        if n == NOTHING:
            self.wire.can_read = False
            return 0
        self.left -= max(n, 0)
        if n <= 0 or self.left == 0:
            return self.finish()
        if self.wire.can_read:
            self.want_turn()
        return 0

    cdef int fail(self, object error) except -1:
        return self.finish()

    cdef int finish(self) except -1:
        self.is_over = True
        self.pump.remove(self)
        return self.pump.tell(self)


@cython.final
cdef class Dialler:
    # The address is kept as the system wants it, and so are the options.
    cdef sockaddr_storage address
    cdef unsigned int address_size
    cdef int options[MOST_OPTIONS][3]
    cdef int option_count

    def __init__(self, str host not None, uint16_t port, options=()):
        cdef sockaddr_in *four = <sockaddr_in *>&self.address
        cdef sockaddr_in6 *six = <sockaddr_in6 *>&self.address
        cdef bytes text = host.encode("ascii")
        memset(&self.address, 0, sizeof(self.address))
        if 0 in text:
            raise ValueError(f"{host!r} is not an IP address: it holds a zero byte")
        if inet_pton(AF_INET, text, &four.sin_addr) == 1:
            four.sin_family = AF_INET
            four.sin_port = htons(port)
            self.address_size = sizeof(sockaddr_in)
        elif inet_pton(AF_INET6, text, &six.sin6_addr) == 1:
            six.sin6_family = AF_INET6
            six.sin6_port = htons(port)
            self.address_size = sizeof(sockaddr_in6)
        else:
            raise ValueError(f"{host!r} is not an IP address: look the name up first")
        if len(options) > MOST_OPTIONS:
            raise ValueError(f"{len(options)} options are more than {MOST_OPTIONS}")
        for level, name, value in options:
            self.options[self.option_count][0] = level
            self.options[self.option_count][1] = name
            self.options[self.option_count][2] = value
            self.option_count += 1

    def dial(self):
        cdef int i, code
        cdef int fd = socket(
            self.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0
        )
        if fd < 0:
            raise os_error(errno)
        for i in range(self.option_count):  # an option that this system does not have is left out
            setsockopt(fd, self.options[i][0], self.options[i][1], &self.options[i][2], sizeof(int))
        if connect(fd, <const sockaddr *>&self.address, self.address_size) < 0 and (
            errno != EINPROGRESS
        ):
            code = errno
            close(fd)
            raise os_error(code)
        return bare_socket(fd, self.address.ss_family)
