"""The HTTP proxy that leads out: how it is written, and which variables name it."""

from __future__ import annotations

import pytest

from tunnelmux.config import InvalidSetting, Secret, load_agent_config
from tunnelmux.config.http_proxy import (
    HttpProxy,
    http_proxy_from_environment,
    is_exempt,
    parse_http_proxy,
)
from tunnelmux.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy:3128", HttpProxy("proxy", 3128)),
        ("proxy.example.net:3128", HttpProxy("proxy.example.net", 3128)),
        ("http://proxy", HttpProxy("proxy", 80)),
        ("https://proxy/", HttpProxy("proxy", 443, is_secure=True)),
        ("http://[2001:db8::1]:8080", HttpProxy("2001:db8::1", 8080)),
        ("http://u:p%40ss@proxy:1", HttpProxy("proxy", 1, login=Secret("u:p@ss"))),
        ("u@proxy:1", HttpProxy("proxy", 1, login=Secret("u:"))),
    ],
)
def test_a_proxy_is_written_as_everywhere(text, proxy):
    assert parse_http_proxy("http_proxy", text) == proxy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("socks5://u:secret@proxy:1080", "is a socks5:// proxy"),
        ("http://u:secret@", "has no valid host"),
        ("http://u:secret@host:port", "is not a URL"),
        ("http://u:secret@ho st:1", "has no valid host"),
        ("http://u:secret%0d@host:1", "a character that no login can have"),
        ("http://u%3au:secret@host:1", "a character that no login can have"),
    ],
)
def test_what_is_none_is_refused_without_being_shown(text, words):
    with pytest.raises(InvalidSetting, match=words) as caught:
        parse_http_proxy("http_proxy", text)
    assert "secret" not in str(caught.value)


def test_a_login_is_not_in_its_text():
    proxy = parse_http_proxy("http_proxy", "http://user:secret@proxy:3128")
    assert str(proxy) == "proxy:3128"
    assert "secret" not in repr(proxy)


WS, WSS = "ws://tunnel.example.com:3800/x", "wss://tunnel.example.com/x"


@pytest.mark.parametrize(
    ("url", "environ", "found"),
    [
        (WSS, {}, None),
        (WSS, {"HTTPS_PROXY": "a:1"}, "a:1"),
        (WSS, {"https_proxy": "a:1", "HTTPS_PROXY": "b:1"}, "a:1"),
        (WSS, {"HTTP_PROXY": "a:1"}, None),
        (WSS, {"HTTPS_PROXY": "a:1", "ALL_PROXY": "b:1"}, "a:1"),
        (WSS, {"all_proxy": "a:1", "ALL_PROXY": "b:1"}, "a:1"),
        (WSS, {"HTTPS_PROXY": "", "ALL_PROXY": "b:1"}, None),
        (WS, {"http_proxy": "a:1", "HTTPS_PROXY": "b:1"}, "a:1"),
        (WS, {"HTTPS_PROXY": "b:1"}, "b:1"),
        (WS, {"HTTP_PROXY": "a:1", "NO_PROXY": "example.com"}, None),
        (WS, {"HTTP_PROXY": "a:1", "no_proxy": "other", "NO_PROXY": "*"}, "a:1"),
        ("https://main.example.com", {"HTTPS_PROXY": "a:1"}, "a:1"),
    ],
)
def test_the_environment_is_read_as_curl_does(url, environ, found):
    proxy = http_proxy_from_environment(url, environ)
    assert (proxy.reveal() if proxy else None) == found


@pytest.mark.parametrize(
    ("host", "entry", "exempt"),
    [
        ("a.example.com", "example.com", True),
        ("a.example.com", ".example.com", True),
        ("a.example.com", "*.example.com", True),
        ("example.com", ".example.com", True),
        ("EXAMPLE.com.", "example.COM", True),
        ("notexample.com", "example.com", False),
        ("a.example.com", "other, example.com", True),
        ("a.example.com", "other example.com", True),
        ("a.example.com", "example.com:3800", True),
        ("a.example.com", "example.com:3801", False),
        ("anything", "*", True),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.30", False),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "2.3", False),
        ("2001:db8::1", "[2001:db8::1]", True),
        ("2001:db8::1", "2001:db8::/32", True),
        ("2001:db8::1", "[2001:db8::1]:3800", True),
        ("anything", "", False),
        ("anything", ".", False),
    ],
)
def test_no_proxy_has_names_addresses_and_networks(host, entry, exempt):
    assert is_exempt(host, 3800, entry) is exempt


def agent_file(folder, more=""):
    file = folder / "agent.toml"
    file.touch(mode=0o600)
    file.write_text(
        f'[proxy]\nurl = "{WS}"\ntoken = "t"\n{more}\n[device]\nname = "dev1"\n'
        '[[services]]\nname = "web"\ntarget = "http://127.0.0.1:1"\n'
    )
    return file


def test_the_setting_wins_over_the_environment_and_empty_text_means_none(tmp_path):
    environ = {"HTTP_PROXY": "http://env:1"}
    assert str(load_agent_config(agent_file(tmp_path), environ=environ).proxy.way_out) == "env:1"
    file = agent_file(tmp_path, 'http_proxy = "http://user:secret@set:2"')
    config = load_agent_config(file, environ=environ)
    assert str(config.proxy.way_out) == "set:2"
    assert "secret" not in repr(config)
    file = agent_file(tmp_path, 'http_proxy = ""')
    assert load_agent_config(file, environ=environ).proxy.way_out is None
    named = {**environ, "TUNNELMUX_PROXY_HTTP_PROXY": "http://named:3"}
    assert str(load_agent_config(file, environ=named).proxy.way_out) == "named:3"


def test_a_variable_that_cannot_be_used_is_named(tmp_path):
    file, warnings = agent_file(tmp_path), []
    with pytest.raises(ConfigError, match=r"^HTTP_PROXY: has no valid host") as caught:
        load_agent_config(file, environ={"HTTP_PROXY": "http://u:secret@"})
    assert "secret" not in str(caught.value)
    environ = {"ALL_PROXY": "socks5h://u:secret@proxy:1080"}
    config = load_agent_config(file, environ=environ, warn=warnings.append)
    assert config.proxy.way_out is None
    (sentence,) = [text for text in warnings if "_PROXY" in text]
    assert sentence.startswith("ALL_PROXY names a SOCKS proxy") and "secret" not in sentence


def test_a_file_with_a_login_in_it_that_all_may_read_is_told_of(tmp_path):
    file, warnings = agent_file(tmp_path, 'http_proxy = "http://user:secret@set:2"'), []
    file.write_text(file.read_text().replace('token = "t"', 'token_file = "t"'))
    (tmp_path / "t").touch(mode=0o600)
    (tmp_path / "t").write_text("t")
    file.chmod(0o644)
    load_agent_config(file, environ={}, warn=warnings.append)
    assert any(f"chmod o-r {file}" in sentence for sentence in warnings)
