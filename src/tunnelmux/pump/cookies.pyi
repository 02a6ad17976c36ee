"""Cookies that a device would set for others: its `Set-Cookie` fields, held to its own host."""

def without_parent_domains(value: bytes, host: bytes) -> bytes:
    """A Set-Cookie *value* without each Domain attribute that is above *host*, a Host field's value.

    A browser gives a cookie with `Domain=devices.example.com` to every host below, so to all devices
    there (RFC 6265 section 5.1.3). Without the attribute it is the host's own. Taken out is a
    domain that the host lies in, in any case and with any number of dots at its beginning, and one
    that is not written in letters, digits, `-` and `.`: browsers decode some of those. What is the host
    itself, or lies elsewhere, so that a browser refuses it, stays.
    """

def head_without_parent_domains(head: bytes, host: bytes) -> bytes:
    """The *head* of an answer, with CRLF at its lines' ends, whose `Set-Cookie` fields are so."""
