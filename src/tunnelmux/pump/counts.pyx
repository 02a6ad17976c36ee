"""Counters of frequent events: one or two additions for each, and read when asked for.

The docstrings of the public names are in `counts.pyi`.
"""

cimport cython

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    CLASSES = 6  # 0: no status, then 1xx to 5xx


@cython.final
cdef class Histogram:
    # `counts[i]` are the values above limit i - 1 and at most limit i; the last are above all.

    def __init__(self, *limits):
        cdef int i
        if not 0 < len(limits) <= MOST_BOUNDS or list(limits) != sorted(limits):
            raise ValueError(f"a histogram has 1 to {MOST_BOUNDS} limits that ascend")
        self.size = len(limits)
        for i in range(self.size):
            self.limits[i] = limits[i]

    cdef void note(self, double value) noexcept nogil:
        cdef int i = 0
        while i < self.size and value > self.limits[i]:
            i += 1
        self.counts[i] += 1
        self.total += value

    def observe(self, double value):
        self.note(value)

    @property
    def count(self):
        cdef uint64_t count = 0
        cdef int i
        for i in range(self.size + 1):
            count += self.counts[i]
        return count

    @property
    def sum(self):
        return self.total

    @property
    def buckets(self):
        cdef uint64_t count = 0
        cdef int i
        found = []
        for i in range(self.size):
            count += self.counts[i]
            found.append((self.limits[i], count))
        return found


@cython.final
cdef class RequestCounts:

    def __init__(self, *limits):
        self.seconds = Histogram(*limits)

    cdef void note(
        self, int status, int64_t bytes_in, int64_t bytes_out, double seconds
    ) noexcept nogil:
        cdef int number = status // 100
        self.classes[number if 0 < number < CLASSES else 0] += 1
        self.bytes_in_ += bytes_in
        self.bytes_out_ += bytes_out
        self.seconds.note(seconds)

    def add(self, int status, int64_t bytes_in, int64_t bytes_out, double seconds):
        self.note(status, bytes_in, bytes_out, seconds)

    @property
    def by_class(self):
        cdef int i
        return {f"{i}xx" if i else "none": self.classes[i] for i in range(CLASSES)}

    @property
    def bytes_in(self):
        return self.bytes_in_

    @property
    def bytes_out(self):
        return self.bytes_out_
