"""A TLS server's certificates: several, chosen by the name that the client asks for, and reloaded
when their files change."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

from tunnelmux.errors import ConfigError
from tunnelmux.observability import get_logger
from tunnelmux.transports.tls import load_certificate

__all__ = ["RELOAD_INTERVAL", "CertificatePair", "ServerCertificates", "follow_renewals"]

_log = get_logger("transports.tls")

RELOAD_INTERVAL = 5.0
"""Seconds between looks at the files. A renewal comes weeks before the old certificate ends, so
no caller waits for it; a look is one call of the system for each file."""

CertificatePair = tuple[Path, Path]
"""The PEM files of a certificate chain and of its private key."""

_Stamp = tuple[tuple[int, int, int] | None, ...]


class ServerCertificates:
    """The TLS context of a server for browsers: HTTP/1.1 by ALPN (RFC 7301), session tickets, and
    the certificate chosen by SNI (RFC 6066 section 3), or else the first.

    Raises ConfigError when a pair cannot be loaded.
    """

    def __init__(
        self,
        pairs: Sequence[CertificatePair],
        minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    ) -> None:
        self.pairs = tuple(pairs)
        self.minimum = minimum
        self.context = self._new_context()
        """The context for new connections. It stays the same object, so its session tickets stay
        valid.
        """
        self._by_name: dict[str, ssl.SSLContext] = {}
        self._stamps: dict[CertificatePair, _Stamp] = {}
        self._others: dict[CertificatePair, tuple[ssl.SSLContext, list[str]]] = {}
        for pair in self.pairs:
            self._stamps[pair] = _stamp(pair)
            self._load(pair)
        if len(self.pairs) > 1:
            self._name_all()
            self.context.sni_callback = self._choose
            _pass_over_odd_names()

    def reload_changed(self) -> list[ConfigError]:
        """Load the pairs whose files have changed. Returns the failures. A pair that failed, as
        between the writing of its two files, keeps its old certificate until it changes again.
        """
        problems = []
        for pair in self.pairs:
            stamp = _stamp(pair)
            if stamp == self._stamps[pair]:
                continue
            self._stamps[pair] = stamp
            try:
                self._load(pair)
            except ConfigError as error:
                problems.append(error)
            else:
                _log.info("certificate reloaded", certificate=str(pair[0]))
        if len(self.pairs) > 1:
            self._name_all()
        return problems

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self.minimum
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _load(self, pair: CertificatePair) -> None:
        # A new context first: one that fails half-way would have the certificate without its key.
        context = self._new_context()
        load_certificate(context, *pair)
        if pair == self.pairs[0]:
            load_certificate(self.context, *pair)
        if len(self.pairs) > 1:
            self._others[pair] = context, _names_of(pair[0])

    def _name_all(self) -> None:
        self._by_name = {}
        for pair in self.pairs:  # the first one of two with the same name
            context, names = self._others[pair]
            for name in names:
                self._by_name.setdefault(name, context)

    def _choose(
        self, tls: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext
    ) -> None:
        """Called by the TLS library during the handshake."""
        if name is None:
            return
        name = name.lower()
        context = self._by_name.get(name) or self._by_name.get(f"*.{name.partition('.')[2]}")
        if context is not None:
            tls.context = context


def _pass_over_odd_names() -> None:
    """Have this process say nothing about names that are not ASCII.

    Python decodes a name before it calls `sni_callback`. Where that fails it ends the handshake
    with an alert, as it should, but also prints an error with a traceback for each such client.
    """
    present = sys.unraisablehook
    if not (isinstance(present, partial) and present.func is _unless_odd_name):
        sys.unraisablehook = partial(_unless_odd_name, present)


def _unless_odd_name(
    tell: Callable[[sys.UnraisableHookArgs], object], unraisable: sys.UnraisableHookArgs
) -> None:
    is_name = isinstance(unraisable.object, bytes)
    if not (is_name and isinstance(unraisable.exc_value, UnicodeDecodeError)):
        tell(unraisable)


async def follow_renewals(current: Callable[[], ServerCertificates | None]) -> NoReturn:
    """Load the files of the present certificates again when they change, until cancelled."""
    while True:
        await trio.sleep(RELOAD_INTERVAL)
        certificates = current()
        for problem in certificates.reload_changed() if certificates is not None else ():
            _log.warning(
                "certificate not reloaded", problem=str(problem), effect="the old one stays"
            )


def _stamp(pair: CertificatePair) -> _Stamp:
    return tuple(_stamp_of_file(path) for path in pair)


def _stamp_of_file(path: Path) -> tuple[int, int, int] | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_ino, seen.st_size


def _names_of(certificate: Path) -> list[str]:
    """The DNS names of the first certificate in the file, in lower case."""
    # Imported here: few proxies have several certificates.
    from cryptography import x509

    leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)]
