"""Keeps a device from setting or clearing cookies of other hosts, and from seeing or setting the
proxy's own cookies."""

def split_own_cookies(value: bytes) -> tuple[bytes, list[bytes]]:
    """A Cookie field's *value* without the proxy's own cookies, and those, as `name=value`.

    Own are all whose names begin with `__Host-tunnelmux` or `tunnelmux-dev`, in any case."""

def is_own_set_cookie(value: bytes) -> bool:
    """Whether a Set-Cookie *value* would make a cookie of such a name, in any browser."""

def head_without_own_cookies(head: bytes) -> bytes:
    """The *head* of an answer, whose lines end in CRLF, without such `Set-Cookie` fields."""

def without_parent_domains(value: bytes, host: bytes) -> bytes:
    """A Set-Cookie *value* without each Domain attribute that is above *host*, a Host field's value.

    A browser gives a cookie with `Domain=devices.example.com` to every host below, so to all devices
    there (RFC 6265 section 5.1.3). Without the attribute, the browser keeps it for the one host.
    Domains that the host lies in are taken out, in any case and with any number of leading dots. So
    are domains with other characters than letters, digits, `-` and `.`: browsers decode some of those.
    The host itself stays, and so does a domain elsewhere, which a browser refuses.
    """

def head_without_parent_domains(head: bytes, host: bytes) -> bytes:
    """The *head* of an answer, whose lines end in CRLF, with `without_parent_domains` done to each of
    its `Set-Cookie` fields."""

def clearing_only_own(value: bytes) -> bytes:
    """A Clear-Site-Data *value* without the members that a browser clears for more than this host:
    empty when nothing is left, and the same object when nothing was taken out.

    A browser clears `"cookies"` of the whole registrable domain (Clear Site Data, section 4.2.3),
    so also those of all other devices. `"*"` becomes the members that it stands for, without that one.
    Only members that are known to concern one origin stay.
    """

def head_clearing_only_own(head: bytes) -> bytes:
    """The *head* of an answer, whose lines end in CRLF, with `clearing_only_own` done to each of its
    `Clear-Site-Data` fields; empty ones are left out."""
