"""Cookies that a device would set or clear for others, its fields held to its own host; and the
proxy's own cookies, which are nothing for a device to see or to set."""

def split_own_cookies(value: bytes) -> tuple[bytes, list[bytes]]:
    """A Cookie field's *value* without the proxy's own cookies, and those, as `name=value`.

    Own are all whose names begin with `__Host-tunnelmux` or `tunnelmux-dev`, in any case."""

def is_own_set_cookie(value: bytes) -> bool:
    """Whether a Set-Cookie *value* would make a cookie of such a name, in whatever browser."""

def head_without_own_cookies(head: bytes) -> bytes:
    """The *head* of an answer, with CRLF at its lines' ends, without such `Set-Cookie` fields."""

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

def clearing_only_own(value: bytes) -> bytes:
    """A Clear-Site-Data *value* without what a browser clears for more than the host that says it:
    empty when nothing is left, and the same when nothing was taken out.

    A browser clears `"cookies"` of the whole registrable domain (Clear Site Data, section 4.2.3),
    so also those of all neighbours. `"*"` becomes what it means beside that. Only the members that
    are known to concern one origin stay.
    """

def head_clearing_only_own(head: bytes) -> bytes:
    """The *head* of an answer, with CRLF at its lines' ends, whose `Clear-Site-Data` fields are so;
    those with nothing left are left out."""
