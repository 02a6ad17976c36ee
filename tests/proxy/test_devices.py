"""Who may connect, and what changes when the configuration does."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from support.agents import known
from tunnelmux.config import DeviceConfig, ProxyConfig, Secret, hash_token
from tunnelmux.errors import ConfigError
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice, devices_from_config


def test_a_token_finds_its_device_whatever_way_the_file_gives_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token-in-a-file\n")
    config = ProxyConfig(
        devices=[
            DeviceConfig(name="plain", token=Secret("token-in-the-open")),
            DeviceConfig(name="hashed", token_sha256=hash_token("token-as-a-hash")),
            DeviceConfig(name="filed", token_file=tmp_path / "token", enabled=False),
        ]
    )
    register = DeviceRegister(devices_from_config(config))

    found = {
        token: register.identify(token)
        for token in ("token-in-the-open", "token-as-a-hash", "token-in-a-file")
    }
    assert [device and (device.name, device.enabled) for device in found.values()] == [
        ("plain", True),
        ("hashed", True),
        ("filed", False),
    ]
    assert register.identify("token-in-the-ope") is None
    assert register.identify("tökén") is None
    assert register.names == ["filed", "hashed", "plain"]


@pytest.mark.parametrize("count", [10, 100_000])
def test_finding_a_token_takes_as_many_steps_with_any_number_of_devices(count: int) -> None:
    devices = [
        KnownDevice(name=f"dev{number}", token_sha256=digest_of(number)) for number in range(count)
    ]
    register = DeviceRegister(devices)
    assert steps_of(lambda: register.identify("token-7")) == STEPS_TO_FIND
    assert steps_of(lambda: register.identify("nobody's")) == STEPS_TO_FIND
    found = register.identify(f"token-{count - 1}")
    assert found is not None and found.name == f"dev{count - 1}"


STEPS_TO_FIND = 1
"""Lines of Python that one look takes; comparing with each device took two for each."""


def digest_of(number: int) -> bytes:
    return hashlib.sha256(b"token-%d" % number).digest()


def steps_of(call: Callable[[], object]) -> int:
    """The lines of the register that the call runs."""
    steps = 0

    def count(frame: FrameType, event: str, _: object) -> object:
        nonlocal steps
        if not frame.f_code.co_filename.endswith("devices.py"):
            return None
        if event == "line" and "test_devices" not in frame.f_code.co_filename:
            steps += 1
        return count

    sys.settrace(count)
    try:
        call()
    finally:
        sys.settrace(None)
    return steps


def test_an_enrolled_device_that_enrols_again_leaves_its_old_token_behind() -> None:
    register = DeviceRegister([], [known("dev1", "first")])
    register.add_enrolled(known("dev1", "second"))
    assert register.identify("first") is None
    found = register.identify("second")
    assert found is not None and found.name == "dev1"


def test_two_devices_with_one_token_are_refused() -> None:
    config = ProxyConfig(
        devices=[
            DeviceConfig(name="dev1", token=Secret("same-token")),
            DeviceConfig(name="dev2", token=Secret("same-token")),
        ]
    )
    with pytest.raises(ConfigError, match=r'"dev2" has the same token as "dev1"') as caught:
        devices_from_config(config)
    assert "same-token" not in str(caught.value)


def test_a_new_configuration_says_whose_session_may_not_go_on() -> None:
    register = DeviceRegister(
        [
            known("stays", "1"),
            known("removed", "2"),
            known("disabled", "3"),
            known("rekeyed", "4"),
        ],
        [known("enrolled", "5")],
    )
    stale = register.replace_configured(
        [
            known("stays", "1"),
            known("disabled", "3", enabled=False),
            known("rekeyed", "44"),
            known("added", "6"),
        ]
    )
    assert stale == {"removed", "disabled", "rekeyed"}
    assert not register.knows("removed")
    assert register.knows("disabled") and register.knows("added") and register.knows("enrolled")


def test_the_configuration_wins_over_an_enrolled_device_of_that_name() -> None:
    register = DeviceRegister([known("dev1", "configured")], [known("dev1", "enrolled")])
    assert register.identify("enrolled") is None
    assert register.is_configured("dev1")
    # Taken out of the file, the name belongs to the enrolled device again.
    register.replace_configured([])
    assert register.identify("enrolled") is not None


def test_no_repr_shows_a_hash() -> None:
    assert hash_token("token")[:8] not in repr(known("dev1", "token"))
