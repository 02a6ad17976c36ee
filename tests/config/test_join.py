"""The line that an operator pastes on a device."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmux.config import (
    InvalidSetting,
    JoinInvitation,
    ProxyEndpoint,
    Secret,
    decode_join,
    encode_join,
)

PIN = "sha256:" + "0a" * 32
INVITATION = JoinInvitation(
    url="wss://proxy.example:3800/tunnel/connect", token=Secret("tok-en"), pin=PIN
)


def packed(content: object) -> str:
    return "tunnelmux-join:" + base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def test_it_comes_back_as_it_was():
    assert decode_join("join", encode_join(INVITATION)) == INVITATION
    without_pin = JoinInvitation(url="ws://h", token=Secret("t"))
    assert decode_join("join", f" {encode_join(without_pin)}\n") == without_pin


def test_it_is_one_word_for_every_shell():
    join = encode_join(INVITATION)
    assert join.startswith("tunnelmux-join:")
    assert all(c.isalnum() or c in "-_:" for c in join)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tunnelmux-join:",
        "tunnelmux-join:%%%",
        encode_join(INVITATION)[:-9],
        encode_join(INVITATION).replace("tunnelmux-join:", "tunnelmux-join:A"),
        packed([1]),
        packed("text"),
        packed({"url": "wss://h"}),
        packed({"url": 1, "token": "t", "pin": PIN}),
        packed({"url": "http://h", "token": "t", "pin": None}),
        packed({"url": "wss://h", "token": "two words", "pin": None}),
        packed({"url": "wss://h", "token": "t", "pin": "0"}),
        packed({"url": "wss://h", "token": "t", "pin": 0}),
    ],
)
def test_a_damaged_one_is_refused_with_what_to_do(text):
    with pytest.raises(InvalidSetting, match="make a new one: tunnelmux-proxy invite"):
        decode_join("join", text)


@given(st.text() | st.text().map("tunnelmux-join:".__add__))
def test_rubbish_is_refused_and_not_shown(text):
    with pytest.raises(InvalidSetting) as caught:
        decode_join("join", text)
    assert len(text) < 20 or text not in str(caught.value)


def test_an_endpoint_from_it_has_url_pin_and_token():
    endpoint = ProxyEndpoint(join=Secret(encode_join(INVITATION)))
    assert (endpoint.url, endpoint.pin) == (INVITATION.url, PIN)
    assert endpoint.read_token().reveal() == "tok-en"


def test_an_endpoint_with_it_has_no_other_url_or_token():
    join = Secret(encode_join(INVITATION))
    with pytest.raises(InvalidSetting, match=r"^url: is already part of join"):
        ProxyEndpoint(join=join, url="wss://elsewhere")
    with pytest.raises(InvalidSetting, match="the only one of token, token_file and join"):
        ProxyEndpoint(join=join, token=Secret("t"))
