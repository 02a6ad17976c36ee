"""How many of a peer's records of TLS bring no data.

The docstrings of the public names are in `tls_records.pyi`.
"""

cimport cython

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t

cdef enum:
    HEAD = 5  # bytes before what a record holds (RFC 8446 section 5.1)
    FIRST_TYPE = 20  # change_cipher_spec, alert, handshake, application_data
    LAST_TYPE = 23
    MAJOR_VERSION = 3
    HANDSHAKE = 262144  # bytes of records in a handshake: chains of certificates are long
    WITHOUT_DATA = 1024  # records that bring no data before the peer is read no more
    DATA = 4096  # bytes of data that make up for one of them


@cython.final
cdef class RecordWatch:
    # `head` and `left` say where in a record the next byte is, `taken` how many bytes came in the
    # handshake. Since the last `weigh`, `records` were complete, and `reads` of them brought
    # `filled` bytes of data.

    def add(self, data not None):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        self.count(<const uint8_t *>view.buf, view.len)
        PyBuffer_Release(&view)

    def add_data(self, Py_ssize_t size, *, bint is_new=True):
        self.note_data(size, is_new)

    def judge(self, tls not None):
        self.weigh(tls)
        return not self.is_over

    cdef void count(self, const uint8_t *data, Py_ssize_t size) noexcept:
        """These bytes of records came."""
        cdef Py_ssize_t at = 0, part
        if not self.is_open:
            self.taken += size
        while at < size and not self.is_lost:
            if self.head < HEAD:
                if self.head == 0:
                    self.is_lost = not FIRST_TYPE <= data[at] <= LAST_TYPE
                elif self.head == 1:
                    self.is_lost = data[at] != MAJOR_VERSION
                else:  # the last two bytes of the head are the size
                    self.size = (self.size << 8 | data[at]) & 0xFFFF
                self.head += 1
                at += 1
                self.left = self.size
            else:
                part = min(self.left, size - at)
                self.left -= part
                at += part
            if self.head == HEAD and self.left == 0:
                self.head = 0
                self.records += 1

    cdef void note_data(self, Py_ssize_t size, bint is_new) noexcept:
        """So much data was decrypted, *is_new* from a record that brought none before."""
        self.filled += size
        self.reads += is_new

    cdef int weigh(self, object tls) except -1:
        """Judge the records that came: all that are complete were decrypted."""
        cdef object version = tls.version()
        if version is None:
            self.is_over = self.is_over or self.taken > HANDSHAKE
            return 0
        if not self.is_open:
            self.is_open = True  # what came until now was the handshake
            self.is_over = self.is_over or self.is_lost  # its rest could not be counted either
        else:
            if version != "TLSv1.3":  # an empty record before each with data kept attacks off
                self.reads *= 2
            self.without_data += max(self.records - self.reads, 0)
            self.without_data = max(self.without_data - self.filled // DATA, 0)
            self.is_over = self.is_over or self.without_data > WITHOUT_DATA
        self.records = self.reads = 0
        self.filled %= DATA
        return 0


def watch_for(tls not None):
    return watch_of(tls)


cdef RecordWatch watch_of(object tls):
    """The watch of this TLS object. It stays with it when another owner reads the connection."""
    cdef object found = getattr(tls, "record_watch", None)
    if found is None:
        found = tls.record_watch = RecordWatch()
        (<RecordWatch>found).is_open = tls.version() is not None
    return found
