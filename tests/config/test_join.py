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
        "tunnelmux-join:" + "W1tb" * 1000,  # [[[ and so on
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


LINE = f"tunnelmux-agent --join {encode_join(INVITATION)} --name dev1 --service web=http://h:1\n"


@pytest.mark.parametrize("text", [encode_join(INVITATION), LINE, f"\n {LINE}"])
def test_a_file_may_have_the_line_instead(tmp_path, text):
    file = tmp_path / "dev1.join"
    file.write_text(text)
    endpoint = ProxyEndpoint(join_file=file)
    assert (endpoint.url, endpoint.pin) == (INVITATION.url, PIN)
    assert endpoint.read_token() == INVITATION.token
    assert "tok-en" not in repr(endpoint)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'must have one word that begins with "tunnelmux-join:", and has none'),
        ("tunnelmux-join:a tunnelmux-join:b", "and has 2 of them"),
        ("tunnelmux-join:a", "is damaged or cut short"),
        ("x" * 20_000, "is too long"),
        (None, "cannot be read"),
    ],
)
def test_a_file_without_a_line_is_explained(tmp_path, text, problem):
    file = tmp_path / "dev1.join"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidSetting, match=problem):
        ProxyEndpoint(join_file=file)


def test_a_line_and_a_file_contradict_each_other(tmp_path):
    file = tmp_path / "dev1.join"
    file.write_text(encode_join(JoinInvitation(url="ws://h", token=Secret("t"))))
    with pytest.raises(InvalidSetting, match="join: and join_file are both there"):
        ProxyEndpoint(join_file=file, join=Secret(encode_join(INVITATION)))
