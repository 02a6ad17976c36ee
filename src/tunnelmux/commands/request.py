"""What to run, where, and as whom: the fields of `execute_command`."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunnelmux.config import Secret
from tunnelmux.config.host_name import to_a_labels

__all__ = ["DEFAULT_PORT", "DEFAULT_TIMEOUT", "CommandRequest", "InvalidCommand"]

DEFAULT_PORT = 22
DEFAULT_TIMEOUT = 30.0
"""Seconds; what the relay service's own examples send."""

MAX_ID = 128
"""Characters of a commandId. It is a key that is kept and logged, and the examples' have 25."""

MAX_HOST = 255
"""Characters of a host: a DNS name has at most 253 (RFC 1035 2.3.4), an IPv6 address with its
zone fewer."""

MAX_PORT = 65_535

MAX_USERNAME = 256
"""Characters of a user name; no system that speaks SSH allows more."""


_LIKE_ADDRESS = re.compile(r":|(?:^|\.)(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?$")
"""What has a colon, or a number in place of a top-level domain."""


class InvalidCommand(ValueError):
    """An `execute_command` that cannot be used.

    `field` is the name on the wire of the first field that is wrong ("" for the whole), `message`
    says what it must be, and never shows a value that may be a secret.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}" if field else message)
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest:
    """One command for one SSH server. Credentials are Secrets and show in no repr.

    `timeout` is in seconds here and in milliseconds on the wire, as the main server gives it. The
    command text and what goes to its stdin are no credentials, but not for logs either: neither is
    in the repr.
    """

    command_id: str
    """Names this command everywhere, and makes sure that it is not run twice."""

    host: str
    """The SSH server, as the device that runs the command sees it; a name in A-labels."""

    username: str
    command: str = field(repr=False)
    """Given to the user's login shell there, as `ssh host command` does."""

    server_id: int | str | None = None
    """The main server's own name for the host; carried along, never read."""

    port: int = DEFAULT_PORT
    password: Secret | None = None
    private_key: Secret | None = None
    """In OpenSSH's format or as PEM."""

    passphrase: Secret | None = None
    """What `private_key` is encrypted with."""

    certificate: str | None = None
    """An OpenSSH user certificate for `private_key`, as one line of a `-cert.pub` file."""

    timeout: float = DEFAULT_TIMEOUT
    """Seconds for all of it: connecting, logging in and running."""

    stdin: bytes | None = field(default=None, repr=False)
    """What the command reads; without it, its input is empty."""

    def __post_init__(self) -> None:
        if not self.host.isascii():  # one name, however it is written, wherever it is compared
            object.__setattr__(self, "host", _canonical(self.host))

    @classmethod
    def from_json(cls, content: object) -> CommandRequest:
        """The request in a decoded `execute_command`. Raises InvalidCommand.

        Optional fields may be null, and empty credentials count as absent: main servers send all
        fields and fill in one. Unknown fields are ignored, because later versions may add some.
        """
        if not isinstance(content, Mapping):
            raise InvalidCommand("", "the command must be a JSON object")
        private_key = _secret(content, "privateKey")
        certificate = _optional_text(content, "certificate")
        if certificate and private_key is None:
            raise InvalidCommand("certificate", "must come with the privateKey it belongs to")
        return cls(
            command_id=_line(content, "commandId", MAX_ID),
            server_id=_server_id(content),
            host=_host(content),
            port=_port(content),
            username=_line(content, "username", MAX_USERNAME),
            password=_secret(content, "password"),
            private_key=private_key,
            passphrase=_secret(content, "passphrase"),
            certificate=certificate or None,
            command=_command(content),
            timeout=_timeout(content),
            stdin=_stdin(content),
        )

    def to_json(self) -> dict[str, object]:
        """The fields of `execute_command`, credentials revealed: for the device that runs it, and
        for nobody else.
        """
        content: dict[str, object] = {
            "commandId": self.command_id,
            "serverId": self.server_id,
            "host": self.host,
            "port": self.port,
            "username": self.username,
            "password": self.password.reveal() if self.password else None,
            "privateKey": self.private_key.reveal() if self.private_key else None,
            "passphrase": self.passphrase.reveal() if self.passphrase else None,
            "certificate": self.certificate,
            "command": self.command,
            "timeout": _milliseconds(self.timeout),
            "stdin": None if self.stdin is None else base64.b64encode(self.stdin).decode("ascii"),
        }
        return {key: value for key, value in content.items() if value is not None}


def _milliseconds(seconds: float) -> int | float:
    milliseconds = seconds * 1000
    return int(milliseconds) if milliseconds == int(milliseconds) else milliseconds


def _text(content: Mapping[Any, Any], key: str) -> str:
    if key not in content or content[key] is None:
        raise InvalidCommand(key, "is missing: it must be a text")
    text = _optional_text(content, key)
    if not text:
        raise InvalidCommand(key, "is empty: it must be a text")
    return text


def _optional_text(content: Mapping[Any, Any], key: str) -> str | None:
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidCommand(key, f"must be a text, not {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidCommand(key, "must be a text without lone surrogates") from None
    return value


def _line(content: Mapping[Any, Any], key: str, longest: int) -> str:
    text = _text(content, key)
    if len(text) > longest:
        raise InvalidCommand(key, f"must be at most {longest} characters long, not {len(text)}")
    if not text.isprintable():
        raise InvalidCommand(key, "must be one line without control characters")
    return text


def _secret(content: Mapping[Any, Any], key: str) -> Secret | None:
    text = _optional_text(content, key)
    return Secret(text) if text else None


def _server_id(content: Mapping[Any, Any]) -> int | str | None:
    value = content.get("serverId")
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        return value
    raise InvalidCommand("serverId", f"must be a number or a text, not {_kind(value)}")


def _host(content: Mapping[Any, Any]) -> str:
    host = _line(content, "host", MAX_HOST)
    host = _canonical(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    if not host or host.startswith("-") or any(mark in host for mark in " /@,*?[]!"):
        raise InvalidCommand("host", 'must be a host name or an address such as "192.0.2.7"')
    if _LIKE_ADDRESS.search(host) and not _is_address(host):
        # Resolvers know more ways to write one (127.1, 0x7f000001) than whoever allows it.
        raise InvalidCommand("host", 'looks like an address: write it like "192.0.2.7" or "::1"')
    return host


def _canonical(host: str) -> str:
    try:
        return to_a_labels(host)
    except ValueError as error:
        raise InvalidCommand("host", str(error)) from None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _port(content: Mapping[Any, Any]) -> int:
    value = content.get("port")
    if value is None:
        return DEFAULT_PORT
    if isinstance(value, float) and value.is_integer():  # JSON has one kind of number
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidCommand("port", f"must be a whole number, not {_kind(value)}")
    if not 1 <= value <= MAX_PORT:
        raise InvalidCommand("port", f"must be from 1 to {MAX_PORT}, not {_number(value)}")
    return value


def _command(content: Mapping[Any, Any]) -> str:
    command = _text(content, "command")
    if "\0" in command:
        raise InvalidCommand("command", "must not hold a NUL character: no shell can take it")
    return command


def _timeout(content: Mapping[Any, Any]) -> float:
    value = content.get("timeout")
    if value is None:
        return DEFAULT_TIMEOUT
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidCommand("timeout", f"must be a number of milliseconds, not {_kind(value)}")
    try:
        seconds = value / 1000
    except OverflowError:
        seconds = math.inf
    if not 0 < seconds < math.inf:
        raise InvalidCommand(
            "timeout", f"must be a number of milliseconds above 0, not {_number(value)}"
        )
    return seconds


def _stdin(content: Mapping[Any, Any]) -> bytes | None:
    text = _optional_text(content, "stdin")
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidCommand("stdin", "must be base64 (RFC 4648 section 4)") from None


def _number(value: float) -> str:
    """A number as a sentence can hold it; JSON's may have thousands of digits."""
    try:
        return f"{value:g}"
    except OverflowError:
        return "a number that long"


def _kind(value: object) -> str:
    """What was there, in words of JSON, without showing it."""
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "an object"
        case _:
            return "binary data" if isinstance(value, bytes | bytearray) else "something else"
