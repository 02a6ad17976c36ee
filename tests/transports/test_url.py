from __future__ import annotations

import pytest

from tunnelmux.errors import ConfigError
from tunnelmux.transports import TunnelURL, parse_url


@pytest.mark.parametrize(
    ("url", "parsed", "authority"),
    [
        (
            "ws://proxy.example.com:3800/tunnel/connect",
            TunnelURL("ws", "proxy.example.com", 3800, "/tunnel/connect"),
            "proxy.example.com:3800",
        ),
        ("ws://proxy.example.com", TunnelURL("ws", "proxy.example.com", 80), "proxy.example.com"),
        ("wss://h/a?b=c", TunnelURL("wss", "h", 443, "/a?b=c"), "h"),
        ("tcp://[::1]:9", TunnelURL("tcp", "::1", 9), "[::1]:9"),
        ("tls://h:443", TunnelURL("tls", "h", 443), "h:443"),
    ],
)
def test_urls_are_taken_apart(url: str, parsed: TunnelURL, authority: str) -> None:
    assert parse_url(url) == parsed
    assert parse_url(url).authority == authority
    assert parsed.is_secure is url.startswith(("wss:", "tls:"))


def test_few_urls_are_kept_taken_apart() -> None:
    for number in range(100):
        assert parse_url(f"ws://h{number}").host == f"h{number}"
    assert parse_url.cache_info().currsize <= 32


def test_the_query_is_never_shown() -> None:
    url = parse_url("ws://h:3800/tunnel/connect?token=s3cret")
    assert url.target == "/tunnel/connect?token=s3cret"
    assert "s3cret" not in str(url) + repr(url)
    assert str(url) == "ws://h:3800/tunnel/connect"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("proxy.example.com", "no scheme"),
        ("http://h/s3cret", "scheme 'http', not ws"),
        ("ws:///tunnel", "names no host"),
        ("tcp://h", "needs a port"),
        ("ws://h:port/s3cret", "cannot be read"),
        ("ws://user:s3cret@h/", "user name or password; remove it"),
        ("ws://h/s3cret\u00e9", "percent-encoded"),
    ],
)
def test_a_url_that_is_none_says_why_and_shows_no_secret(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_url(url)
    assert "s3cret" not in str(caught.value)
