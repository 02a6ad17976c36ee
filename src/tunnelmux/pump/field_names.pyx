"""The table of header fields that mean something to a proxy.

The docstrings are in `field_names.pyi`. A name is looked up among the names of its size, then among
the prefixes with its first byte; nothing is allocated.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t
from libc.string cimport memset

FORWARDING_NAMES = (
    # Who sent the request
    b"client-ip",
    b"fastly-client-ip",
    b"fly-client-ip",
    b"true-client-ip",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"x-originating-ip",
    b"x-proxyuser-ip",
    b"x-true-client-ip",
    # What it was sent for, and how it came in
    b"front-end-https",
    b"path-info",
    b"script-name",
    b"x-arr-clientcert",
    b"x-arr-ssl",
    b"x-host",
    b"x-host-override",
    b"x-http-host-override",
    b"x-proto",
    b"x-scheme",
    b"x-script-name",
    b"x-url-scheme",
    # CGI makes HTTP_PROXY of it in the environment ("httpoxy")
    b"proxy",
    # Which files a server in front may send itself
    b"x-accel-mapping",
    b"x-sendfile-type",
)

FORWARDING_PREFIXES = (
    # Who sent the request, what for, and how it came in
    b"cf-connecting-",
    b"forwarded",
    b"proxy-",
    b"remote-",
    b"wl-proxy-",
    b"x-appengine-",
    b"x-azure-",
    b"x-envoy-",
    b"x-forward",
    b"x-original-",
    b"x-real-",
    b"x-remote-",
    b"x-rewrite-",
    # Who has logged in, by certificate (RFC 9440) or otherwise
    b"cf-access-",
    b"client-cert",
    b"ssl-client-",
    b"tailscale-user-",
    b"x-amzn-oidc-",
    b"x-auth-request-",
    b"x-client-cert",
    b"x-goog-authenticated-user-",
    b"x-goog-iap-",
    b"x-ms-client-principal",
    b"x-ssl-client-",
    b"x-webauth-",
)

cdef dict KINDS = {
    b"set-cookie": SET_COOKIE,
    b"clear-site-data": CLEAR_SITE_DATA,
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"keep-alive": KEEP_ALIVE,
    b"expect": EXPECT,
    b"trailer": TRAILER,
    b"http2-settings": HOP,  # RFC 7540 3.2.1: belongs to an h2c upgrade, which is not passed on
    b"proxy-authenticate": HOP,
    b"proxy-authentication-info": HOP,
    b"proxy-authorization": HOP,
    b"proxy-connection": HOP,
    b"te": HOP,
    b"upgrade": HOP,
    # RFC 9110 6.5.1
    b"authorization": HEAD_ONLY,
    b"cache-control": HEAD_ONLY,
    b"content-encoding": HEAD_ONLY,
    b"content-location": HEAD_ONLY,
    b"content-range": HEAD_ONLY,
    b"content-type": HEAD_ONLY,
    b"cookie": HEAD_ONLY,
    b"location": HEAD_ONLY,
    b"max-forwards": HEAD_ONLY,
    b"www-authenticate": HEAD_ONLY,
    **{name: FORWARDING for name in FORWARDING_NAMES},
}

cdef dict PREFIX_KINDS = {
    b"tunnelmux-": OWN,
    **{name: FORWARDING for name in FORWARDING_PREFIXES},
}

# In the order of FieldKind.
cdef tuple WORDS = (
    "ordinary", "head-only", "set-cookie", "clear-site-data", "host", "content-length",
    "transfer-encoding", "connection", "keep-alive", "forwarding", "expect", "hop", "trailer", "own", "disguised",
)

cdef enum:
    MAX_ENTRIES = 96
    LONGEST = 32  # bytes of a whole name in the table

cdef struct Entry:
    const uint8_t *name
    Py_ssize_t size
    FieldKind kind

cdef Entry NAMES[MAX_ENTRIES]  # by size
cdef int FIRST[LONGEST + 2]  # where the names of each size begin; they end where the next size begins
cdef Entry PREFIXES[MAX_ENTRIES]  # by their first byte
cdef int FIRST_PREFIX[257]  # where the prefixes with each first byte begin, in the same way

# Letters in lower case, digits as they are, and "-" for every other byte.
cdef uint8_t FOLDED[256]


cdef int fill_tables() except -1:
    cdef int at = 0, size
    cdef uint8_t byte
    memset(FOLDED, c"-", 256)
    for byte in b"0123456789abcdefghijklmnopqrstuvwxyz":
        FOLDED[byte] = byte
    for byte in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        FOLDED[byte] = byte + 0x20
    assert len(KINDS) <= MAX_ENTRIES and max(map(len, KINDS)) <= LONGEST
    for size in range(LONGEST + 1):
        FIRST[size] = at
        for name, kind in KINDS.items():  # KINDS keeps the names alive
            if len(name) == size:
                NAMES[at] = Entry(<const uint8_t *>PyBytes_AS_STRING(name), size, kind)
                at += 1
    FIRST[LONGEST + 1] = at
    assert len(PREFIX_KINDS) <= MAX_ENTRIES
    at = 0
    for size in range(256):
        FIRST_PREFIX[size] = at
        for name, kind in PREFIX_KINDS.items():
            if name[0] == size:
                PREFIXES[at] = Entry(<const uint8_t *>PyBytes_AS_STRING(name), len(name), kind)
                at += 1
    FIRST_PREFIX[256] = at
    return 0

fill_tables()


cdef inline bint begins(const uint8_t *p, const Entry *entry) noexcept nogil:
    """Whether the name at *p*, which is at least as long, begins with this entry."""
    cdef Py_ssize_t i
    for i in range(entry.size):
        if FOLDED[p[i]] != entry.name[i]:
            return False
    return True


cdef FieldKind kind_of(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    cdef FieldKind kind = ORDINARY
    cdef Py_ssize_t i
    cdef int at
    if size <= LONGEST:
        for at in range(FIRST[size], FIRST[size + 1]):
            if begins(p, &NAMES[at]):
                kind = NAMES[at].kind
                break
    if kind == ORDINARY:
        for at in range(FIRST_PREFIX[FOLDED[p[0]]], FIRST_PREFIX[FOLDED[p[0]] + 1]):
            if size >= PREFIXES[at].size and begins(p, &PREFIXES[at]):
                kind = PREFIXES[at].kind
                break
    if kind > HEAD_ONLY:
        for i in range(size):
            if FOLDED[p[i]] == c"-" and p[i] != c"-":
                return DISGUISED
    return kind


def field_kind(bytes name not None):
    if not name:
        return "ordinary"
    return WORDS[<int>kind_of(<const uint8_t *>PyBytes_AS_STRING(name), len(name))]
