"""The [socketio] tables of both daemons."""

from __future__ import annotations

import pytest

from tunnelmux.config import load_agent_config, load_proxy_config
from tunnelmux.errors import ConfigError

AGENT = """
[device]
name = "dev1"
[socketio]
url = "https://main.example.com"
proxy_id = "proxy-1"
api_key = "s3cret!key"
"""

PROXY = """
[socketio]
listen = "127.0.0.1:3802"
[[socketio.agents]]
proxy_id = "proxy-1"
api_key = "s3cret!key"
group = "office"
[[devices]]
name = "dev1"
token = "t"
"""


@pytest.fixture
def load(tmp_path):
    def from_text(text, load=load_agent_config, environ=None):
        file = tmp_path / "file.toml"
        file.write_text(text)
        return load(file, environ=environ or {})

    return from_text


def test_an_agent_may_have_a_main_server_and_no_proxy_and_no_services(load):
    config = load(AGENT)
    assert config.proxy is None
    assert config.services == []
    assert config.default_service is None
    assert config.socketio.read_api_key().reveal() == "s3cret!key"
    assert "s3cret" not in repr(config)


def test_the_key_may_be_in_a_file(load, tmp_path):
    (tmp_path / "key").write_text("s3cret!key\n")
    text = AGENT.replace('api_key = "s3cret!key"', 'api_key_file = "key"')
    assert load(text).socketio.read_api_key().reveal() == "s3cret!key"


def test_the_version_of_engine_io_is_4_or_3(load):
    assert load(AGENT).socketio.engine_io == 4
    assert load(f"{AGENT}engine_io = 3\n").socketio.engine_io == 3
    environ = {"TUNNELMUX_SOCKETIO_ENGINE_IO": "3"}
    assert load(AGENT, environ=environ).socketio.engine_io == 3
    with pytest.raises(ConfigError, match="engine_io: is 5: it must be 4 or 3"):
        load(f"{AGENT}engine_io = 5\n")


def test_agents_of_engine_io_3_are_let_in_where_it_says_so(load):
    assert load(PROXY, load_proxy_config).socketio.allow_eio3 is False
    text = PROXY.replace("[[socketio.agents]]", "allow_eio3 = true\n[[socketio.agents]]")
    assert load(text, load_proxy_config).socketio.allow_eio3 is True


def test_an_empty_table_is_no_main_server(load):
    text = '[device]\nname = "dev1"\n[proxy]\nurl = "ws://h"\ntoken = "t"\n[socketio]\n'
    services = '[[services]]\nname = "web"\ntarget = "http://127.0.0.1"\n'
    assert load(text + services).socketio is None
    with pytest.raises(ConfigError, match="services: there is none"):
        load(text)


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ('url = "https://main.example.com"\n', "", "socketio.url: is missing"),
        ('proxy_id = "proxy-1"\n', "", "socketio.proxy_id: is missing"),
        ('api_key = "s3cret!key"\n', "", "socketio.api_key_file: is missing"),
        ("https://main.example.com", "ftp://h", "does not begin with one of"),
        ("https://main.example.com", "https://h?a=b", "must not have a query"),
        ("https://main.example.com", "https://u:p@h", "must not hold a user name"),
        ('"proxy-1"', '""', "must be 1 to 128 printable characters"),
        ('"s3cret!key"', '""', "is empty"),
        ('"s3cret!key"', r'"s3cret\u0007"', "must be one line of printable ASCII"),
        ("[socketio]", '[socketio]\npath = "x"', "is not a path"),
        ("[socketio]", '[socketio]\ntransports = "smoke"', 'must be one of "auto", "polling"'),
        ("[socketio]", '[socketio]\napi_key_file = "k"', "are both there"),
        ("[socketio]", '[socketio]\npin = "sha256:00"', "64 hexadecimal digits"),
        ('url = "https:', f'pin = "sha256:{"0" * 64}"\nurl = "http:', "of no use without TLS"),
    ],
)
def test_what_is_wrong_with_an_agents_table(load, before, after, error):
    assert before in AGENT
    with pytest.raises(ConfigError) as caught:
        load(AGENT.replace(before, after))
    assert error in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_an_agent_with_nowhere_to_go_is_told_both_ways(load):
    with pytest.raises(ConfigError, match=r"proxy\.url: is missing.*under \[socketio\]"):
        load('[device]\nname = "dev1"\n')


def test_the_environment_may_bring_the_key_file(load, tmp_path):
    (tmp_path / "key").write_text("other")
    environ = {"TUNNELMUX_SOCKETIO_API_KEY_FILE": str(tmp_path / "key")}
    assert load(AGENT, environ=environ).socketio.read_api_key().reveal() == "other"


def test_the_proxys_agents(load):
    (agent,) = load(PROXY, load_proxy_config).socketio.agents
    assert (agent.proxy_id, agent.group) == ("proxy-1", "office")
    assert len(agent.key_hash) == 64


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ('listen = "127.0.0.1:3802"\n', "", "socketio.listen: is missing"),
        ("[socketio]", '[socketio]\npath = "x"', "is not a path"),
        ("[socketio]", '[socketio]\ntls_key = "k"', "needs tls_certificate and tls_key"),
        ("[socketio]", '[socketio]\ntrusted_proxies = ["lb"]', "write a network such as"),
        ("127.0.0.1:3802", "0.0.0.0:3800", "is also tunnel.listen"),
        ('api_key = "s3cret!key"\n', "", "needs exactly one of api_key and api_key_sha256"),
        ('"s3cret!key"', '""', "is empty"),
        ('api_key = "s3cret!key"', 'api_key_sha256 = "00"', "64 hexadecimal digits"),
        ('"proxy-1"', '"a b"', "cannot be a name"),
        ('"proxy-1"', '"dev1"', "is also a device"),
        ('"office"', '"dev1"', "is also a device or an agent"),
        ('"office"', '"proxy-1"', "is also a device or an agent"),
        (
            "[[devices]]",
            '[[socketio.agents]]\nproxy_id = "proxy-1"\napi_key = "k"\n[[devices]]',
            "is there twice",
        ),
    ],
)
def test_what_is_wrong_with_a_proxys_table(load, before, after, error):
    assert before in PROXY
    with pytest.raises(ConfigError) as caught:
        load(PROXY.replace(before, after), load_proxy_config)
    assert error in str(caught.value)
    assert "s3cret" not in str(caught.value)
