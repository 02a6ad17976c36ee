"""The TLS certificates of the HTTP ingress."""

from __future__ import annotations

import ssl
from typing import NoReturn

from tunnelmux.config import HttpIngress
from tunnelmux.transports.certificates import ServerCertificates, follow_renewals

__all__ = ["IngressCertificates"]


class IngressCertificates:
    """What `[ingress.http]` names, kept over a reload of the configuration and read again when its
    files change.
    """

    def __init__(self) -> None:
        self._current: ServerCertificates | None = None

    def load(self, http: HttpIngress | None) -> ServerCertificates | None:
        """The certificates for these settings; None without TLS. Raises ConfigError.

        With unchanged settings they are the present ones, because new ones would void all session
        tickets.
        """
        if http is None or http.tls_certificate is None or http.tls_key is None:
            return None
        pairs = [(http.tls_certificate, http.tls_key)]
        pairs += [(more.certificate, more.key) for more in http.certificates]
        minimum = ssl.TLSVersion.TLSv1_3
        if http.tls_min_version == "1.2":
            minimum = ssl.TLSVersion.TLSv1_2
        kept = self._current
        if kept is None or (kept.pairs, kept.minimum) != (tuple(pairs), minimum):
            return ServerCertificates(pairs, minimum)
        for problem in kept.reload_changed():
            raise problem
        return kept

    def keep(self, loaded: ServerCertificates | None) -> ssl.SSLContext | None:
        """Take what `load` returned as the present ones. Returns their TLS context."""
        self._current = loaded
        return loaded.context if loaded is not None else None

    async def run(self) -> NoReturn:
        """Read files that change, until cancelled."""
        await follow_renewals(lambda: self._current)
