"""`execute_command` as plain data, and each thing that can be wrong with it."""

from __future__ import annotations

import base64
import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmux.commands import CommandRequest, InvalidCommand
from tunnelmux.config import Secret

# The relay service's own example, with the key that comes instead of the password.
EXAMPLE = {
    "commandId": "cmd_1700000000000_x7f3k",
    "serverId": 123,
    "host": "192.168.1.100",
    "port": 22,
    "username": "root",
    "password": "password123",
    "privateKey": "-----BEGIN...",
    "command": "ls -la",
    "timeout": 30000,
}


def test_the_example_is_understood_and_given_back() -> None:
    request = CommandRequest.from_json(EXAMPLE)
    assert request == CommandRequest(
        command_id="cmd_1700000000000_x7f3k",
        server_id=123,
        host="192.168.1.100",
        port=22,
        username="root",
        password=Secret("password123"),
        private_key=Secret("-----BEGIN..."),
        command="ls -la",
        timeout=30.0,
    )
    assert request.to_json() == EXAMPLE


def test_what_is_optional_has_defaults_and_may_be_null_or_empty() -> None:
    least = {"commandId": "c", "host": "h", "username": "u", "command": "x"}
    request = CommandRequest.from_json(least)
    assert (request.port, request.timeout, request.stdin) == (22, 30.0, None)
    null = dict.fromkeys(("serverId", "port", "privateKey", "passphrase", "timeout", "stdin"))
    assert CommandRequest.from_json(least | null | {"password": "", "new": [1]}) == request


def test_input_is_base64() -> None:
    content = EXAMPLE | {"stdin": base64.b64encode(b"\x00\xff").decode()}
    assert CommandRequest.from_json(content).stdin == b"\x00\xff"
    assert CommandRequest.from_json(content).to_json() == content
    assert CommandRequest.from_json(EXAMPLE | {"stdin": ""}).stdin == b""


def test_credentials_commands_and_input_are_in_no_repr() -> None:
    content = EXAMPLE | {"passphrase": "open sesame", "stdin": "cGFzcw=="}
    shown = repr(CommandRequest.from_json(content))
    for secret in ("password123", "BEGIN", "open sesame", "ls -la", "pass'"):
        assert secret not in shown


@pytest.mark.parametrize("key", ["commandId", "host", "username", "command"])
def test_a_missing_field_is_named(key: str) -> None:
    content = copy.copy(EXAMPLE)
    del content[key]
    for bad in (content, EXAMPLE | {key: None}):
        with pytest.raises(InvalidCommand, match=f"^{key} is missing$") as info:
            CommandRequest.from_json(bad)
        assert info.value.field == key
    with pytest.raises(InvalidCommand, match=f"^{key} must be a text of length >= 1"):
        CommandRequest.from_json(EXAMPLE | {key: ""})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("commandId", 7, "must be a text, not a number"),
        ("commandId", "x" * 129, "must be at most 128 characters long"),
        ("commandId", "a\nb", "must be one line without control characters"),
        ("serverId", [1], "must be a whole number or a text, not a list"),
        ("serverId", True, "must be a whole number or a text, not true or false"),
        ("host", ["h"], "must be a text, not a list"),
        ("host", "a b", 'must be a host name or an address such as "192.0.2.7"'),
        ("host", "-oProxyCommand=x", 'must be a host name or an address such as "192.0.2.7"'),
        ("host", "[]", 'must be a host name or an address such as "192.0.2.7"'),
        *(
            ("host", host, 'looks like an address: write it like "192.0.2.7" or "::1"')
            for host in ("127.1", "2130706433", "0x7f.0.0.0x1", "010.0.0.1", "a:b", "a.1.", "1::g")
        ),
        ("host", "\u2603.example", "is not a host name that DNS can hold"),
        ("host", "a\uff0fb.example", "is not a host name that DNS can hold"),
        ("port", "22", "must be a whole number, not a text"),
        ("port", 22.5, "must be a whole number, not a number"),
        ("port", True, "must be a whole number, not true or false"),
        ("port", 0, "must be a whole number >= 1"),
        ("port", 65536, "must be a whole number <= 65535"),
        ("username", {}, "must be a text, not an object"),
        ("username", "a\0", "must be one line without control characters"),
        ("password", 123456, "must be a text, not a number"),
        ("privateKey", ["k"], "must be a text, not a list"),
        ("passphrase", False, "must be a text, not true or false"),
        ("certificate", 1, "must be a text, not a number"),
        ("command", b"ls", "must be a text, not binary data"),
        ("command", "a\0b", "must not hold a NUL character: no shell can take it"),
        ("command", "\ud800", "must be a text without lone surrogates"),
        ("timeout", 0, "must be a number > 0.0"),
        ("timeout", -5, "must be a number > 0.0"),
        ("timeout", "30000", "must be a number, not a text"),
        ("timeout", True, "must be a number, not true or false"),
        ("timeout", float("nan"), "must be a number > 0.0"),
        ("timeout", float("inf"), "must be a finite number of milliseconds"),
        ("timeout", 10**400, "cannot be used: number out of range"),
        ("stdin", 5, "must be base64 (RFC 4648 section 4), not a number"),
        ("stdin", "no base64!", "must be base64 (RFC 4648 section 4)"),
        ("stdin", "ü", "must be base64 (RFC 4648 section 4)"),
    ],
)
def test_a_mistyped_field_is_named_and_said_what_it_must_be(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(InvalidCommand) as info:
        CommandRequest.from_json(EXAMPLE | {key: value})
    assert (info.value.field, info.value.message) == (key, message)


def test_a_certificate_needs_its_key() -> None:
    content = EXAMPLE | {"certificate": "ssh-ed25519-cert-v01@openssh.com AAAA", "privateKey": ""}
    with pytest.raises(InvalidCommand, match=r"^certificate must come with the privateKey"):
        CommandRequest.from_json(content)


@pytest.mark.parametrize("content", [None, [], "ls", 5, [EXAMPLE]])
def test_what_is_no_object_is_refused(content: object) -> None:
    with pytest.raises(InvalidCommand, match=r"^the command must be a JSON object$"):
        CommandRequest.from_json(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(changes=st.dictionaries(st.sampled_from([*EXAMPLE, "stdin", "passphrase"]), JSON))
def test_any_object_is_a_request_that_survives_the_wire_or_is_refused(
    changes: dict[str, object],
) -> None:
    try:
        request = CommandRequest.from_json(EXAMPLE | changes)
    except InvalidCommand as refused:
        assert refused.field in changes or refused.field == ""
    else:
        wire = json.loads(json.dumps(request.to_json()))
        again = CommandRequest.from_json(wire)
        assert again.timeout == pytest.approx(request.timeout)
        assert again.to_json()["command"] == request.command
