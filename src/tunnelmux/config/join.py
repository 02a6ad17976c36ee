"""The one line an operator pastes on a device: URL, single-use token and certificate pin."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import msgspec

from tunnelmux.config.rules import InvalidSetting, check_token, parse_pin, split_url
from tunnelmux.config.secret import Secret
from tunnelmux.json_text import read_json

__all__ = [
    "JOIN_PREFIX",
    "TUNNEL_URL_SCHEMES",
    "JoinInvitation",
    "decode_join",
    "encode_join",
    "find_join",
]

JOIN_PREFIX = "tunnelmux-join:"
TUNNEL_URL_SCHEMES = ("ws", "wss")
"""The ways an agent reaches its proxy: a WebSocket, with or without TLS."""

_HINT = "copy the whole line that the proxy printed, or make a new one: tunnelmux-proxy invite"


class JoinInvitation(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a join string."""

    url: str
    """The proxy's tunnel endpoint."""

    token: Secret
    """The invitation's token; it works once and for a short time."""

    pin: str | None = None
    """`sha256:` and the SHA-256 of the proxy's certificate (DER) in hexadecimal, or None."""

    def __post_init__(self) -> None:
        split_url("url", self.url, TUNNEL_URL_SCHEMES, "wss://proxy.example.com:3800")
        check_token("token", self.token.reveal())
        if self.pin is not None:
            # The struct is frozen for its users; this is its own construction.
            msgspec.structs.force_setattr(self, "pin", parse_pin("pin", self.pin))


def encode_join(invitation: JoinInvitation) -> str:
    """The join string: one word of letters, digits, `-`, `_` and one colon."""
    content = {"url": invitation.url, "token": invitation.token.reveal(), "pin": invitation.pin}
    packed = json.dumps(content, separators=(",", ":")).encode()
    return JOIN_PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode_join(key: str, text: str) -> JoinInvitation:
    """The invitation in a join string. Errors never show the string, which holds a token.

    Raises InvalidSetting when the string is cut, changed, or no join string at all.
    """
    text = text.strip()
    if not text.startswith(JOIN_PREFIX):
        raise InvalidSetting(key, f'does not begin with "{JOIN_PREFIX}": {_HINT}')
    packed = text.removeprefix(JOIN_PREFIX)
    try:
        padded = packed + "=" * (-len(packed) % 4)
        content = read_json(base64.b64decode(padded, altchars=b"-_", validate=True), dict[str, Any])
        return JoinInvitation(
            url=_text(content, "url"),
            token=Secret(_text(content, "token")),
            pin=_text(content, "pin") if content.get("pin") is not None else None,
        )
    except (binascii.Error, ValueError, TypeError, KeyError, AttributeError):
        # The reader needs no more detail, and some of these errors would show the token.
        raise InvalidSetting(key, f"is damaged or cut short: {_HINT}") from None


def find_join(key: str, text: str) -> str:
    """The join string in a text that an operator saved or piped: alone, or within the line to
    paste.

    Raises InvalidSetting for `key` when there is none, or more than one.
    """
    found = {word for word in text.split() if word.startswith(JOIN_PREFIX)}
    if len(found) != 1:
        how_many = "none" if not found else f"{len(found)} of them"
        raise InvalidSetting(
            key, f'must have one word that begins with "{JOIN_PREFIX}", and has {how_many}: {_HINT}'
        )
    return found.pop()


def _text(content: dict[str, Any], name: str) -> str:
    value = content[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value
