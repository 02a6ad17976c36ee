"""Legs: streams joined to one connection of a target each, used by one visitor at a time.

The docstrings of the public names are in `legs.pyi`.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from tunnelmux.pump.epoll cimport Member
from tunnelmux.pump.tunnel cimport Tunnel
from tunnelmux.yamux.streams cimport EngineStream


cdef class LegUser(Member):
    cdef int on_agreed(self) except -1:
        return 0

    cdef int on_bytes(self, const uint8_t *data, Py_ssize_t size) except -1:
        return 0

    cdef int on_leg_end(self, bint in_order) except -1:
        return 0

    cdef int on_leg_bug(self, object error) except -1:
        return self.fail(error)

    cdef void on_leg_room(self) noexcept:
        pass


@cython.final
cdef class Route:
    # `idle` holds the legs without a user, the last used one at the end.

    def __init__(self, opener not None, bytes answer not None, destination, *,
                 Py_ssize_t max_idle=0, double idle_time=0.0):
        self.opener = opener
        self.answer = answer
        self.destination = destination
        self.idle = []
        self.max_idle = max_idle
        self.idle_time = idle_time

    @property
    def idle_count(self):
        return len(self.idle)

    def close_idle(self, double before):
        cdef Leg leg
        while self.idle and (<Leg>self.idle[0]).idle_since <= before:
            leg = self.idle[0]
            leg.part(True)
            leg.tunnel.want_flush()

    cdef Leg open_leg(self, LegUser user):
        """A new leg for *user*, whose `on_agreed` is called when the target's side has agreed; None
        when no stream can be opened now."""
        cdef Leg leg
        opened = self.opener()
        if opened is None:
            return None
        leg = Leg.__new__(Leg)
        leg.tunnel, leg.stream = opened
        leg.pump = leg.tunnel.pump
        leg.route = self
        leg.user = user
        leg.stream.owner = leg
        leg.tunnel.mark_dirty()
        return leg

    cdef Leg take_idle(self, LegUser user, double now):
        """The idle leg that was used last, if that was at most `idle_time` ago."""
        cdef Leg leg
        if not self.idle:
            return None
        leg = self.idle[-1]
        if now - leg.idle_since > self.idle_time:
            return None
        del self.idle[-1]
        leg.user = user
        return leg

    cdef int keep(self, Leg leg, double now) except -1:
        """*leg* has no user any more: keep it for another one, or end it."""
        if self.max_idle <= 0:
            return leg.part(True)
        leg.user = None
        leg.idle_since = now
        self.idle.append(leg)
        if len(self.idle) > self.max_idle:
            leg = self.idle[0]
            return leg.part(True)
        return 0

    cdef int forget(self, Leg leg) except -1:
        if leg in self.idle:
            self.idle.remove(leg)
        return 0


@cython.final
cdef class Leg(Member):
    # A member without a descriptor: it owns its stream, so that the engine gives it the payload that
    # comes. It never asks for a turn.

    def _wake(self):
        self.on_change()
        self.pump.wake()

    cdef int take_payload(self, const uint8_t *data, Py_ssize_t size) except -1:
        cdef Leg held = self  # keeps a reference: its user may drop it, and its stream with it
        cdef Py_ssize_t wanted
        cdef bytes answer = self.route.answer
        if not self.agreed:
            wanted = min(size, len(answer) - self.matched)
            self.stream.give_back(wanted)
            if memcmp(data, PyBytes_AS_STRING(answer) + self.matched, wanted) != 0:
                self.stream.give_back(size - wanted)
                return self.refused()
            self.matched += wanted
            data += wanted
            size -= wanted
            if self.matched < len(answer):
                return 0
            self.agreed = True
            if self.user is not None:
                self.user.on_agreed()
        if size == 0:
            return 0
        cdef LegUser user = self.user
        if user is not None:
            # The error of one user must not end the tunnel, which others use too.
            try:
                return user.on_bytes(data, size)
            except Exception as error:
                return user.on_leg_bug(error)
        self.stream.give_back(size)
        return self.part(False)  # bytes that no request asked for

    cdef int on_change(self) except -1:
        cdef Leg held = self
        cdef LegUser user = self.user
        if self.stream.error_ is None and not self.stream.remote_fin:
            if user is not None:
                user.on_leg_room()
            return 0
        if not self.agreed:
            return self.refused()
        if user is None:
            return self.part(self.stream.error_ is None)
        try:
            return user.on_leg_end(self.stream.error_ is None)
        except Exception as error:
            return user.on_leg_bug(error)

    cdef void on_credit(self) noexcept:
        if self.user is not None:
            self.user.on_leg_room()

    cdef int repay(self, Py_ssize_t size) except -1:
        """*size* bytes have been passed on: give the peer credit for them."""
        self.stream.give_back(size)
        if self.tunnel.engine.wants_send_():
            self.tunnel.mark_dirty()
        return 0

    cdef int refused(self) except -1:
        """The other side did not agree: Python repeats the request, and gets the reason."""
        cdef LegUser user = self.user
        self.part(False)
        return user.on_leg_end(False) if user is not None else 0

    cdef EngineStream release(self):
        """Give the stream to the caller, who owns it from now on."""
        self.user = None
        self.stream.owner = None
        return self.stream

    cdef int part(self, bint in_order) except -1:
        """End the stream and give up owning it."""
        cdef Leg held = self  # keeps a reference: the others may all go here
        if self.user is None:
            self.route.forget(self)
        self.user = None
        if self.stream.owner is self:
            self.stream.owner = None
        if in_order and self.stream.error_ is None:
            self.stream.close(self.pump.now)
        else:
            self.stream.reset_(0, "idle for too long")
        self.tunnel.mark_dirty()
        return 0
