"""An ingress that others can reach and that nobody has a rule for: neither checked nor started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tunnelmux.cli.proxy import proxy
from tunnelmux.errors import ConfigError

DEVICES = """
[[devices]]
name = "dev1"
token_sha256 = "0000000000000000000000000000000000000000000000000000000000000001"
[[devices]]
name = "dev2"
token_sha256 = "0000000000000000000000000000000000000000000000000000000000000002"
"""
HTTP = '[ingress.http]\nlisten = "{address}:0"\n'
TCP = '[[ingress.tcp]]\nlisten = "{address}:0"\ndevice = "dev1"\nservice = "ssh"\n'
RULE = '[[access.rules]]\ndevice = "{device}"\nlet_in = ["public"]\n'
OF_SERVICE = '[[access.rules]]\ndevice = "dev1"\nservice = "web"\nlet_in = ["public"]\n'

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    def run(text: str, *arguments: str) -> Result:
        file = tmp_path / "proxy.toml"
        file.write_text('tunnel.listen = "127.0.0.1:0"\n' + text + DEVICES)
        monkeypatch.delenv("TUNNELMUX_CONFIG", raising=False)
        return CliRunner().invoke(proxy, [*arguments, "--config", str(file)])

    return run


@pytest.mark.parametrize("command", [("check",), ()], ids=["check", "start"])
@pytest.mark.parametrize("address", ["0.0.0.0", "[::]", "192.0.2.1"])
@pytest.mark.parametrize(
    ("text", "fixes"),
    [
        (HTTP, ["access.let_in", 'let_in = ["basic"]', '["public"] for all', "127.0.0.1"]),
        (HTTP + RULE.format(device="dev1"), ["device dev2"]),
        (HTTP + RULE.format(device="dev2") + OF_SERVICE, ["device dev1"]),
        (TCP, ["ingress.tcp[0].listen", "allow_from = [", "public = true", "127.0.0.1"]),
    ],
    ids=["no rule", "one device without", "a rule for one service", "a TCP port"],
)
def test_it_is_refused_with_what_to_write(
    run: Run, command: tuple[str, ...], address: str, text: str, fixes: list[str]
) -> None:
    result = run(text.replace("{address}", address), *command)
    assert isinstance(result.exception, ConfigError), result.output
    sentence = str(result.exception)
    assert "can be reached from other machines, and nothing says who may" in sentence
    for fix in fixes:
        assert fix in sentence
    assert "listening" not in result.output


@pytest.mark.parametrize(
    "text",
    [
        HTTP.format(address="127.0.0.1"),
        HTTP.format(address="[::1]"),
        HTTP.format(address="0.0.0.0") + '[access]\nlet_in = ["public"]\n',
        TCP.format(address="127.0.0.1"),
        TCP.format(address="0.0.0.0") + "public = true\n",
        TCP.format(address="0.0.0.0") + 'allow_from = ["192.0.2.0/24"]\n',
    ],
)
def test_what_somebody_has_decided_is_checked_to_be_in_order(run: Run, text: str) -> None:
    result = run(text, "check")
    assert result.exit_code == 0, result.output
