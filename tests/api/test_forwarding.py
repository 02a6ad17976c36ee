"""What a device's service may say in an answer that the API passes on."""

from __future__ import annotations

from tunnelmux.api.forwarding import answer_fields
from tunnelmux.http.head import parse_response


def test_a_device_gives_no_orders_to_a_browser_or_to_the_proxy_in_front() -> None:
    """nginx would ask us for the path in `X-Accel-Redirect`, with the caller's token."""
    lines = [
        *(b"Content-Type: text/html", b"Content-Length: 2", b"ETag: x"),
        *(b"X-Accel-Redirect: /api/people", b"x-accel-limit-rate: 1", b"X-Accel-Expires: 9"),
        *(b"X-Sendfile: /etc/passwd", b"X-Lighttpd-Send-File: /a", b"X-Reproxy-URL: http://a/"),
        *(b"Set-Cookie: a=1", b"Clear-Site-Data: *", b"Content-Security-Policy: default-src *"),
        *(b"Connection: X-Mine", b"X-Mine: 1", b"Tunnelmux-Reason: x"),
    ]
    head = parse_response(b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(lines) + b"\r\n\r\n", b"GET")
    assert answer_fields(head) == [
        (b"content-type", b"text/html"),
        (b"etag", b"x"),
        (b"content-length", b"2"),
        (b"content-security-policy", b"sandbox; default-src 'none'"),
        (b"x-content-type-options", b"nosniff"),
    ]
