"""The certificates by which the gateway logs in to devices."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tunnelmux.config import InvalidSetting
from tunnelmux.gateway.certificates import Authorities, Identity, new_authority_key

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def authorities(tmp_path: Path) -> Authorities:
    file = tmp_path / "authority.key"
    file.write_text(new_authority_key())
    return Authorities(file)


def test_a_certificate_names_actor_and_lease_and_is_good_for_minutes(
    authorities: Authorities, tmp_path: Path, debian_program: Callable[[str, str], str]
) -> None:
    identity = Identity("bob o'neil@example.com", "l1")
    _, certificate = authorities.certify("t1", "root", identity, NOW)
    file = tmp_path / "c-cert.pub"
    file.write_bytes(certificate.export_certificate())
    keygen = debian_program("ssh-keygen", "openssh-client")
    result = subprocess.run(
        ["env", "TZ=UTC", keygen, "-L", "-f", str(file)], capture_output=True, text=True, check=True
    )
    assert 'Key ID: "actor=bob_o\'neil@example.com lease=l1"' in result.stdout
    assert "Valid: from 2026-01-02T03:03:05 to 2026-01-02T03:09:05" in result.stdout
    assert re.search(r"Principals:\s+root\s+Critical Options: \(none\)", result.stdout)
    assert re.search(r"Extensions:\s+permit-pty\s*$", result.stdout)
    (tmp_path / "ca.pub").write_text(authorities.public_line("t1", "acme"))
    line = subprocess.run(
        [keygen, "-l", "-f", str(tmp_path / "ca.pub")], capture_output=True, text=True, check=True
    ).stdout
    assert line.split()[1] in result.stdout
    assert line.split()[2] == "tunnelmux-acme"


def test_each_tenant_has_an_authority_that_stays_the_same(
    authorities: Authorities, tmp_path: Path
) -> None:
    again = Authorities(tmp_path / "authority.key")
    assert again.public_line("t1", "x") == authorities.public_line("t1", "x")
    assert again.public_line("t2", "x") != authorities.public_line("t1", "x")
    other = tmp_path / "other.key"
    other.write_text(new_authority_key())
    assert Authorities(other).public_line("t1", "x") != authorities.public_line("t1", "x")


def test_a_file_that_holds_no_key_is_refused_without_being_shown(tmp_path: Path) -> None:
    file = tmp_path / "authority.key"
    file.write_text("not a key\n")
    with pytest.raises(InvalidSetting) as refused:
        Authorities(file)
    assert "64 hexadecimal digits" in str(refused.value)
    assert "not a key" not in str(refused.value)
