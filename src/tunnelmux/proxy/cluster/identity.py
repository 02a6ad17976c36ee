"""The key and certificate by which nodes of a cluster authenticate each other."""

from __future__ import annotations

import base64
import datetime
import os
import ssl
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tunnelmux.observability import get_logger

__all__ = ["NodeIdentity", "shown_certificate"]

_log = get_logger("proxy.cluster")

_CLOCK_SKEW = datetime.timedelta(days=1)
_NO_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # RFC 5280 4.1.2.5


class NodeIdentity:
    """A key of this start of the node only, and its self-signed certificate, which other nodes
    trust because the directory has it. The key is outside of memory only while it is loaded.
    """

    def __init__(self, pem: bytes) -> None:
        self.pem = pem
        """Certificate and key, for the processes of this node only."""
        der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        self.certificate = base64.b64encode(der).decode("ascii")
        """The certificate, DER in Base64, for the directory."""

    @classmethod
    def made_for(cls, node: str) -> NodeIdentity:
        """A new one for the node of that name."""
        key = ec.generate_private_key(ec.SECP256R1())
        # RFC 5280 appendix A.1: a common name has 64 characters at the most.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node[:64])])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime.now(datetime.UTC) - _CLOCK_SKEW)
            .not_valid_after(_NO_END)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return cls(
            pem
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def client_context(self, peer: str) -> ssl.SSLContext:
        """A context to dial the node with this certificate (DER in Base64)."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT, [peer])

    def server_context(self, peers: Iterable[str]) -> ssl.SSLContext:
        """A context for nodes with one of these certificates."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER, peers)
        # A node dials once in hours: session tickets are of no use to it.
        context.num_tickets = 0
        return context

    def _context(self, protocol: int, peers: Iterable[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.check_hostname = False  # the certificate itself is pinned
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        for peer in filter(None, peers):
            # One at a time: a node that names no certificate must not lock the others out.
            try:
                context.load_verify_locations(cadata=base64.b64decode(peer))
            except (ValueError, ssl.SSLError) as error:
                _log.warning("certificate of a node not read", cause=str(error))
        # The ssl module loads keys only from files.
        with TemporaryDirectory(prefix="tunnelmux-") as folder:
            file = Path(folder) / "node.pem"
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as writer:
                writer.write(self.pem)
            context.load_cert_chain(file)
        return context


def shown_certificate(tls: ssl.SSLObject) -> str:
    """The peer's certificate, DER in Base64; empty without one."""
    der = tls.getpeercert(binary_form=True)
    return base64.b64encode(der).decode("ascii") if der else ""
