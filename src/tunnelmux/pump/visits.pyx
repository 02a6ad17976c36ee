"""The book of live visits: a cheap note when each begins, moves to another device, and ends.

The docstrings of the public names are in `visits.pyi`.
"""

import heapq

cdef enum:
    STALE = 1024  # outdated times that the heap may hold beside twice the live ones

cdef double NEVER = float("inf")


cdef class VisitEntry:
    # `crowd` is the key under which it is counted in `crowds`, None while it is not.
    cdef readonly VisitBook _register
    cdef public str way
    cdef public str device
    cdef public object service
    cdef public str visitor
    cdef public str scheme
    cdef public str counts_as
    cdef public str lease
    cdef public str named
    cdef public long long number
    cdef public double began
    cdef public object session
    cdef public object stream
    cdef public object waits_for
    cdef public double until
    cdef public object cut_reason
    cdef public object by
    cdef public object count
    cdef public object on_cut
    cdef public object on_late
    cdef readonly bint is_from_outside
    cdef readonly str source
    cdef tuple crowd

    def __init__(self, VisitBook register not None, str way not None, *, str device not None,
                 service, str visitor not None, str scheme not None = "tcp"):
        self._register = register
        self.way = way
        self.device = device
        self.service = service
        self.visitor = self.counts_as = visitor
        self.scheme = scheme
        self.lease = self.named = ""
        self.began = register.clock()
        self.waits_for = "nothing"
        self.until = NEVER
        self.source = register.source_of(visitor)
        self.is_from_outside = way == "http" or way == "tcp"

    @property
    def is_counted(self):
        return self.is_counted_()

    cdef bint is_counted_(self) noexcept:
        return self.is_from_outside and len(self.counts_as) > 0 and len(self.device) > 0


cdef class VisitBook:
    # All tables are by number and in the order of the numbers. `watched` has the earliest time of
    # each visit in `due`, a heap; `wakes_at` is the time for which the timer is set.
    cdef readonly dict live
    cdef readonly list due
    cdef public double wakes_at
    cdef dict by_device
    cdef dict crowds
    cdef dict ways
    cdef dict addresses
    cdef dict watched
    cdef object clock
    cdef object source
    cdef long long last
    cdef str asked  # the last argument of `source_of` and its result: a visit asks several times
    cdef str answered

    def __init__(self, clock, source_of):
        self.clock = clock
        self.source = source_of
        self.live = {}
        self.due = []
        self.by_device = {}
        self.crowds = {}
        self.ways = {}
        self.addresses = {}
        self.watched = {}
        self.wakes_at = NEVER

    def __len__(self):
        return len(self.live)

    def add(self, VisitEntry visit not None):
        cdef tuple address = (visit.way, visit.source)
        self.last += 1
        visit.number = self.last
        self.live[visit.number] = visit
        self.ways[visit.way] = self.ways.get(visit.way, 0) + 1
        self.addresses[address] = self.addresses.get(address, 0) + 1
        self.index(visit)

    def remove(self, VisitEntry visit not None):
        cdef tuple address = (visit.way, visit.source)
        if self.live.pop(visit.number, None) is None:
            return
        self.watched.pop(visit.number, None)
        self.ways[visit.way] -= 1
        if self.addresses[address] == 1:
            del self.addresses[address]
        else:
            self.addresses[address] -= 1
        self.drop(visit)

    def move(self, VisitEntry visit not None, str device not None):
        if visit.number not in self.live:
            return
        self.drop(visit)
        visit.device = device
        self.index(visit)

    def count_as(self, VisitEntry visit not None, str address not None):
        if visit.counts_as == address:
            return
        self.discount(visit)
        visit.counts_as = address
        if visit.number in self.live:
            self.count(visit)

    def of_device(self, device):
        return list(self.by_device.get(device, {}).values())

    def count_of(self, device):
        return len(self.by_device.get(device, ()))

    def of_way(self, way):
        return self.ways.get(way, 0)

    def by_way(self):
        return dict(self.ways)

    def of_address(self, way, str remote not None):
        return self.addresses.get((way, self.source_of(remote)), 0)

    def crowd(self, str device not None, str remote not None, Py_ssize_t enough):
        cdef dict group = self.crowds.get((device, self.source_of(remote)))
        if group is None:
            return 0
        if len(group) < enough:
            return len(group)
        return sum([not visit.is_idle for visit in group.values()])

    def note_time(self, VisitEntry visit not None):
        cdef object noted = self.watched.get(visit.number)
        if noted is not None and visit.until >= <double>noted or visit.until == NEVER:
            return False
        heapq.heappush(self.due, (visit.until, visit.number))
        self.watched[visit.number] = visit.until
        if len(self.due) > 2 * len(self.watched) + STALE:
            self.due[:] = [(at, number) for number, at in self.watched.items()]
            heapq.heapify(self.due)
        if visit.until >= self.wakes_at:
            return False
        self.wakes_at = visit.until
        return True

    def pop_due(self, double now):
        cdef double at
        while self.due and self.due[0][0] <= now:
            at, number = heapq.heappop(self.due)
            visit = self.live.get(number)
            if visit is not None and self.watched.get(number) == at:  # else over, or noted again
                del self.watched[number]
                return visit
        return None

    cdef int index(self, VisitEntry visit) except -1:
        put(self.by_device, visit.device, visit)
        self.count(visit)
        return 0

    cdef int drop(self, VisitEntry visit) except -1:
        take_out(self.by_device, visit.device, visit)
        self.discount(visit)
        return 0

    cdef int count(self, VisitEntry visit) except -1:
        if visit.is_counted_():
            visit.crowd = (visit.device, self.source_of(visit.counts_as))
            put(self.crowds, visit.crowd, visit)
        return 0

    cdef int discount(self, VisitEntry visit) except -1:
        if visit.crowd is not None:
            take_out(self.crowds, visit.crowd, visit)
            visit.crowd = None
        return 0

    cdef str source_of(self, str remote):
        if remote is not self.asked:
            self.answered = self.source(remote)
            self.asked = remote
        return self.answered


cdef int put(dict table, object key, VisitEntry visit) except -1:
    cdef dict group = table.get(key)
    if group is None:
        table[key] = group = {}
    group[visit.number] = visit
    return 0


cdef int take_out(dict table, object key, VisitEntry visit) except -1:
    cdef dict group = table[key]
    del group[visit.number]
    if not group:
        del table[key]
    return 0
