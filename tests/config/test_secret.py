"""What a secret gives away: nothing."""

from __future__ import annotations

import copy
import hashlib
import pickle

import msgspec
import pytest

from tunnelmux.config import (
    AgentConfig,
    Device,
    DeviceConfig,
    ProxyConfig,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
    hash_token,
)
from tunnelmux.config.render import render


def test_only_reveal_shows_it():
    secret = Secret("hunter2")
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r}", "%s" % secret, repr([secret])]  # noqa: UP031
    assert not any("hunter2" in text for text in shown)
    assert secret.reveal() == "hunter2"


@pytest.mark.parametrize("carry_away", [pickle.dumps, copy.deepcopy, msgspec.json.encode])
def test_it_cannot_be_written_down_by_accident(carry_away):
    with pytest.raises(TypeError):
        carry_away(Secret("hunter2"))


def test_it_compares_with_other_secrets_only():
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert not Secret("")


def test_a_token_is_hashed_as_sha256sum_does_it():
    assert hash_token("abc") == hash_token(Secret("abc")) == hashlib.sha256(b"abc").hexdigest()


def test_no_configuration_shows_its_tokens():
    proxy = ProxyConfig(devices=[DeviceConfig(name="dev1", token=Secret("hunter2"))])
    agent = AgentConfig(
        proxy=ProxyEndpoint(url="ws://h", token=Secret("hunter2")),
        device=Device(name="dev1"),
        services=[ServiceConfig(name="web", target="http://127.0.0.1")],
    )
    for text in (repr(proxy), str(proxy), render(proxy), repr(agent), render(agent)):
        assert "hunter2" not in text
        assert "***" in text
