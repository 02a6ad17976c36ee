"""A queue of bytes that holds its memory only while it holds bytes.

One copy in and one copy out, and no Python object in between: a peer that sends one byte per frame
costs one byte of memory per frame. The docstrings of the public names are in `ring.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

cdef enum:
    SMALLEST = 64  # allocations below this are kept: one cache line, cheaper kept than freed


@cython.final
cdef class ByteRing:
    # The bytes held are base[head : head + size], wrapping at the capacity.
    # The capacity is zero or a power of two, and never less than the size.

    def __cinit__(self):
        self.base = NULL
        self.capacity_ = 0
        self.head = 0
        self.size = 0

    def __dealloc__(self):
        PyMem_RawFree(self.base)

    def __len__(self):
        return self.size

    @property
    def capacity(self):
        return self.capacity_

    def write(self, const uint8_t[::1] data not None):
        if data.shape[0]:
            self.push(&data[0], data.shape[0])

    def read(self, Py_ssize_t max_bytes):
        cdef Py_ssize_t size = min(max(max_bytes, 0), self.size)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
        self.pull(<uint8_t *>PyBytes_AS_STRING(out), size)
        return out

    def clear(self):
        self.reset()

    cdef int push(self, const uint8_t *data, Py_ssize_t size) except -1:
        """Append *size* bytes."""
        cdef Py_ssize_t tail, first
        if size == 0:
            return 0
        if self.size + size > self.capacity_:
            self.grow(self.size + size)
        tail = (self.head + self.size) & (self.capacity_ - 1)
        first = min(size, self.capacity_ - tail)
        memcpy(self.base + tail, data, first)
        memcpy(self.base, data + first, size - first)
        self.size += size
        return 0

    cdef void pull(self, uint8_t *out, Py_ssize_t size) noexcept:
        """Take *size* bytes, at most `self.size`, from the front into *out*."""
        self.copy_front(out, size)
        self.skip(size)

    cdef void copy_front(self, uint8_t *out, Py_ssize_t size) noexcept:
        """Copy *size* bytes, at most `self.size`, from the front into *out*."""
        cdef Py_ssize_t first = min(size, self.capacity_ - self.head)
        if size:
            memcpy(out, self.base + self.head, first)
            memcpy(out + first, self.base, size - first)

    cdef void skip(self, Py_ssize_t size) noexcept:
        """Drop *size* bytes, at most `self.size`, from the front."""
        if size == 0:
            return
        self.size -= size
        if self.size == 0:
            self.reset()
        else:
            self.head = (self.head + size) & (self.capacity_ - 1)

    cdef void reset(self) noexcept:
        """Forget everything and give the memory back."""
        self.head = 0
        self.size = 0
        if self.capacity_ > SMALLEST:
            PyMem_RawFree(self.base)
            self.base = NULL
            self.capacity_ = 0

    cdef int grow(self, Py_ssize_t need) except -1:
        cdef Py_ssize_t capacity = SMALLEST, held = self.size
        cdef uint8_t *base
        while capacity < need:
            capacity *= 2
        base = <uint8_t *>PyMem_RawMalloc(capacity)
        if base == NULL:
            raise MemoryError(f"no memory for a buffer of {capacity} bytes")
        if held:
            self.copy_out(base)
        PyMem_RawFree(self.base)
        self.base = base
        self.capacity_ = capacity
        self.head = 0
        return 0

    cdef void copy_out(self, uint8_t *base) noexcept:
        cdef Py_ssize_t first = min(self.size, self.capacity_ - self.head)
        memcpy(base, self.base + self.head, first)
        memcpy(base + first, self.base, self.size - first)
