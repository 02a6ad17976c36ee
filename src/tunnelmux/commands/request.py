"""The request to run a command: the fields of `execute_command`."""

from __future__ import annotations

import base64
import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tunnelmux.config import Secret
from tunnelmux.config.host_name import to_a_labels

__all__ = [
    "DEFAULT_PORT",
    "DEFAULT_TIMEOUT",
    "CommandFields",
    "CommandRequest",
    "InvalidCommand",
    "Line",
    "check_line",
    "read_fields",
]

DEFAULT_PORT = 22
DEFAULT_TIMEOUT = 30.0
"""Seconds; the value in the relay service's own examples."""

MAX_ID = 128
"""Characters of a commandId, which is stored and logged; those of the examples have 25."""

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


Line = Annotated[str, Meta(min_length=1, extra_json_schema={"pattern": "^[ -~]+$"})]
"""A text of one line. Its description is stricter than `check_line`: schemas have no name for
every character that can be printed."""

_HOST_NAME = (
    r"^([A-Za-z0-9_][A-Za-z0-9_-]*\.)*"
    r"([A-Za-z_][A-Za-z0-9_-]*|[0-9]+[A-WYZa-wyz_-][A-Za-z0-9_-]*)\.?$"
)
# A host whose last label is a number is an address, or would be read as one.

_Host = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_HOST,
        description="The SSH server, as the device sees it: a name, or an address.",
        extra_json_schema={
            "anyOf": [{"pattern": _HOST_NAME}, {"format": "ipv4"}, {"format": "ipv6"}]
        },
    ),
]
_Text = Annotated[
    str, Meta(min_length=1, extra_json_schema={"pattern": r"^[^\u0000]+$"}, description="No NUL.")
]
_KeyText = Annotated[str, Meta(extra_json_schema={"minLength": 1})]
# An empty one counts as absent; then passphrase and certificate must be absent too.


class CommandFields(msgspec.Struct, kw_only=True, rename="camel"):
    """The fields of a command, as `read_fields` decodes them and OpenAPI describes them.
    `CommandRequest.of` checks what a type cannot express.
    """

    host: _Host
    username: Annotated[Line, Meta(max_length=MAX_USERNAME)]
    command: _Text
    server_id: Annotated[int | str, Meta(description="Carried along.")] | UnsetType = UNSET
    port: Annotated[int, Meta(ge=1, le=MAX_PORT)] = DEFAULT_PORT
    password: str | UnsetType = UNSET
    private_key: _KeyText | UnsetType = UNSET
    passphrase: str | UnsetType = UNSET
    certificate: str | UnsetType = UNSET
    timeout: Annotated[float, Meta(gt=0, description="Milliseconds.")] = DEFAULT_TIMEOUT * 1000
    stdin: bytes | UnsetType = UNSET

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # most fields must not be logged


class ExecuteCommand(CommandFields, kw_only=True, rename="camel"):
    """The fields of `execute_command`."""

    command_id: Annotated[Line, Meta(extra_json_schema={"maxLength": MAX_ID})]


_Fields = TypeVar("_Fields", bound=CommandFields)


def read_fields(content: object, cls: type[_Fields]) -> _Fields:
    """The fields in decoded JSON. Raises InvalidCommand.

    Optional fields may be null: main servers send all fields and fill in one. Unknown fields are
    ignored, because later versions may add some.
    """
    if not isinstance(content, Mapping):
        raise InvalidCommand("", "the command must be a JSON object")
    there = {
        # JSON has one kind of number.
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in content.items()
        if value is not None
    }
    try:
        return msgspec.convert(there, cls)
    except msgspec.ValidationError as error:
        raise _in_words(str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest:
    """One command for one SSH server. Credentials are Secrets and show in no repr.

    `timeout` is in seconds here and in milliseconds on the wire, as the main server gives it. The
    command text and its stdin may hold secrets too, so neither is in the repr.
    """

    command_id: str
    """Identifies this command everywhere, so that it is not run twice."""

    host: str
    """The SSH server, as the device that runs the command sees it; a name in A-labels."""

    username: str
    command: str = field(repr=False)
    """Passed to the user's login shell, as `ssh host command` does."""

    server_id: int | str | None = None
    """The main server's own name for the host; carried along, never read."""

    port: int = DEFAULT_PORT
    password: Secret | None = None
    private_key: Secret | None = None
    """In OpenSSH's format or as PEM."""

    passphrase: Secret | None = None
    """Decrypts `private_key`."""

    certificate: str | None = None
    """An OpenSSH user certificate for `private_key`, as one line of a `-cert.pub` file."""

    timeout: float = DEFAULT_TIMEOUT
    """Seconds for all of it: connecting, logging in and running."""

    stdin: bytes | None = field(default=None, repr=False)
    """The command's standard input; empty by default."""

    def __post_init__(self) -> None:
        if not self.host.isascii():  # normalized, so that all spellings of one name compare equal
            object.__setattr__(self, "host", _canonical(self.host))

    @classmethod
    def from_json(cls, content: object) -> CommandRequest:
        """The request in a decoded `execute_command`, read by `read_fields`. Raises InvalidCommand.

        Empty credentials count as absent.
        """
        if isinstance(content, Mapping) and content.get("commandId") is None:
            raise InvalidCommand("commandId", "is missing")  # the first field on the wire
        fields = read_fields(content, ExecuteCommand)
        return cls.of(fields, fields.command_id)

    @classmethod
    def of(cls, fields: CommandFields, command_id: str) -> CommandRequest:
        """The request in these fields. Raises InvalidCommand."""
        private_key = _secret("privateKey", fields.private_key)
        certificate = _present("certificate", fields.certificate)
        if certificate and private_key is None:
            raise InvalidCommand("certificate", "must come with the privateKey it belongs to")
        if len(command_id) > MAX_ID:
            raise InvalidCommand("commandId", f"must be at most {MAX_ID} characters long")
        if "\0" in fields.command:
            raise InvalidCommand("command", "must not hold a NUL character: no shell can take it")
        if not fields.timeout < math.inf:
            raise InvalidCommand("timeout", "must be a finite number of milliseconds")
        return cls(
            command_id=check_line("commandId", command_id),
            server_id=None if isinstance(fields.server_id, UnsetType) else fields.server_id,
            host=_host(check_line("host", fields.host)),
            port=fields.port,
            username=check_line("username", fields.username),
            password=_secret("password", fields.password),
            private_key=private_key,
            passphrase=_secret("passphrase", fields.passphrase),
            certificate=certificate or None,
            command=_present("command", fields.command),
            timeout=fields.timeout / 1000,
            stdin=None if isinstance(fields.stdin, UnsetType) else fields.stdin,
        )

    def to_json(self) -> dict[str, object]:
        """The fields of `execute_command` with credentials in clear: only for the device that runs
        it.
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


_PROBLEM = re.compile(r"(?P<problem>.*?)(?: - at `\$\.?(?P<field>\w*).*`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<kinds>[^`]*)`(?:, got `(?P<got>[^`]*)`)?(?P<bound>.*)")
_MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`")
_KINDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "bytes": "base64 (RFC 4648 section 4)",
    "array": "a list",
    "object": "an object",
}
_GOT = {"int": "a number", "bytes": "binary data"}


def _in_words(message: str) -> InvalidCommand:
    """Msgspec's message about a field, in JSON's terms. It never shows the value."""
    missing = _MISSING.fullmatch(message)
    if missing is not None:
        return InvalidCommand(missing["field"], "is missing")
    found = _PROBLEM.fullmatch(message)
    field, problem = (found["field"] or "", found["problem"]) if found else ("", message)
    expected = _EXPECTED.fullmatch(problem)
    if expected is None:
        if "base64" in problem:
            return InvalidCommand(field, f"must be {_KINDS['bytes']}")
        return InvalidCommand(field, f"cannot be used: {problem[:1].lower()}{problem[1:]}")
    wanted = " or ".join(_KINDS.get(kind, kind) for kind in expected["kinds"].split(" | "))
    kind = expected["got"]
    got = f", not {_GOT.get(kind) or _KINDS.get(kind, kind)}" if kind else ""
    return InvalidCommand(field, f"must be {wanted}{expected['bound']}{got}")


def _present(key: str, text: str | UnsetType) -> str:
    if isinstance(text, UnsetType):
        return ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidCommand(key, "must be a text without lone surrogates") from None
    return text


def check_line(key: str, text: str) -> str:
    """The text, if it can be printed in one line. Raises InvalidCommand."""
    if not text.isprintable():
        raise InvalidCommand(key, "must be one line without control characters")
    return text


def _secret(key: str, text: str | UnsetType) -> Secret | None:
    present = _present(key, text)
    return Secret(present) if present else None


def _host(host: str) -> str:
    host = _canonical(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    if not host or host.startswith("-") or any(mark in host for mark in " /@,*?[]!"):
        raise InvalidCommand("host", 'must be a host name or an address such as "192.0.2.7"')
    if _LIKE_ADDRESS.search(host) and not _is_address(host):
        # Resolvers accept spellings (127.1, 0x7f000001) that a list of allowed hosts does not
        # match.
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
