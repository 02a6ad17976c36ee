"""What a reload says of the difference between two files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnelmux.config import load_agent_config, load_proxy_config
from tunnelmux.config.changes import changes_between

PROXY = """
[tunnel]
listen = "127.0.0.1:1"
[ingress.http]
listen = "127.0.0.1:2"
[[devices]]
name = "dev1"
token = "first-token-of-dev1"
[[devices]]
name = "dev2"
token = "first-token-of-dev2"
[limits]
max_streams = 7
"""


TCP = '[[ingress.tcp]]\nlisten = "127.0.0.1:4"\ndevice = "dev1"\nservice = "ssh"\n'


def loaded(folder: Path, text: str):
    file = folder / "proxy.toml"
    file.write_text(text)
    return load_proxy_config(file, environ={})


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("max_streams = 7", "max_streams = 8", "limits.max_streams"),
        ("max_streams = 7", "max_visitors = 8", "limits.max_streams, limits.max_visitors"),
        ('listen = "127.0.0.1:1"', 'listen = "127.0.0.1:3"', "tunnel.listen"),
        ('[ingress.http]\nlisten = "127.0.0.1:2"\n', "", "-ingress.http"),
        ("first-token-of-dev2", "second-token", "devices.dev2.token"),
        ('"dev2"', '"dev3"', "+devices.dev3, -devices.dev2"),
        ("[limits]", "[log]\nlevel = 'debug'\n[limits]", "log.level"),
        ("[limits]", TCP + "[limits]", "+ingress.tcp.127.0.0.1:4"),
        ("", "", "nothing"),
    ],
)
def test_each_difference_has_its_key_and_no_value(tmp_path, old, new, told):
    assert old in PROXY
    before, after = loaded(tmp_path, PROXY), loaded(tmp_path, PROXY.replace(old, new, 1))
    assert changes_between(before, after) == told
    assert "token-of" not in told


def test_another_order_is_a_difference(tmp_path):
    swapped = PROXY.replace("dev1", "devX").replace("dev2", "dev1").replace("devX", "dev2")
    assert changes_between(loaded(tmp_path, PROXY), loaded(tmp_path, swapped)) == (
        "order of devices"
    )


def test_a_thousand_differences_are_one_line(tmp_path):
    many = "".join(
        f'[[devices]]\nname = "n{number}"\ntoken = "token-of-{number}"\n' for number in range(1000)
    )
    told = changes_between(loaded(tmp_path, PROXY), loaded(tmp_path, PROXY + many))
    assert told.startswith("+devices.n0, +devices.n1, ")
    assert told.endswith("+devices.n19 and 980 more")


def test_an_agents_services(tmp_path):
    file = tmp_path / "agent.toml"
    text = '[proxy]\nurl = "wss://h/x"\ntoken = "t"\n[device]\nname = "dev1"\n'
    service = '[[services]]\nname = "web"\ntarget = "8000"\n'
    file.write_text(text + service)
    before = load_agent_config(file, environ={})
    file.write_text(
        text + service.replace("8000", "8001") + service.replace("web", "api") + "[metrics]\n"
    )
    told = changes_between(before, load_agent_config(file, environ={}))
    assert told == "services.web.target, +services.api, +metrics"
