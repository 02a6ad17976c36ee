"""What deploy/ says fits together, as far as that can be seen without containers."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from support.tree import ROOT
from tunnelmux.config.api import ApiConfig
from tunnelmux.config.decode import Decoder
from tunnelmux.config.gateway import GatewayConfig
from tunnelmux.config.proxy import ProxyConfig
from tunnelmux.config.schema import table_of

COMPOSE = ROOT / "deploy" / "compose"
CHART = ROOT / "deploy" / "helm" / "tunnelmux"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((COMPOSE / "compose.yaml").read_text("utf-8")))


def test_what_services_wait_for_and_mount_is_there(compose: dict[str, Any]) -> None:
    names = set(compose["services"])
    for service in compose["services"].values():
        assert set(service.get("depends_on", ())) <= names
        for mount in service.get("volumes", ()):
            source = str(mount).partition(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).exists(), source
            else:
                assert source in compose["volumes"], source


def test_each_program_gets_its_configuration(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        words = str(service.get("command", ""))
        for file in re.findall(r"--config (\S+)", words):
            assert (COMPOSE / file).exists()


def test_names_in_files_are_services(compose: dict[str, Any]) -> None:
    """A host of nginx.conf, prometheus.yml or a configuration is a service, or an alias of one."""
    hosts = {"localhost", "oidc.localhost", *compose["services"]}
    for file in COMPOSE.iterdir():
        for host in re.findall(r"(?:server |://|\")([a-z][a-z.-]*):\d", file.read_text("utf-8")):
            assert host in hosts, f"{file.name}: {host}"


def test_each_simulated_device_has_its_token() -> None:
    devices = tomllib.loads((COMPOSE / "proxy.toml").read_text("utf-8"))["devices"]
    tokens = (COMPOSE / "tokens").read_text("utf-8").split()
    assert [device["token"] for device in devices] == tokens
    assert [device["name"] for device in devices] == [f"device{n}" for n in range(20)]


def test_each_value_of_the_chart_is_used_and_each_that_is_used_is_there() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    templates = "".join(file.read_text("utf-8") for file in sorted(CHART.rglob("templates/*")))
    used = set(re.findall(r"\.Values((?:\.\w+)+)", templates))
    for path in used:
        here: Any = values
        for name in path.strip(".").split("."):
            assert name in here, path
            here = here[name]
    for name, value in values.items():
        for inner in value if isinstance(value, dict) else [""]:
            path = f".{name}" + (f".{inner}" if inner else "")
            assert any(f"{one}.".startswith(f"{path}.") for one in used), path


@pytest.mark.parametrize("name", ["proxy", "api", "gateway"])
def test_a_program_with_a_read_only_root_has_a_folder_for_temporary_files(name: str) -> None:
    """A node of a cluster and the gateway cannot do without one."""
    text = (CHART / "templates" / f"{name}.yaml").read_text("utf-8")
    container = text[text.index(f"- name: {name}\n") : text.index("      volumes:")]
    assert "- {name: tmp, mountPath: /tmp}" in container
    assert "- {name: tmp, emptyDir: {" in text
    assert "kind: PodDisruptionBudget" in text


CONFIGURATIONS = {"proxy": ProxyConfig, "api": ApiConfig, "gateway": GatewayConfig}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_configurations_have_only_keys_that_there_are(name: str) -> None:
    """Of compose and of the chart, whose expressions are put in as their default values would."""
    whole = yaml.safe_load(_plain((CHART / "templates" / "configmap.yaml").read_text("utf-8")))
    compose = (COMPOSE / f"{name}.toml").read_text("utf-8")
    for text in (compose, whole["data"][f"{name}.toml"]):
        content = tomllib.loads(text)
        if name == "proxy":
            content["cluster"]["address"] = "10.0.0.7:3803"  # it comes from the environment
        decoder = Decoder(table_of(CONFIGURATIONS[name]), COMPOSE)
        assert decoder.decode(content)


def _plain(template: str) -> str:
    """The template with every condition true."""
    lines = [line for line in template.splitlines() if not re.fullmatch(r"\s*{{-.*}}", line)]
    text = "\n".join(lines)
    text = re.sub(r"labels: {{.*}}", "labels: {}", text)
    text = re.sub(r"{{ toJson .*? }}", '["10.0.0.0/8"]', text)
    text = text.replace("{{ .Values.proxy.workers }}", "2")
    text = re.sub(r"{{ \.Values\.\w*[uU]rl }}", "wss://tunnels.example.com/x", text)
    text = text.replace('public_url = "wss://tunnels.example.com/x"', 'public_url = "https://a.b"')
    text = text.replace(
        'console_url = "wss://tunnels.example.com/x"', 'console_url = "https://a.b"'
    )
    text = text.replace("{{ .Values.api.oidc.issuer }}", "https://id.example.com")
    return re.sub(r"{{ .*? }}", "name", text)
