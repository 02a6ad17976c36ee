"""Whose server it is: trust on first use, known hosts, and keys that changed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from support.own_thread import replace_here
from support.ssh_client import Asker
from support.sshd import SshServer, running_sshd
from tunnelmux.commands import CommandResult
from tunnelmux.limits import ExecLimits
from tunnelmux.ssh import HostKeys, SshFailure
from tunnelmux.ssh.connection import Login
from tunnelmux.ssh.pool import open_pool

pytestmark = pytest.mark.slow  # each starts an sshd


async def run(keys: HostKeys, server: SshServer, **changes: object) -> CommandResult:
    async with open_pool(Login(ExecLimits(), keys)) as pool:
        return await pool.run(Asker(server)("echo in", **changes))


def host_key(server: SshServer) -> str:
    return " ".join((server.folder / "host_key.pub").read_text("ascii").split()[:2])


def named(server: SshServer) -> str:
    return f"[{server.address.host}]:{server.address.port}"


async def test_the_first_meeting_pins_and_the_next_ones_compare(
    sshd: SshServer, tmp_path: Path
) -> None:
    store = tmp_path / "new" / "pinned"
    assert (await run(HostKeys("tofu", store=store), sshd)).stdout == "in\n"
    assert store.read_text() == f"{named(sshd)} {host_key(sshd)}\n"
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert (await run(HostKeys("tofu", store=store), sshd)).stdout == "in\n"


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
async def test_a_changed_key_is_refused_with_a_sentence_that_says_so(
    sshd: SshServer, tmp_path: Path, debian_program, kind: str
) -> None:
    """Also one of another kind, which the pinned one's algorithm would not even negotiate."""
    store = tmp_path / "pinned"
    keygen = debian_program("ssh-keygen", "openssh-client")
    other = tmp_path / "other"
    await trio.run_process([keygen, "-q", "-t", kind, "-N", "", "-C", "", "-f", str(other)])
    public = " ".join(other.with_suffix(".pub").read_text("ascii").split()[:2])
    store.write_text(f"{named(sshd)} {public}\n")
    result = await run(HostKeys("tofu", store=store), sshd)
    assert (result.exit_code, result.reason) == (255, "host-key-changed")
    assert f"the host key of {named(sshd)} has changed" in result.stderr
    assert str(store) in result.stderr and "SHA256:" in result.stderr
    assert store.read_text() == f"{named(sshd)} {public}\n"  # and it is not learned


async def test_a_server_set_up_anew_is_refused_until_its_line_is_removed(
    tmp_path: Path, debian_program
) -> None:
    store = tmp_path / "pinned"
    folder = tmp_path / "sshd"
    folder.mkdir()
    keys = HostKeys("tofu", store=store)
    async with running_sshd(folder, debian_program) as server:
        assert (await run(keys, server)).exit_code == 0
    for name in ("host_key", "host_key.pub"):
        (folder / name).unlink()
    async with running_sshd(folder, debian_program, port=server.address.port) as server:
        assert (await run(keys, server)).reason == "host-key-changed"
        store.write_text("# the line was removed\n")  # without a restart of the program
        assert (await run(keys, server)).exit_code == 0
        assert store.read_text() == f"{named(server)} {host_key(server)}\n"


async def test_the_key_is_pinned_even_when_the_login_fails(sshd: SshServer, tmp_path: Path) -> None:
    store = tmp_path / "pinned"
    result = await run(HostKeys("tofu", store=store), sshd, private_key=None)
    assert result.reason == "auth-failed"
    assert store.read_text() == f"{named(sshd)} {host_key(sshd)}\n"


async def test_known_hosts_trusts_what_is_in_the_file_and_nothing_else(
    sshd: SshServer, tmp_path: Path
) -> None:
    file = tmp_path / "known_hosts"
    file.write_text("# none yet\n")
    result = await run(HostKeys("known_hosts", known_hosts=file), sshd)
    assert (result.exit_code, result.reason) == (255, "host-key-unknown")
    assert f"the host key of {named(sshd)} is not known" in result.stderr
    file.write_text(f"{named(sshd)} {host_key(sshd)}\n")
    assert (await run(HostKeys("known_hosts", known_hosts=file), sshd)).stdout == "in\n"
    file.write_text(f"@revoked {named(sshd)} {host_key(sshd)}\n")
    assert (await run(HostKeys("known_hosts", known_hosts=file), sshd)).exit_code == 255


async def test_an_authority_in_the_known_hosts_vouches_for_its_servers(
    tmp_path: Path, debian_program
) -> None:
    keygen = debian_program("ssh-keygen", "openssh-client")
    for name in ("authority", "host_key"):
        await trio.run_process(
            [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        )
    sign = ["-s", str(tmp_path / "authority"), "-I", "x", "-h", "-n", "127.0.0.1"]
    await trio.run_process([keygen, "-q", *sign, str(tmp_path / "host_key.pub")])
    more = f"HostCertificate {tmp_path}/host_key-cert.pub"
    file = tmp_path / "known_hosts"
    authority = (tmp_path / "authority.pub").read_text()
    async with running_sshd(tmp_path, debian_program, more=more) as server:
        file.write_text(f"@cert-authority [127.0.0.*]:* {authority}")
        keys = HostKeys("known_hosts", known_hosts=file)
        assert (await run(keys, server)).stdout == "in\n"
        file.write_text(f"@cert-authority [other]:* {authority}")
        assert (await run(keys, server)).reason == "host-key-unknown"
        # And the first meeting pins its plain key, which stays when certificates run out.
        store = tmp_path / "pinned"
        assert (await run(HostKeys("tofu", store=store), server)).stdout == "in\n"
        assert store.read_text() == f"{named(server)} {host_key(server)}\n"


async def test_known_hosts_counts_for_trust_on_first_use_too(
    sshd: SshServer, tmp_path: Path, debian_program
) -> None:
    keygen = debian_program("ssh-keygen", "openssh-client")
    other = tmp_path / "other"
    await trio.run_process([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(other)])
    file = tmp_path / "known_hosts"
    file.write_text(f"{named(sshd)} {other.with_suffix('.pub').read_text()}")
    assert (await run(HostKeys("tofu", known_hosts=file), sshd)).reason == "host-key-changed"


async def test_off_trusts_any_and_keeps_none(sshd: SshServer, tmp_path: Path) -> None:
    store = tmp_path / "pinned"
    assert (await run(HostKeys("off", store=store), sshd)).stdout == "in\n"
    assert not store.exists()


GOOD_KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJxH6cUQ3z2rEj9OjW1cTfY0fbtWXK8bZ1Yy8bD0C0ZC"  # of no one
)


async def test_a_damaged_line_costs_that_line_only(sshd: SshServer, tmp_path: Path) -> None:
    """Such as one with a name in UTF-8, after which every later connection was refused."""
    store = tmp_path / "pinned"
    damaged = [
        b"\xff\xfe nothing of this can be read",
        b"db.example ssh-ed25519 damaged",
        b"[db.example]:2222",
    ]
    good = f"m\u00fcnchen.example {GOOD_KEY}\n[b\u00fccher.example]:2222 {GOOD_KEY}\n".encode()
    store.write_bytes(b"\n".join([*damaged, good]))
    keys = HostKeys("tofu", store=store)
    with capture_logs() as logs:
        assert (await run(keys, sshd)).stdout == "in\n"
        assert (await run(keys, sshd)).stdout == "in\n"
    told = [line for line in logs if line["event"] == "damaged lines in the pinned host keys"]
    assert told[0]["count"] == 3
    assert told[0]["hosts"] == ["[db.example]:2222", "db.example"]
    # All lines are still there, the good ones with the names as DNS has them.
    assert store.read_bytes().splitlines() == [
        *damaged,
        f"[127.0.0.1]:{sshd.address.port} {host_key(sshd)}".encode(),
        f"[xn--bcher-kva.example]:2222 {GOOD_KEY}".encode(),
        f"xn--mnchen-3ya.example {GOOD_KEY}".encode(),
    ]
    for port in (22, 2222):
        with pytest.raises(SshFailure, match=r"db\.example.* is damaged: correct or remove it"):
            keys.check("db.example", port)
    keys.check("other.example", 22)


async def test_a_name_in_other_letters_is_pinned_as_dns_has_it(
    sshd: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = []

    async def here(host: str, port: int) -> trio.SocketStream:
        looked_up.append(host)
        return await open_tcp_stream("127.0.0.1", port)

    open_tcp_stream = trio.open_tcp_stream
    replace_here(monkeypatch, trio, "open_tcp_stream", here)
    store = tmp_path / "pinned"
    for host in ("b\u00fccher.example", "B\u00dcCHER.example", "xn--bcher-kva.example"):
        result = await run(HostKeys("tofu", store=store), sshd, host=host)
        assert result.stdout == "in\n"
    assert set(looked_up) == {"xn--bcher-kva.example"}
    port = sshd.address.port
    assert store.read_bytes() == f"[xn--bcher-kva.example]:{port} {host_key(sshd)}\n".encode()


async def test_a_missing_known_hosts_file_is_no_empty_one(sshd: SshServer, tmp_path: Path) -> None:
    keys = HostKeys("tofu", known_hosts=tmp_path / "none")
    result = await run(keys, sshd)
    assert result.reason == "host-key-unknown" and "cannot read" in result.stderr


async def test_a_store_that_cannot_be_written_does_not_stop_the_command(
    sshd: SshServer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with capture_logs() as logs:
        result = await run(HostKeys("tofu", store=tmp_path / "file" / "pinned"), sshd)
    assert result.stdout == "in\n"
    assert "host keys not kept" in [line["event"] for line in logs]
