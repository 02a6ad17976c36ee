"""Groups in proxy.toml: what is refused, and what the error says."""

from __future__ import annotations

import pytest

from tunnelmux.config import (
    DeviceConfig,
    Ingress,
    InvalidSetting,
    ProxyConfig,
    RegistrySource,
    Secret,
    TcpIngress,
)
from tunnelmux.config.groups import GroupConfig

DEVICES = [DeviceConfig(name=name, token=Secret(name)) for name in ("dev1", "dev2")]


def group(name: str = "shop", devices: tuple[str, ...] = ("dev1", "dev2")) -> GroupConfig:
    return GroupConfig(name=name, devices=list(devices))


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ([group(), group()], '"shop" is there twice'),
        ([group("dev1")], '"dev1" is also a device'),
        ([group(devices=("dev1", "dev9"))], 'there is no device "dev9": add it under'),
    ],
)
def test_groups_fit_the_devices(groups: list[GroupConfig], problem: str) -> None:
    with pytest.raises(InvalidSetting, match=problem):
        ProxyConfig(devices=DEVICES, groups=groups)


@pytest.mark.parametrize(
    ("name", "devices", "problem"),
    [
        ("web--shop", ["dev1"], 'contains "--"'),
        ("shop", [], "needs devices or a label, and not both"),
        ("shop", ["dev1", "dev1"], "is there twice"),
        ("shop", [f"dev{number}" for number in range(65)], "more than 64 entries"),
    ],
)
def test_a_group_by_itself(name: str, devices: list[str], problem: str) -> None:
    with pytest.raises(InvalidSetting, match=problem):
        GroupConfig(name=name, devices=devices)


@pytest.mark.parametrize("label", ["role", "role=", "=shop", " role=shop", "role=a\nb", ""])
def test_a_label_has_a_key_and_a_value(label: str) -> None:
    with pytest.raises(InvalidSetting, match="is no label: write key=value"):
        GroupConfig(name="shop", label=label)
    with pytest.raises(InvalidSetting, match="is no label: write key=value"):
        DeviceConfig(name="dev1", token=Secret("dev1"), labels=[label])


def test_a_group_has_a_label_in_place_of_devices() -> None:
    assert GroupConfig(name="shop", label="role=shop").wanted_label == ("role", "shop")
    with pytest.raises(InvalidSetting, match="and not both"):
        GroupConfig(name="shop", label="role=shop", devices=["dev1"])


def test_devices_of_a_registry_may_be_in_a_group() -> None:
    ProxyConfig(
        groups=[group(devices=("camera--acme",))],
        registry=RegistrySource(url="sqlite:////tmp/registry.db"),
    )


def test_a_tcp_port_may_name_a_group() -> None:
    port = TcpIngress(listen="127.0.0.1:0", device="shop", service="web")
    ProxyConfig(devices=DEVICES, groups=[group()], ingress=Ingress(tcp=[port]))
