"""Answers to visitors who use the wrong protocol on a TLS port. `tunnelmux.http` answers those who
use TLS or HTTP/2 on a plain port.
"""

from __future__ import annotations

import ssl

from tunnelmux.http.head import write_response
from tunnelmux.http.refusal import Refusal
from tunnelmux.transports.tls import explain_tls_error

__all__ = ["PLAIN_HTTP_ANSWER", "explain_handshake", "speaks_plain_http"]

_PLAIN_HTTP = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST"})
_TOO_OLD = frozenset({"UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "TLSV1_ALERT_PROTOCOL_VERSION"})
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
# OpenSSL's reasons.


def speaks_plain_http(error: BaseException | None) -> bool:
    """Whether a handshake failed because the client sent a plain HTTP request."""
    return isinstance(error, ssl.SSLError) and error.reason in _PLAIN_HTTP


def explain_handshake(error: BaseException | None) -> str:
    """Why a visitor's handshake failed, as a text; `error` is None where the visitor left."""
    if error is None:
        return "the TLS handshake failed: the visitor left"
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    if speaks_plain_http(error):
        why = "it speaks plain HTTP: this port is for https://"
    elif reason in _TOO_OLD:
        why = "it speaks an older TLS than tls_min_version"
    elif reason in _NO_TLS:
        why = "it does not speak TLS"
    else:
        why = explain_tls_error(error)
    return f"the TLS handshake failed: {why}"


def _plain_http_answer() -> bytes:
    refusal = Refusal(
        400, "bad-request", "This port speaks TLS: write https:// in place of http://."
    )
    # The request's Accept was not read; most visitors with this mistake use a browser.
    headers, body = refusal.render(b"text/html")
    headers.append((b"Connection", b"close"))
    return write_response(refusal.status, refusal.phrase, headers) + body


PLAIN_HTTP_ANSWER = _plain_http_answer()
"""The answer to plain HTTP on a TLS port."""
