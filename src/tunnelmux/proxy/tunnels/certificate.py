"""The quickstart's TLS certificate: self-signed, and trusted by its pin."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tunnelmux.config.private_file import write_private
from tunnelmux.errors import ConfigError
from tunnelmux.transports import certificate_pin

__all__ = ["make_certificate", "pin_of"]

_CLOCK_SKEW = datetime.timedelta(days=1)  # a device without a battery clock may be behind

# RFC 5280 section 4.1.2.5: the date for "does not expire". Agents trust the pin, and an expired
# certificate would lock out a whole fleet on one day.
_NO_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


def make_certificate(certificate: Path, key: Path, host: str, now: datetime.datetime) -> None:
    """Write a new certificate for `host` and localhost, and its private key (both 0600).

    Does nothing when both files are there: the devices that joined trust that certificate and no
    other. Raises OSError.
    """
    if certificate.exists() and key.exists():
        return
    private_key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tunnelmux-proxy")])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(_NO_END)
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private_key, hashes.SHA256())
    )
    # The key first: a certificate without its key would look complete to the check above.
    write_private(
        key,
        private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    write_private(certificate, built.public_bytes(serialization.Encoding.PEM))


def _names(host: str) -> list[x509.GeneralName]:
    names: dict[str, x509.GeneralName] = {}
    for name in (host, "localhost", "127.0.0.1", "::1"):
        try:
            names[name] = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            names[name] = x509.DNSName(name)
    return list(names.values())


def pin_of(certificate: Path) -> str:
    """The pin of the first certificate in a PEM file: `sha256:` and 64 hexadecimal digits.

    Raises ConfigError when the file cannot be read or holds no certificate.
    """
    try:
        pem = certificate.read_text("ascii")
        end = "-----END CERTIFICATE-----"
        return certificate_pin(ssl.PEM_cert_to_DER_cert(pem.partition(end)[0] + end))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{certificate} cannot be used ({error}): remove it and its key, and start "
            "tunnelmux-proxy --quickstart again; devices must then join again"
        ) from error
