"""Parts of which hypothesis puts heads together, good and bad ones."""

from __future__ import annotations

from hypothesis import strategies as st

from support.head_checks import HOST

__all__ = ["HEADS_OF_PARTS", "REQUEST_LINES", "STATUS_LINES"]

NAMES = st.sampled_from(
    [
        *(
            b"Accept",
            b"Cookie",
            b"X-A",
            b"Connection",
            b"Keep-Alive",
            b"Upgrade",
            b"TE",
            b"Trailer",
        ),
        *(b"Content-Length", b"Transfer-Encoding", b"Host", b"Expect", b"Forwarded", b"X-Real-IP"),
        *(b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Prefix", b"Proxy-Connection"),
        *(b"Tunnelmux-Service", b"HTTP2-Settings", b"content-length", b"TRANSFER-ENCODING"),
        *(b"Content_Length", b"X_Forwarded_For", b"Set-Cookie", b"Proxy", b"Tunnelmux"),
        *(b"Clear-Site-Data", b"CLEAR-site-data"),
        *(b"Proxy-Support", b"Proxy-Authenticate", b"Upgrade", b"Connection", b"Connection"),
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            *(b"keep-alive", b"close", b"Keep-Alive", b"chunked", b"Chunked", b"0", b"5", b"05"),
            *(b"Upgrade", b"upgrade, close", b"Upgrade,Keep-Alive", b"close, keep-alive"),
            *(b"5, 5", b"", b"a, b", b"for=1.1.1.1", b"trailers", b"100-continue", b"9" * 18),
            *(b"9" * 19, b"9" * 20, b"9" * 21, HOST, b"dev2.localhost", b"x\ty", b"J\xc3\xb6rg"),
        ]
    ),
    st.binary(max_size=12),
)
COLONS = st.sampled_from([b": "] * 12 + [b":", b":  ", b":\t", b" : "])
ENDS = st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r", b" \r\n", b"\r\n ", b"\r\r\n"])
FIELDS = st.builds(lambda *parts: b"".join(parts), NAMES, COLONS, VALUES, ENDS)
METHODS = [b"GET", b"HEAD", b"POST", b"CONNECT", b"OPTIONS", b"get", b"M-SEARCH", b"A_B"]
REQUEST_LINES = st.builds(
    lambda *parts: b" ".join(parts),
    st.sampled_from(METHODS),
    st.sampled_from([b"/", b"/a?b", b"//x", b"*", b"http://dev1.localhost/", b"dev1:80", b"/\xff"]),
    st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0", b"HTTP/1.2", b"http/1.1"]),
)
STATUS_LINES = st.builds(
    lambda *parts: b" ".join(parts),
    st.sampled_from([b"HTTP/1.1"] * 4 + [b"HTTP/1.0", b"HTTP/1.2"]),
    st.sampled_from([b"200", b"404", b"100", b"101", b"103", b"204", b"304", b"599", b"600"]),
    st.sampled_from([b"OK", b"", b"Not Found", b"\xe4\t", b"\x01"]),
)
HEADS_OF_PARTS = st.lists(FIELDS, max_size=5).map(b"".join)
