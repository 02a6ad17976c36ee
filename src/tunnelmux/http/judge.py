"""Parse with h11 the heads of answers, and trailers, that the pump's scanner declines. The scanner
accepts only unambiguous input. Old and odd servers send other heads, many of which RFC 9112 lets a
gateway repair: these are parsed here as on the h11 path, and written again.
"""

from __future__ import annotations

from tunnelmux.http.body import BadBody, parse_trailers
from tunnelmux.http.fields import (
    binds_connection,
    end_to_end,
    safe_trailers,
    without_own_fields,
)
from tunnelmux.http.head import (
    BadHead,
    ResponseHead,
    first_value,
    has_member,
    parse_response,
    write_response,
)
from tunnelmux.limits import IngressLimits

__all__ = ["HeadJudge"]

Verdict = tuple[bytes, int, int, bool, bool, bool, bool, bool]


class HeadJudge:
    """Asked by the pump's followers (`pump.followers.Judge`)."""

    def __init__(self, limits: IngressLimits) -> None:
        self._max_fields = limits.max_head_fields

    def answer(self, raw: bytes, method: bytes) -> Verdict | str:
        """The head to send in place of this one, which answers a request with this method; or the
        reason why there is none.

        The head comes back without its blank line and without `Connection`; then its status, the
        length of the body, whether that is chunked and whether it ends with the connection; whether
        the target's connection ends after it; whether it announces a body that must not follow; and
        whether it is part of a login that belongs to the connection.
        """
        try:
            head = parse_response(raw, method, self._max_fields)
        except BadHead as exc:
            return f"it did not answer in HTTP: {exc}"
        if head.status == 101:
            return "it changed the protocol (101) without being asked to"
        bodiless = method == b"HEAD" or head.status < 200 or head.status in (204, 304)
        until_end = not bodiless and not head.chunked and head.content_length is None
        headers = without_own_fields(end_to_end(head.headers))
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
        if head.status >= 200 and head.status != 204:
            if head.chunked:
                headers.append((b"Transfer-Encoding", b"chunked"))
            elif head.content_length is not None:
                headers.append((b"Content-Length", b"%d" % head.content_length))
        return (
            write_response(head.status, head.reason, headers)[:-2],
            head.status,
            0 if bodiless else head.content_length or 0,
            head.chunked,
            until_end,
            _ends_connection(head),
            bodiless and _is_framed(head),
            binds_connection(head.headers, b"www-authenticate"),
        )

    def trailers(self, raw: bytes) -> bytes | None:
        """The trailer section to send in place of this one, blank line included; None when it is
        malformed.
        """
        try:
            fields = safe_trailers(parse_trailers(raw, self._max_fields))
        except BadBody:
            return None
        return b"".join([b"%s: %s\r\n" % pair for pair in fields]) + b"\r\n"


def _ends_connection(head: ResponseHead) -> bool:
    if has_member(head.headers, b"connection", b"close"):
        return True
    return head.version == b"1.0" and not has_member(head.headers, b"connection", b"keep-alive")


def _is_framed(head: ResponseHead) -> bool:
    return bool(head.content_length) or first_value(head.headers, b"transfer-encoding") is not None
