"""Several certificates on one listener, and their renewal."""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
from pathlib import Path

import pytest
import trustme

from tunnelmux.errors import ConfigError
from tunnelmux.transports.certificates import CertificatePair, ServerCertificates

AUTHORITY = trustme.CA()


def write(folder: Path, file: str, *names: str, common_name: str | None = None) -> CertificatePair:
    """A certificate for these names, in two files; each writing is newer than the one before."""
    issued = AUTHORITY.issue_cert(*names, common_name=common_name)
    pair = folder / f"{file}.pem", folder / f"{file}.key"
    previous = pair[0].stat().st_mtime_ns if pair[0].exists() else 0
    issued.cert_chain_pems[0].write_to_path(pair[0])
    issued.private_key_pem.write_to_path(pair[1])
    for path in pair:
        os.utime(path, ns=(previous + 10**9,) * 2)
    return pair


class Shaken:
    """A client after its handshake with a server, in memory."""

    def __init__(
        self,
        server: ssl.SSLContext,
        name: str | None,
        *,
        version: ssl.TLSVersion | None = None,
        alpn: tuple[str, ...] = (),
        session: ssl.SSLSession | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        if context is None:
            context = ssl.create_default_context()
            AUTHORITY.configure_trust(context)
            context.check_hostname = False
            if version is not None:
                context.minimum_version = context.maximum_version = version
            if alpn:
                context.set_alpn_protocols(alpn)
        self.context = context
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(to_client, to_server, server_hostname=name, session=session)
        serving = server.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(3):
            for end in (self.client, serving):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        serving.write(b"x")
        assert self.client.read(1) == b"x"

    @property
    def names(self) -> list[str]:
        """Those of the certificate that was shown."""
        certificate = self.client.getpeercert()
        assert certificate is not None
        return [str(value) for _, value in certificate.get("subjectAltName", ())]


@pytest.fixture
def several(tmp_path: Path) -> ServerCertificates:
    return ServerCertificates(
        [
            write(tmp_path, "first", "*.tunnel.example.com"),
            write(tmp_path, "shop", "shop.example.com", "www.shop.example.com"),
            write(tmp_path, "wild", "*.shop.example.com", "SHOP.example.com"),
        ]
    )


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("dev1.tunnel.example.com", "*.tunnel.example.com"),
        ("shop.example.com", "shop.example.com"),
        ("Www.Shop.Example.Com", "shop.example.com"),  # the name itself before the wildcard
        ("other.shop.example.com", "*.shop.example.com"),
        ("a.b.shop.example.com", "*.tunnel.example.com"),  # a wildcard is one label
        ("unknown.example.net", "*.tunnel.example.com"),
        (None, "*.tunnel.example.com"),
    ],
)
def test_the_name_asked_for_chooses(
    several: ServerCertificates, asked: str | None, shown: str
) -> None:
    assert shown in Shaken(several.context, asked).names


def test_only_http_1_1_is_offered_and_old_versions_are_not(several: ServerCertificates) -> None:
    name = "shop.example.com"
    assert Shaken(
        several.context, name, alpn=("h2", "http/1.1")
    ).client.selected_alpn_protocol() == ("http/1.1")
    assert Shaken(several.context, name, alpn=("h2",)).client.selected_alpn_protocol() is None
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert Shaken(several.context, name, version=version).client.version()
    strict = ServerCertificates(several.pairs, ssl.TLSVersion.TLSv1_3)
    with pytest.raises(ssl.SSLError):
        Shaken(strict.context, name, version=ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize("which", [0, 1], ids=["first", "other"])
def test_a_renewed_certificate_is_shown_and_tickets_stay_good(
    several: ServerCertificates, which: int
) -> None:
    certificate, _ = several.pairs[which]
    name = ("new.tunnel.example.com", "shop.example.com")[which]
    version = ssl.TLSVersion.TLSv1_2
    before = Shaken(several.context, name, version=version)
    assert several.reload_changed() == []
    write(certificate.parent, certificate.stem, name, f"renewed-{name}")
    assert several.reload_changed() == []
    assert f"renewed-{name}" in Shaken(several.context, name).names
    again = Shaken(several.context, name, context=before.context, session=before.client.session)
    assert again.client.session_reused


def test_half_a_renewal_changes_nothing(several: ServerCertificates) -> None:
    certificate, key = several.pairs[0]
    old_key = key.read_bytes()
    write(certificate.parent, "first", "renewed.example.com")
    new_key = key.read_bytes()
    key.write_bytes(old_key)
    (problem,) = several.reload_changed()
    assert isinstance(problem, ConfigError)
    assert str(certificate) in str(problem)
    assert several.reload_changed() == [], "said once"
    assert Shaken(several.context, None).names == ["*.tunnel.example.com"]
    key.write_bytes(new_key)
    os.utime(key, ns=(10**15, 10**15))
    assert several.reload_changed() == []
    assert Shaken(several.context, None).names == ["renewed.example.com"]


def test_a_file_that_is_gone_changes_nothing(several: ServerCertificates) -> None:
    several.pairs[0][0].unlink()
    assert len(several.reload_changed()) == 1
    assert Shaken(several.context, None).names == ["*.tunnel.example.com"]


def test_a_certificate_without_dns_names_is_for_those_who_ask_for_none(tmp_path: Path) -> None:
    pairs = [write(tmp_path, "a", "127.0.0.1"), write(tmp_path, "b", "b.example.com")]
    certificates = ServerCertificates(pairs)
    assert Shaken(certificates.context, "b.example.com").names == ["b.example.com"]
    assert Shaken(certificates.context, None).names == ["127.0.0.1"]


def test_a_pair_that_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path, "a", "a.example.com"), write(tmp_path, "b", "b.example.com")
    with pytest.raises(ConfigError, match="belong together"):
        ServerCertificates([one, (two[0], one[1])])


def hello(name: str) -> bytes:
    """What a client says first."""
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def test_a_name_of_odd_bytes_ends_the_handshake_and_prints_nothing(
    several: ServerCertificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python printed a traceback for each such client, who needs no more than one packet for it."""
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    again = ServerCertificates(several.pairs)
    third = ServerCertificates(several.pairs)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = again.context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(hello("shop.example.com").replace(b"shop.example.com", b"shop.ex\xe4mple.com"))
    with pytest.raises(ssl.SSLError):
        serving.do_handshake()
    assert outgoing.read()[0] == 21  # an alert
    assert not printed
    # All else is printed as ever, and once.
    raise_later(third)
    assert len(printed) == 1


def raise_later(_: object) -> None:
    """Raise where no caller can catch it."""

    class Careless:
        def __del__(self) -> None:
            raise ValueError("a destructor failed")

    Careless()
