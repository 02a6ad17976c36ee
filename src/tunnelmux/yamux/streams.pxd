# The C face of the streams, for the engine and for a data plane.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from tunnelmux._frame cimport ReceiveWindow, SendWindow
from tunnelmux.yamux.links cimport Link
from tunnelmux.yamux.ring cimport ByteRing


cdef enum AckState:
    # outbound: ACK_NEED_SYN -> ACK_SYN_SENT -> ACK_DONE
    # inbound:  ACK_OFFERED -> ACK_OWED -> ACK_DONE
    ACK_NEED_SYN
    ACK_SYN_SENT
    ACK_OFFERED
    ACK_OWED
    ACK_DONE


cdef enum SendState:
    SEND_OPEN
    SEND_FIN_QUEUED
    SEND_FIN_SENT
    SEND_RESET


cdef enum ReceiveState:
    RECEIVE_OPEN
    RECEIVE_DISCARD
    RECEIVE_RESET


cdef class StreamTable  # declared below; each needs the other


cdef class EngineStream:
    cdef StreamTable table
    cdef public object owner
    cdef readonly uint32_t id
    cdef readonly bint is_outbound
    cdef object error_
    cdef ByteRing inbox
    cdef ByteRing outbox
    cdef SendWindow send_window
    cdef ReceiveWindow receive_window
    cdef AckState ack_state
    cdef SendState send_state
    cdef ReceiveState receive_state
    cdef bint remote_fin
    cdef bint forgotten
    cdef bint is_cut
    cdef bint send_was_full
    cdef bint in_changed
    cdef bint holds_slot
    cdef bint reset_due
    cdef uint32_t reset_code
    cdef double timer_at
    cdef double updated_at
    cdef int64_t window_share
    cdef Link control_link
    cdef Link ready_link
    cdef Link accept_link
    cdef Link timer_link
    cdef Link grown_link

    cdef bint sendable(self) noexcept
    cdef bint expects_data(self) noexcept
    cdef uint16_t take_opening_flags(self) noexcept
    cdef Py_ssize_t send_room(self) noexcept
    cdef int drop_queued(self) except -1
    cdef void drop_unread(self) noexcept
    cdef void give_back(self, Py_ssize_t size) noexcept
    cdef int consumed(self, Py_ssize_t size) except -1
    cdef int break_off(self, object error) except -1
    cdef int reset_(self, uint32_t code, str reason) except -1


cdef class WindowBudget:
    cdef readonly int64_t capacity
    cdef readonly int64_t spent


cdef class StreamTable:
    cdef readonly object limits
    cdef object error_
    cdef dict streams
    cdef list changed
    cdef Link control_list
    cdef Link fresh_list
    cdef Link ready_list
    cdef Link accept_list
    cdef Link ack_timers
    cdef Link linger_timers
    cdef Link grown_list
    cdef readonly Py_ssize_t accept_pending
    cdef readonly Py_ssize_t unacked_opens
    cdef readonly Py_ssize_t queued_bytes
    cdef readonly Py_ssize_t unread_bytes
    cdef readonly int64_t window_stalls
    cdef bint send_was_full
    # limits, as C numbers
    cdef Py_ssize_t stream_send_buffer
    cdef Py_ssize_t session_send_buffer
    cdef Py_ssize_t max_frame_payload
    cdef double linger
    # how far receive windows may grow, and how far they have
    cdef int64_t max_stream_window
    cdef double window_idle
    cdef int64_t max_unread_bytes
    cdef WindowBudget session_budget
    cdef WindowBudget process_budget

    cdef void grow_window(self, EngineStream stream, double interval, double rtt) noexcept
    cdef void settle_window(self, EngineStream stream) noexcept
    cdef int bound_unread(self) except -1
    cdef int release_open_slot(self, EngineStream stream) except -1
    cdef int peer_reset(self, EngineStream stream, uint32_t code) except -1
    cdef int peer_fin(self, EngineStream stream) except -1
    cdef int forget_if_over(self, EngineStream stream) except -1
    cdef int forget(self, EngineStream stream) except -1
    cdef int withdraw_offer(self, EngineStream stream) except -1
    cdef int on_forgotten(self, EngineStream stream) except -1
    cdef int note(self, EngineStream stream) except -1
    cdef int note_sent(self, EngineStream stream, Py_ssize_t size) except -1
    cdef int note_room(self, Py_ssize_t size) except -1
    cdef void spend(self, EngineStream stream, Py_ssize_t size) noexcept
    cdef void want_control(self, EngineStream stream) noexcept
    cdef void make_ready(self, EngineStream stream) noexcept
    cdef void stop_timer(self, EngineStream stream) noexcept
