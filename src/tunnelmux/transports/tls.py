"""TLS 1.3 contexts, and certificates trusted by their fingerprint (a pin)."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ssl
from pathlib import Path

import trio

from tunnelmux.config.rules import parse_pin
from tunnelmux.errors import ConfigError, ConnectError
from tunnelmux.pump.data_pump import watch_records

__all__ = [
    "certificate_pin",
    "client_context",
    "explain_tls_error",
    "load_certificate",
    "send_close_notify",
    "server_context",
    "start_client_tls",
    "start_server_tls",
    "target_context",
]


def certificate_pin(der: bytes) -> str:
    """The pin of a DER certificate: "sha256:" and the hex digits of its SHA-256."""
    return "sha256:" + hashlib.sha256(der).hexdigest()


def server_context(
    certificate: str | Path, key: str | Path, *, tickets: bool = True
) -> ssl.SSLContext:
    """A TLS 1.3 server context from PEM files; ConfigError names the file and the cause.

    Without *tickets* the server sends nothing after the handshake on its own: unread session
    tickets would turn the close of a peer that only sends into a reset.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not tickets:
        context.num_tickets = 0
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    load_certificate(context, certificate, key)
    return context


def load_certificate(context: ssl.SSLContext, certificate: str | Path, key: str | Path) -> None:
    """Have a server show this certificate, from PEM files; ConfigError names file and cause."""
    try:
        # A password would be asked for on the terminal, which a daemon does not have.
        context.load_cert_chain(certificate, key, password=b"")
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"cannot load the certificate {certificate} with the key {key}: "
            f"{explain_tls_error(exc)}; both must be readable PEM files that belong together, the "
            "key without a password"
        ) from exc


def client_context(ca_file: str | Path | None = None, pin: str | None = None) -> ssl.SSLContext:
    """A TLS 1.3 client context.

    With nothing given, the system's authorities are trusted; with `ca_file`, those in that PEM
    file; with `pin` alone, exactly the certificate with that fingerprint, by any signer and
    whatever name it carries. With both, both must hold.
    """
    from tunnelmux.transports.pinned import PinnedContext

    context = PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if pin is not None:
        context.pin = parse_pin("pin", pin)
    if ca_file is not None:
        _load_authorities(context, ca_file)
    elif pin is not None:
        # The pin is the whole of the trust: checked by start_client_tls before any byte of
        # ours is sent.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_default_certs()
    return context


def target_context(ca_file: str | Path | None, *, verify: bool = True) -> ssl.SSLContext:
    """A client context for a device's own targets, which may be old: TLS 1.2 or newer.

    With `ca_file`, the authorities in that PEM file are trusted, else the system's. Without
    `verify` any certificate is, and every version and key that OpenSSL still knows: where the peer
    is not authenticated, a strong cipher protects from little. Raises ConfigError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    elif ca_file is not None:
        _load_authorities(context, ca_file)
    else:
        context.load_default_certs()
    return context


def _load_authorities(context: ssl.SSLContext, ca_file: str | Path) -> None:
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"cannot load the authorities in {ca_file}: {explain_tls_error(exc)}; it must be a "
            "readable PEM file"
        ) from exc


def explain_tls_error(exc: BaseException | None) -> str:
    """The cause of a failure in a few words."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return exc.verify_message or "the certificate is not trusted"
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or str(exc)).lower().replace("_", " ")
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return str(exc) or type(exc).__name__


async def start_client_tls(
    stream: trio.abc.Stream, context: ssl.SSLContext, host: str, *, where: str
) -> trio.SSLStream[trio.abc.Stream]:
    """TLS on a connected stream, the handshake done and the pin checked.

    Raises ConnectError (and closes the stream) when it fails. The caller bounds the time.
    """
    tls = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    watch_records(tls)
    try:
        await tls.do_handshake()
        _check_pin(tls, context, where)
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(stream)
        cause = exc.__cause__
        fix = "check that the port speaks TLS"
        if isinstance(cause, ssl.SSLCertVerificationError):
            fix = "set ca_file to the authority that signed it, or pin to its fingerprint"
        elif cause is None:
            fix = "the connection ended during the handshake"
        raise ConnectError(f"TLS with {where} failed: {explain_tls_error(cause)}; {fix}") from exc
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return tls


def _check_pin(tls: trio.SSLStream[trio.abc.Stream], context: ssl.SSLContext, where: str) -> None:
    from tunnelmux.transports.pinned import PinnedContext

    if not isinstance(context, PinnedContext) or not context.pin:
        return
    der = tls.getpeercert(binary_form=True)
    seen = certificate_pin(der) if der else "none"
    if not hmac.compare_digest(seen, context.pin):
        # Retryable: a network's login page may be answering with its own certificate.
        raise ConnectError(
            f"the certificate of {where} is not the pinned one: expected {context.pin}, seen "
            f"{seen}; something in between answers in its place (a login page of the network?), or "
            "the certificate was renewed: if that was on purpose, set pin to the one seen"
        )


async def start_server_tls(
    stream: trio.SocketStream, context: ssl.SSLContext, *, timeout: float
) -> trio.SSLStream[trio.SocketStream]:
    """The server side of TLS on an accepted stream, the handshake done within `timeout` seconds.

    Raises ConnectError when the peer fails it, which is the peer's matter and no fault here.
    """
    tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    watch_records(tls)
    try:
        with trio.fail_after(timeout):
            await tls.do_handshake()
    except trio.TooSlowError:
        raise ConnectError(f"the peer did not finish TLS within {timeout:g} s") from None
    except trio.BrokenResourceError as exc:
        cause = explain_tls_error(exc.__cause__)
        raise ConnectError(f"the peer failed the TLS handshake: {cause}") from exc
    return tls


async def send_close_notify(stream: trio.SSLStream[trio.abc.Stream]) -> None:
    """Tell the peer that this was all (RFC 8446 section 6.1), and wait for no answer; the stream is
    for closing then. Raises trio.BrokenResourceError when the transport is broken.

    Trio sends it for a stream only that wants one from every peer, which browsers do not send.
    """
    # Trio has no public way to these. Should they move, a stream ends as it did without this.
    tls = getattr(stream, "_ssl_object", None)
    outgoing = getattr(stream, "_outgoing", None)
    if tls is None or outgoing is None:
        return
    with contextlib.suppress(ssl.SSLError, ValueError):
        tls.unwrap()
    if data := outgoing.read():
        await stream.transport_stream.send_all(data)
