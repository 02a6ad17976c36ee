"""The devices of a registry beside those of proxy.toml, and their names in host names."""

from __future__ import annotations

import hashlib
import sys
from types import FrameType

import pytest

from support.agents import known
from tunnelmux.http import RequestHead
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice, Registration
from tunnelmux.proxy.visitors.routing import Destination, find_destination


def registered(
    device_id: str, name: str, *tokens: str, refused: str = "", **labels: str
) -> dict[str, KnownDevice | None]:
    digests = {hashlib.sha256(token.encode()).digest(): token for token in tokens}
    first, *others = sorted(digests) or [b""]
    return {
        device_id: KnownDevice(
            name=name,
            token_sha256=first,
            also_sha256=tuple(others),
            enabled=not refused,
            labels=labels,
            registration=Registration(
                device_id=device_id,
                tenant_id="t",
                refused=refused,
                paired_by="",
                rotation_wanted=False,
                credentials=digests,
            ),
        )
    }


def name_of(register: DeviceRegister, token: str) -> str | None:
    device = register.identify(token)
    return device.name if device is not None else None


def test_the_file_and_the_enrolled_hide_devices_of_the_registry() -> None:
    register = DeviceRegister([known("cam1", "file")], [known("cam2", "enrolled")])
    for number, name in enumerate(("cam1", "cam2", "cam3")):
        register.replace_registered(registered(str(number), name, f"registry-{number}"))
    assert register.names == ["cam1", "cam2", "cam3"]
    found = [name_of(register, token) for token in ("file", "enrolled", "registry-2")]
    assert found == ["cam1", "cam2", "cam3"]
    assert [name_of(register, f"registry-{number}") for number in (0, 1)] == [None, None]
    # What the file hid is there once the file does not say it any more.
    register.replace_configured([])
    assert name_of(register, "registry-0") == "cam1"


def test_a_label_finds_the_devices_that_have_it_now() -> None:
    register = DeviceRegister([known("cam0", "file")])
    for number, name in enumerate(("cam2", "cam1", "cam3--acme")):
        register.replace_registered(registered(str(number), name, f"t{number}", role="shop"))
    # Not that of a tenant, whose people set labels themselves.
    assert register.labelled("role", "shop") == ("cam1", "cam2")
    assert register.labelled("role", "other") == register.labelled("site", "shop") == ()
    register.replace_registered(registered("0", "cam2", "t0", role="other"))
    assert register.labelled("role", "shop") == ("cam1",)
    assert register.labelled("role", "other") == ("cam2",)
    # The file hides a device of the registry, with its labels.
    register.replace_configured([known("cam1", "file")])
    assert register.labelled("role", "shop") == ()
    register.replace_configured([])
    assert register.labelled("role", "shop") == ("cam1",)
    register.replace_registered({"1": None})
    assert register.labelled("role", "shop") == ()


def test_a_token_of_two_devices_is_that_of_the_file() -> None:
    register = DeviceRegister([known("cam1", "same")])
    register.replace_registered(registered("1", "cam9", "same"))
    assert name_of(register, "same") == "cam1"


def test_a_rotation_ends_nothing_and_a_revocation_does() -> None:
    register = DeviceRegister()
    register.replace_registered(registered("1", "cam1", "old"))
    assert register.replace_registered(registered("1", "cam1", "old", "new")) == {}
    assert (name_of(register, "old"), name_of(register, "new")) == ("cam1", "cam1")
    assert register.replace_registered(registered("1", "cam1", "new")) == {}
    assert name_of(register, "old") is None
    assert register.replace_registered(registered("1", "cam1", "other")) == {
        "1": ("cam1", "its token was revoked")
    }
    assert "1" in register.replace_registered(registered("1", "cam1"))
    assert register.identify("") is None


def test_two_that_swap_their_names_both_end_and_are_both_there() -> None:
    register = DeviceRegister()
    register.replace_registered(registered("1", "a", "one") | registered("2", "b", "two"))
    stale = register.replace_registered(registered("1", "b", "one") | registered("2", "a", "two"))
    assert {name for name, _ in stale.values()} == {"a", "b"}
    assert (name_of(register, "one"), name_of(register, "two")) == ("b", "a")


def test_what_is_gone_is_gone() -> None:
    register = DeviceRegister()
    register.replace_registered(registered("1", "cam1--acme", "one"))
    register.replace_registered(registered("2", "cam2--acme", "two", refused="it is disabled"))
    assert register.is_tenant("acme")
    stale = register.replace_registered({"1": None})
    assert stale == {"1": ("cam1--acme", "the device was removed from the registry")}
    assert not register.knows("cam1--acme")
    assert register.is_tenant("acme")
    register.replace_registered({}, everything=True)
    assert (register.names, register.is_tenant("acme")) == ([], False)


def test_a_change_of_one_device_costs_the_same_in_a_large_fleet() -> None:
    def lines_for(fleet: int) -> int:
        register = DeviceRegister()
        everything: dict[str, KnownDevice | None] = {}
        for number in range(fleet):
            everything |= registered(str(number), f"cam{number}", f"token-{number}")
        register.replace_registered(everything, everything=True)
        count = 0

        def trace(frame: FrameType, event: str, _: object) -> object:
            nonlocal count
            count += event == "line"
            return trace

        change = registered("0", "cam0", "another")
        sys.settrace(trace)
        try:
            register.replace_registered(change)
        finally:
            sys.settrace(None)
        return count

    assert lines_for(10) == lines_for(1000)


@pytest.mark.parametrize(
    ("host", "destination"),
    [
        ("cam1.example.com", Destination("cam1")),
        ("web--cam1.example.com", Destination("cam1", "web")),
        ("cam1--acme.example.com", Destination("cam1--acme")),
        ("web--cam1--acme.example.com", Destination("cam1--acme", "web")),
    ],
)
def test_a_host_name_leads_to_one_device_of_one_tenant(host: str, destination: Destination) -> None:
    request = RequestHead(
        method=b"GET", target=b"/", headers=[(b"Host", host.encode())], version=b"1.1"
    )
    assert find_destination(request, "example.com", {"acme"}.__contains__) == destination
