"""A connected socket as the pump uses it, plain or under TLS.

It remembers whether the socket is ready: a read that finds nothing clears `can_read`, a write that
is not taken in full clears `can_write`, and epoll's events set them again. An error is noted when it
first shows, and reported once all that the socket still holds was read. Linux keeps what came before
a reset, and in it the peer may have said why it resets.
The docstrings of the public names are in `pump_socket.pyi`.
"""

cimport cython

from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EAGAIN, EINTR, ENOTCONN, errno
from libc.stdint cimport uint8_t, uint32_t

from tunnelmux.pump.epoll cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, os_error,
)
from tunnelmux.pump.tls_records cimport RecordWatch, watch_of

import ssl

cdef extern from "sys/socket.h" nogil:
    ssize_t recv(int fd, void *data, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int shutdown(int fd, int how)
    int getsockopt(int fd, int level, int name, void *value, unsigned int *size)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)
    int MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, SHUT_WR, SOL_SOCKET, SO_ERROR, SO_LINGER
    struct linger:
        int l_onoff
        int l_linger

cdef enum:
    PORTION = 32768  # bytes encrypted at once: for a slow peer they stay in memory
    ANSWERS = 16384  # bytes that TLS may have for the peer before nothing more is read from it
    PIECE = RECORD + 512  # bytes of records that TLS gets at first: without data they cost much more

# The random bytes of a server's hello that asks for another of the client (RFC 8446 section 4.1.3).
cdef bytes RETRY = bytes.fromhex(
    "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
)

# Holds records between the kernel and the TLS library, which copies them before it returns.
cdef uint8_t records[CIPHER]


@cython.final
cdef class PumpSocket:
    # Under TLS `cipher[cipher_at:]` is being sent. `closing` says that the end has to be sent behind
    # it, `held` that reading waits for it, `answered` that TLS has answered the peer's hello and did
    # not ask for another, `within` that the last record was not read to its end, `garbled` that one
    # could not be decrypted, and `closed` that close_notify came; `at_end` is set once a read has returned 0.
    # `error` is set once, and `hung_up` with it, so that reading goes on to the end.

    def __init__(self, socket not None, tls=None):
        self.socket = socket
        self.fd = socket.fileno()
        self.can_read = self.can_write = True
        self.portion = PORTION
        if tls is not None:
            self.tls, self.incoming, self.outgoing = tls
            self.watch = watch_of(self.tls)

    def fileno(self):
        return self.socket.fileno()

    def receive(self, Py_ssize_t max_bytes):
        cdef bytes out = PyBytes_FromStringAndSize(NULL, max_bytes)
        cdef ssize_t n = self.read_into(<uint8_t *>PyBytes_AS_STRING(out), max_bytes)
        if n == BROKEN:
            raise self.error
        return None if n == NOTHING else out[:n]

    @property
    def is_secure(self):
        return self.tls is not None

    @property
    def handshake_done(self):
        return self.tls is None or self.tls.version() is not None

    def release(self):
        cdef bytes behind
        if self.tls is None:
            return None
        if self.cipher is not None:  # put it back in front of what waits to be sent
            behind = self.outgoing.read()
            self.outgoing.write(self.cipher[self.cipher_at:] + behind)
            self.cipher = None
        return self.tls, self.incoming, self.outgoing

    def send_bare(self, bytes data not None):
        self.send_plain(<const uint8_t *>PyBytes_AS_STRING(data), len(data))

    def half_close(self):
        self.end_writing()

    def reset(self):
        cdef linger at_once
        at_once.l_onoff = 1
        at_once.l_linger = 0
        if self.socket.fileno() >= 0:
            setsockopt(self.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(linger))
            self.socket.close()

    cdef int on_event(self, uint32_t events) except -1:
        """Note what epoll reports. An error is kept in `error`."""
        cdef int code
        if events & EPOLLOUT:
            self.can_write = self.error is None
            if self.held:
                self.held = False
                self.can_read = True
        if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            self.hung_up = True
        if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            self.can_read = True
        if events & EPOLLERR and (code := self.pending_error()) != 0:
            self.fail(code)
        return 0

    cdef int pending_error(self) noexcept:
        """The error that the kernel keeps for the socket; 0 for none. Reading clears it."""
        cdef int code = 0
        cdef unsigned int size = sizeof(int)
        getsockopt(self.fd, SOL_SOCKET, SO_ERROR, &code, &size)
        return code

    cdef int fail(self, int code) except -1:
        """Note an error: nothing more is written, and what came before it can be read."""
        if self.error is None:
            self.error = os_error(code)
        self.hung_up = self.can_read = True
        self.can_write = False
        return 0

    cdef bint has_input(self) noexcept:
        """Whether the kernel holds bytes to read: then it was connected, even if it no longer is."""
        cdef uint8_t one
        return recv(self.fd, &one, 1, MSG_DONTWAIT | MSG_PEEK) > 0

    cdef bint is_unanswered(self) noexcept:
        """Whether TLS has still to answer the peer's hello, which may come in crumbs: the answer is
        what costs most of a handshake."""
        return self.tls is not None and not self.watch.is_open and not self.answered

    # -- reading ----------------------------------------------------------------------------------

    cdef ssize_t read_into(self, uint8_t *data, Py_ssize_t room) except -3:
        """How many bytes were read; 0 at the peer's end, NOTHING when none came, BROKEN when none
        will come and the peer did not end in order."""
        cdef ssize_t n
        if self.tls is None:
            n = self.receive_plain(data, room)
        else:
            n = self.receive_records(data, room)
        if n <= 0:
            self.can_read = False
            if self.error is not None:
                return BROKEN
            if n == 0:
                self.at_end = True
        return n

    cdef ssize_t receive_plain(self, uint8_t *data, Py_ssize_t room) except -3:
        cdef ssize_t n
        while True:
            n = recv(self.fd, data, room, MSG_DONTWAIT)
            if n >= 0:
                if n < room and not self.hung_up:
                    self.can_read = False
                return n
            if errno == EAGAIN:
                return NOTHING
            if errno != EINTR:
                self.fail(errno)
                return BROKEN

    cdef ssize_t receive_records(self, uint8_t *data, Py_ssize_t room) except -3:
        """The same under TLS. A previous owner may have left records unread."""
        cdef Py_ssize_t filled = 0
        cdef ssize_t n = NOTHING
        if self.outgoing.pending > ANSWERS and not self.flush():
            self.held = True  # the peer makes TLS answer, and does not read the answers
            return NOTHING
        if not self.garbled and (self.incoming.pending or self.tls.pending()):
            filled = self.decrypt(data, room)
        while not (filled or self.garbled or self.closed):
            # No more than the caller takes plus one record: the library's own buffer never shrinks.
            n = self.receive_plain(records, min(CIPHER, room + RECORD))
            if n <= 0:
                break
            filled = self.take_records(n, data, room)
        if self.outgoing.pending:
            self.flush()
        if filled:
            # The next read returns what the library still has, and what the kernel has.
            self.can_read = (
                self.can_read or self.closed or self.incoming.pending > 0
                or self.tls.pending() > 0 or self.garbled
            )
            return filled
        if self.closed:
            return 0
        return BROKEN if self.garbled else n

    cdef Py_ssize_t take_records(self, Py_ssize_t size, uint8_t *data, Py_ssize_t room) except -3:
        """Give TLS the first *size* bytes of `records`, and decrypt as many as fit."""
        cdef Py_ssize_t filled = 0, at = 0, part
        while at < size and not self.garbled:
            part = min(size - at, 4 * PIECE if filled else PIECE)
            self.incoming.write(PyMemoryView_FromMemory(<char *>records + at, part, PyBUF_READ))
            self.watch.count(records + at, part)
            at += part
            if filled < room and not self.closed:
                filled += self.decrypt(data + filled, room - filled)
        return filled

    cdef Py_ssize_t decrypt(self, uint8_t *data, Py_ssize_t room) except -3:
        """Decrypt the complete records, as many as fit; this also does the handshake."""
        cdef object view = PyMemoryView_FromMemory(<char *>data, room, PyBUF_WRITE)
        cdef Py_ssize_t filled = 0, n
        cdef bint is_read = False
        try:
            while filled < room and not is_read:
                n = self.tls.read(room - filled, view[filled:])
                if n == 0:
                    self.closed = True
                    break
                filled += n
                self.watch.note_data(n, not self.within)
                # What it returns is of one record, and all that was asked for if there is more.
                self.within = filled == room and self.tls.pending() > 0
                # No bytes, no record: an exception that says so would cost as much.
                is_read = not self.within and not self.incoming.pending
        except ssl.SSLWantReadError:
            is_read = True
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # the peer's close
            self.closed = True
        except ssl.SSLError as error:
            self.garbled = True  # nothing behind it can be decrypted; an alert tells the peer
            if self.error is None:
                self.error = error
        if is_read:
            self.watch.weigh(self.tls)
            if self.watch.is_over and self.error is None:
                self.garbled = True
                self.error = ssl.SSLError("the peer sent records of TLS without data, without end")
        return filled

    # -- writing ----------------------------------------------------------------------------------

    cdef ssize_t write(self, const uint8_t *data, Py_ssize_t size) except -3:
        """How many bytes were taken; BROKEN when none ever will be. Bytes that TLS has taken may have
        to wait for `flush`, and nothing more is taken until then."""
        cdef Py_ssize_t taken = 0
        cdef object view
        if self.tls is None:
            return self.send_plain(data, size)
        if self.error is not None:
            return BROKEN
        if not self.flush():
            return BROKEN if self.error is not None else 0
        size = min(size, self.portion)
        view = PyMemoryView_FromMemory(<char *>data, size, PyBUF_READ)
        try:
            while taken < size:
                taken += self.tls.write(view[taken:])
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error
            return BROKEN
        self.flush()
        return BROKEN if self.error is not None else taken

    cdef ssize_t send_plain(self, const uint8_t *data, Py_ssize_t size) except -3:
        cdef ssize_t n
        while self.can_write:
            n = send(self.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
            if n >= 0:
                self.can_write = n == size
                return n
            if errno == EAGAIN:
                self.can_write = False
            elif errno != EINTR:
                self.fail(errno)
        return BROKEN if self.error is not None else 0

    cdef bint is_sending(self) except -1:
        """Whether TLS has taken bytes that have not left."""
        return self.cipher is not None or (self.tls is not None and self.outgoing.pending > 0)

    cdef bint flush(self) except -1:
        """Send what TLS has taken. True when all of it has been sent."""
        cdef ssize_t n
        while self.is_sending():
            if self.cipher is None:
                self.cipher = self.outgoing.read()
                self.cipher_at = 0
                self.answered = self.answered or self.cipher[11:43] != RETRY
            while self.cipher_at < len(self.cipher):
                n = self.send_plain(
                    <const uint8_t *>PyBytes_AS_STRING(self.cipher) + self.cipher_at,
                    len(self.cipher) - self.cipher_at,
                )
                if n <= 0:
                    return False
                self.cipher_at += n
            self.cipher = None
        if self.closing:
            self.closing = False
            return self.end_writing() == 0
        return True

    cdef int end_writing(self) except -1:
        """Send the end, behind what was taken: close_notify (RFC 8446 section 6.1) and FIN."""
        if self.tls is not None and self.error is None:
            try:
                self.tls.unwrap()
            except (ssl.SSLError, ValueError):  # the peer's close_notify is not waited for
                pass
            if self.is_sending():
                self.closing = False
                if not self.flush():
                    self.closing = True
                    return 0
        if shutdown(self.fd, SHUT_WR) < 0 and errno != ENOTCONN:
            self.fail(errno)
        return 0
