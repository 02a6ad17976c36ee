"""Authentication of callers of the internal API."""

from __future__ import annotations

import hmac
import ssl
from dataclasses import dataclass

from tunnelmux.config import InternalListener, Secret
from tunnelmux.config.rules import names_this_machine
from tunnelmux.errors import ConfigError
from tunnelmux.http import RequestHead
from tunnelmux.http.head import first_value
from tunnelmux.proxy.internal.answers import ApiError
from tunnelmux.transports import server_context

__all__ = ["Access"]


@dataclass(frozen=True, slots=True)
class Access:
    """The credentials that callers need: a secret, a certificate (checked by `tls`), both,
    or none."""

    secret: Secret | None = None
    tls: ssl.SSLContext | None = None
    asks_for_certificate: bool = False

    @classmethod
    def from_config(cls, listener: InternalListener) -> Access:
        """Reads the files that the configuration names; raises ConfigError."""
        return cls(
            secret=listener.read_secret(),
            tls=_tls_context(listener),
            asks_for_certificate=listener.client_ca is not None,
        )

    def check(self, request: RequestHead) -> None:
        """Raise ApiError unless this request is allowed."""
        if self.secret is not None:
            self._check_secret(request, self.secret)
        elif not self.asks_for_certificate:
            _check_origin(request)

    def _check_secret(self, request: RequestHead, secret: Secret) -> None:
        value = first_value(request.headers, b"authorization") or b""
        scheme, _, given = value.partition(b" ")
        matches = hmac.compare_digest(given.strip(), secret.reveal().encode("ascii"))
        if scheme.lower() == b"bearer" and matches:
            return
        message = (
            "this is not the configured secret" if given else "no secret came with the request"
        )
        raise ApiError(
            "UNAUTHORIZED",
            f"{message}: send Authorization: Bearer with [internal] secret of proxy.toml",
            # RFC 9110 section 11.6.1: a 401 names how to authenticate.
            headers=[(b"WWW-Authenticate", b"Bearer")],
        )


def _check_origin(request: RequestHead) -> None:
    """Refuse what a browser on this machine sends on behalf of some page.

    Where everybody on the machine may call, a page of another site could have the browser call for
    it: directly (then there is an Origin, or Sec-Fetch-Site says so where it looks for a picture),
    or through a name that leads here (then Host tells).
    """
    site = first_value(request.headers, b"sec-fetch-site") or b"none"
    if first_value(request.headers, b"origin") is not None or site.lower() != b"none":
        raise ApiError("FORBIDDEN", "a page in a browser may not call this: set [internal] secret")
    host = request.host.decode("latin-1")
    if host and not names_this_machine(host):
        raise ApiError(
            "FORBIDDEN",
            "the host asked for is not this machine: call 127.0.0.1, or set [internal] secret",
        )


def _tls_context(listener: InternalListener) -> ssl.SSLContext | None:
    if listener.tls_certificate is None or listener.tls_key is None:
        return None
    context = server_context(listener.tls_certificate, listener.tls_key)
    if listener.client_ca is not None:
        try:
            context.load_verify_locations(listener.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"internal.client_ca: the authorities in {listener.client_ca} cannot be loaded "
                f"({error.strerror or error}): it must be a readable PEM file"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context
