# The C face of the table of field names, for the scanner of heads and the relay.

from libc.stdint cimport uint8_t


cdef enum FieldKind:
    ORDINARY  # passes
    HEAD_ONLY  # passes in a head, but in no trailers
    SET_COOKIE
    CLEAR_SITE_DATA
    HOST
    CONTENT_LENGTH
    TRANSFER_ENCODING
    CONNECTION
    KEEP_ALIVE
    FORWARDING  # what only a proxy may say about a visitor: dropped from a request, or replaced
    EXPECT
    HOP  # for the next hop only, beside those above
    TRAILER  # announces trailers
    OWN  # Tunnelmux-*
    DISGUISED  # one of those from SET_COOKIE on, with another character in place of a "-"


# The kind of the field with this name: *size* > 0 bytes of a token. Trailers may only hold ORDINARY.
cdef FieldKind kind_of(const uint8_t *p, Py_ssize_t size) noexcept nogil
