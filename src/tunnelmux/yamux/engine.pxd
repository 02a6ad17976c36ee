# The C face of the engine: a data plane subclasses Engine, overrides `deliver` and `make_ready`, and
# moves bytes with `feed`, `drain`, `frame_room` and `place_frame`, without a Python object per frame.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from tunnelmux._frame cimport FrameHeader
from tunnelmux.yamux.liveness cimport Liveness
from tunnelmux.yamux.ring cimport ByteRing
from tunnelmux.yamux.streams cimport EngineStream, StreamTable


cdef class Engine(StreamTable):
    cdef readonly bint is_client
    # what is owed to the peer, as state
    cdef bint go_away_due
    cdef uint32_t go_away_code
    cdef bint go_away_sent
    cdef bint remote_go_away_
    cdef ByteRing pongs
    cdef ByteRing refusals
    # counters
    cdef int64_t next_id
    cdef Py_ssize_t stray_frames
    cdef Liveness liveness
    # the parser
    cdef uint8_t header_bytes[12]
    cdef Py_ssize_t header_have
    cdef uint32_t body_left
    cdef bint body_fin
    cdef EngineStream body_stream
    # limits, as C numbers
    cdef Py_ssize_t max_streams
    cdef Py_ssize_t accept_backlog
    cdef Py_ssize_t max_unacked_opens
    cdef Py_ssize_t pending_pongs
    cdef Py_ssize_t pending_resets
    cdef Py_ssize_t max_pings_per_second
    cdef Py_ssize_t max_stray_frames
    cdef double ack_delay

    # -- for a data plane ---------------------------------------------------------------------
    cdef int feed(self, const uint8_t *data, Py_ssize_t size, double now) except -1
    cdef Py_ssize_t drain(self, uint8_t *out, Py_ssize_t room, double now) except -1
    cdef Py_ssize_t frame_room(self, EngineStream stream) noexcept
    cdef int place_frame(self, EngineStream stream, uint8_t *gap, Py_ssize_t size) except -1
    cdef int deliver(self, EngineStream stream, const uint8_t *data, Py_ssize_t size) except -1
    cdef bint wants_send_(self) noexcept
    cdef double deadline(self) noexcept

    # -- the parser ---------------------------------------------------------------------------
    cdef int on_header(self, FrameHeader header, double now) except -1
    cdef int on_stream_frame(self, FrameHeader header, double now) except -1
    cdef EngineStream on_syn(self, FrameHeader header, EngineStream stream, double now)
    cdef int on_data(self, EngineStream stream, FrameHeader header, double now) except -1
    cdef int on_ping(self, FrameHeader header, double now) except -1
    cdef int on_go_away(self, uint32_t code) except -1
    cdef int on_stray(self) except -1
    cdef void begin_body(self, EngineStream stream, uint32_t length, bint fin) noexcept
    cdef int end_of_body(self) except -1
    cdef int check_stream_frame(self, EngineStream stream, FrameHeader header) except -1
    cdef int fail(self, str message) except -1
    cdef int end(self, object error, bint tell, uint32_t code) except -1

    # -- what becomes of streams ----------------------------------------------------------------
    cdef int on_forgotten(self, EngineStream stream) except -1
    cdef int refuse(self, uint32_t stream_id) except -1

    # -- output ---------------------------------------------------------------------------------
    cdef Py_ssize_t emit_session_control(self, uint8_t *out, Py_ssize_t room, double now) except -1
    cdef Py_ssize_t emit_go_away(self, uint8_t *out, Py_ssize_t room) noexcept
    cdef Py_ssize_t emit_controls(self, uint8_t *out, Py_ssize_t room, double now) except -1
    cdef Py_ssize_t emit_control(self, EngineStream stream, uint8_t *out, double now) except -1
    cdef uint32_t window_update(self, EngineStream stream, double now) noexcept
    cdef Py_ssize_t emit_data(
        self, EngineStream stream, uint8_t *out, Py_ssize_t room
    ) except -1
    cdef Py_ssize_t output_bound(self) noexcept
