"""Invitations: once, in time, and nothing on disk that lets anybody in."""

from __future__ import annotations

import fcntl
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from support.agents import TunnelBench, gone, known
from tunnelmux.config import hash_token
from tunnelmux.errors import ConfigError, ConnectRefused, SessionError
from tunnelmux.proxy.tunnels.enrolment import Enrolment
from tunnelmux.proxy.tunnels.invitations import INVITATION_LIFETIME, InvitationRefused, Invitations


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_invitation_works_once(tmp_path: Path, clock: Clock) -> None:
    invitations = Invitations(tmp_path, clock=clock)
    token = invitations.create().reveal()
    assert invitations.use(token, "dev1", is_taken=False)
    with pytest.raises(InvitationRefused, match=r"used already.*tunnelmux-proxy invite"):
        invitations.use(token, "dev1", is_taken=False)


def test_an_invitation_lives_for_fifteen_minutes(tmp_path: Path, clock: Clock) -> None:
    invitations = Invitations(tmp_path, clock=clock)
    early, late = invitations.create().reveal(), invitations.create().reveal()
    assert INVITATION_LIFETIME == 15 * 60
    clock.now += INVITATION_LIFETIME - 1
    assert invitations.use(early, "dev1", is_taken=False)
    clock.now += 1
    for _ in range(2):
        with pytest.raises(InvitationRefused, match=r"expired.*tunnelmux-proxy invite"):
            invitations.use(late, "dev1", is_taken=False)


def test_what_is_no_invitation_is_not_known(tmp_path: Path) -> None:
    invitations = Invitations(tmp_path)
    assert not invitations.use("never-issued", "dev1", is_taken=False)
    invitations.create()
    assert not invitations.use("never-issued", "dev1", is_taken=False)
    assert not invitations.use("../devices", "dev1", is_taken=False)


def test_of_many_who_try_at_once_one_gets_in(tmp_path: Path) -> None:
    token = Invitations(tmp_path).create().reveal()

    def attempt(_: int) -> bool:
        try:
            return Invitations(tmp_path).use(token, "dev1", is_taken=False)
        except InvitationRefused:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(64))) == 1


def test_only_the_hash_is_stored_and_only_for_its_owner(tmp_path: Path) -> None:
    token = Invitations(tmp_path).create().reveal()
    [file] = (tmp_path / "invitations").iterdir()
    assert file.name == f"{hash_token(token)}.json"
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_old_invitations_are_cleared_away(tmp_path: Path, clock: Clock) -> None:
    invitations = Invitations(tmp_path, clock=clock)
    used = invitations.create().reveal()
    invitations.use(used, "dev1", is_taken=False)
    invitations.create()
    clock.now += INVITATION_LIFETIME + 24 * 3600
    fresh = invitations.create().reveal()
    assert [file.stem for file in (tmp_path / "invitations").iterdir()] == [hash_token(fresh)]
    assert not invitations.use(used, "dev1", is_taken=False)


def test_what_cannot_be_read_does_not_stop_an_invitation(tmp_path: Path) -> None:
    # Such as one that root made, before the proxy is started again as its own user.
    (tmp_path / "invitations" / "unreadable.json").mkdir(parents=True)
    invitations = Invitations(tmp_path)
    assert invitations.use(invitations.create().reveal(), "dev1", is_taken=False)


def test_a_state_directory_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        Invitations(tmp_path / "state").create()


async def test_the_session_that_joins_knows_what_its_agent_says(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """Else a request that names no service is refused where services have rules of their own, until
    the agent connects again."""
    enrolment = Enrolment(tmp_path)
    bench = TunnelBench(nursery, [], enrolment=enrolment)
    said = [
        (b"User-Agent", b"tunnelmux/1.2.3"),
        (b"Tunnelmux-Services", b"web, ssh"),
        (b"Tunnelmux-Relay", b"web;default"),
        (b"Tunnelmux-Default-Service", b"web"),
    ]
    async with bench.dial(enrolment.invitations.create().reveal(), name="dev1", said=said):
        handle = await bench.arrived("dev1")
        assert handle.default_service == "web"
        assert handle.relayed == {"web": "web", None: "web"}
        summary = handle.summary()
        assert (summary.agent_version, summary.services) == ("1.2.3", ("web", "ssh"))


async def test_a_device_with_an_invitation_joins_and_comes_back_with_its_new_token(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    enrolment = Enrolment(tmp_path)
    invitation = enrolment.invitations.create().reveal()
    bench = TunnelBench(nursery, [], enrolment=enrolment)
    with capture_logs() as logs:
        async with bench.dial(invitation, name="dev1") as agent:
            await bench.arrived("dev1")
            token = agent.headers[b"tunnelmux-token"].decode()
            assert token != invitation
        async with bench.dial(token) as agent:
            await bench.arrived("dev1")
            assert b"tunnelmux-token" not in agent.headers
        await gone(bench)
    assert invitation not in str(logs) and token not in str(logs)
    stored = (tmp_path / "devices.json").read_text()
    assert json.loads(stored) == [{"name": "dev1", "token_sha256": hash_token(token)}]
    assert stat.S_IMODE((tmp_path / "devices.json").stat().st_mode) == 0o600

    # A proxy that was restarted knows the device.
    again = TunnelBench(nursery, [], enrolment=Enrolment(tmp_path))
    async with again.dial(token):
        await again.arrived("dev1")


async def test_a_stranger_is_not_told_which_names_there_are(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    enrolment = Enrolment(tmp_path)
    bench = TunnelBench(nursery, [known("fixed", "its-own")], enrolment=enrolment)
    async with bench.dial(enrolment.invitations.create().reveal(), name="dev1"):
        await bench.arrived("dev1")
    said = set()
    for name in ("fixed", "dev1", "dev2"):
        with pytest.raises(ConnectRefused) as caught:
            async with bench.dial("a-guess", name=name):
                pass
        said.add((caught.value.status, caught.value.reason, str(caught.value)))
    assert len(said) == 1


async def test_a_taken_name_is_refused_and_its_device_goes_on(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    enrolment = Enrolment(tmp_path)
    bench = TunnelBench(nursery, [], enrolment=enrolment)
    first, second = (enrolment.invitations.create().reveal() for _ in range(2))
    async with bench.dial(first, name="dev1") as agent:
        await bench.arrived("dev1")
        before = await bench.store.find_device("dev1")
        with pytest.raises(ConnectRefused) as caught:
            async with bench.dial(second, name="dev1"):
                pass
        assert (caught.value.status, caught.value.reason) == (403, "name-taken")
        assert 'a device "dev1" has enrolled already' in str(caught.value)
        assert "tunnelmux-proxy invite --replace dev1" in str(caught.value)
        assert await bench.store.find_device("dev1") is before
        token = agent.headers[b"tunnelmux-token"].decode()
    async with bench.dial(token):
        await bench.arrived("dev1")
    async with bench.dial(second, name="dev2"):  # it was not used up
        await bench.arrived("dev2")


async def test_replacing_is_for_one_name_ends_the_other_and_both_read_of_it(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    enrolment = Enrolment(tmp_path)
    bench = TunnelBench(nursery, [], enrolment=enrolment)
    invitation = enrolment.invitations.create().reveal()
    async with bench.dial(invitation, name="dev1") as old:
        await bench.arrived("dev1")
        token = old.headers[b"tunnelmux-token"].decode()
        assert b"tunnelmux-replaced" not in old.headers
        replacing = enrolment.invitations.create(replaces="dev1").reveal()
        with pytest.raises(ConnectRefused, match='is for the device "dev1" and no other') as caught:
            async with bench.dial(replacing, name="dev2"):
                pass
        assert caught.value.reason == "name-taken"
        with capture_logs() as logs:
            async with bench.dial(replacing, name="dev1") as new:
                await bench.arrived("dev1")
                assert new.headers[b"tunnelmux-replaced"] == b"yes"
                with pytest.raises(SessionError):
                    await old.session.ping()
                [line] = [line for line in logs if line["event"] == "device replaced"]
                assert (line["log_level"], line["device"]) == ("warning", "dev1")
                assert line["remote"] and line["before"]
                await check_replaced(bench, token)
                newer = new.headers[b"tunnelmux-token"].decode()
    # A proxy that was restarted remembers both.
    again = TunnelBench(nursery, [], enrolment=Enrolment(tmp_path))
    await check_replaced(again, token)
    async with again.dial(newer):
        await again.arrived("dev1")
    assert len(enrolment.load()) == 1


async def test_a_lock_that_another_process_keeps_holds_no_agent_up_for_long(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait had no end, in a place that nothing could cancel."""
    monkeypatch.setattr("tunnelmux.proxy.tunnels.enrolment._PATIENCE", 0.2)
    enrolment = Enrolment(tmp_path)
    bench = TunnelBench(nursery, [], enrolment=enrolment)
    invitation = enrolment.invitations.create().reveal()
    with (tmp_path / "devices.lock").open("w") as other, trio.fail_after(30):
        fcntl.flock(other, fcntl.LOCK_EX)
        for _ in range(2):
            with pytest.raises(ConnectRefused, match=r"devices\.lock") as caught:
                async with bench.dial(invitation, name="dev1"):
                    pass
            assert (caught.value.status, caught.value.reason) == (503, "proxy-failed")
            assert caught.value.retryable
    async with bench.dial(invitation, name="dev1") as agent:  # it was not used up
        assert b"tunnelmux-token" in agent.headers


async def check_replaced(bench: TunnelBench, token: str) -> None:
    with pytest.raises(ConnectRefused, match="another machine joined as") as caught:
        async with bench.dial(token, name="dev1"):
            pass
    assert (caught.value.status, caught.value.reason) == (401, "device-replaced")
    assert not caught.value.retryable


async def test_what_is_remembered_of_replaced_devices_is_bounded(tmp_path: Path) -> None:
    enrolment = Enrolment(tmp_path)
    for _ in range(20):
        assert await enrolment.enrol("dev1", enrolment.invitations.create(replaces="dev1").reveal())
    [device] = enrolment.load()
    assert len(device.replaced_sha256) == 8


async def test_a_used_or_expired_invitation_is_refused_for_good(
    nursery: trio.Nursery, tmp_path: Path, clock: Clock
) -> None:
    enrolment = Enrolment(tmp_path, clock=clock)
    bench = TunnelBench(nursery, [], enrolment=enrolment)
    used, expired = (enrolment.invitations.create().reveal() for _ in range(2))
    async with bench.dial(used, name="dev1"):
        pass
    clock.now += INVITATION_LIFETIME
    for token, cause in ((used, "used already"), (expired, "expired")):
        with pytest.raises(ConnectRefused) as caught:
            async with bench.dial(token, name="dev2"):
                pass
        assert (caught.value.status, caught.value.reason) == (401, "token-expired")
        assert cause in str(caught.value)
        assert not caught.value.retryable
    assert [device.name for device in enrolment.load()] == ["dev1"]


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [("Not a Label", 400, "bad-request"), ("fixed", 403, "forbidden"), (None, 401, "unauthorized")],
)
async def test_a_name_that_cannot_join_does_not_use_the_invitation_up(
    nursery: trio.Nursery, tmp_path: Path, name: str | None, status: int, reason: str
) -> None:
    enrolment = Enrolment(tmp_path)
    bench = TunnelBench(nursery, [known("fixed", "its-own")], enrolment=enrolment)
    invitation = enrolment.invitations.create().reveal()
    with pytest.raises(ConnectRefused) as caught:
        async with bench.dial(invitation, name=name):
            pass
    assert (caught.value.status, caught.value.reason) == (status, reason)
    assert enrolment.invitations.use(invitation, "dev2", is_taken=False)


def test_a_damaged_list_of_devices_is_explained(tmp_path: Path) -> None:
    (tmp_path / "devices.json").write_text('[{"name": "dev1"')
    with pytest.raises(ConfigError, match=r"devices\.json is damaged .* invite each device again"):
        Enrolment(tmp_path).load()
