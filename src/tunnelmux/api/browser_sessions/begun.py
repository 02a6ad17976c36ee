"""Sign-ins that were begun, which only their browsers keep.

Each is in a cookie of its own, sealed (`keys.KeyRing`), so that tabs do not disturb each other and
strangers who begin sign-ins leave nothing on the server. Its name is made of the sign-in's `state`,
by which the provider's answer finds it. That it is this browser's own is what the prefix `__Host-`
stands for: no other host, and no other site's page, can put one into a browser.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping

import msgspec

from tunnelmux.api.browser_sessions.cookie import BEGUN, begun_cookie, ended_cookie
from tunnelmux.api.browser_sessions.keys import KeyRing, SealedValueRefused
from tunnelmux.api.oidc.provider import Attempt
from tunnelmux.json_text import read_json

__all__ = ["SIGN_IN_TIME", "BegunSignIn"]

SIGN_IN_TIME = 600.0
"""Seconds in which a person has to sign in at the provider."""

_MOST = 8
_MOST_BYTES = 6_000
# What one browser keeps of them, names and values; the oldest gives way. A head may have 16 KiB
# here, and a field of 8 KiB at nginx: a browser with more could not reach us until they expire.

_NAME_LENGTH = 12

_SKEW = 30.0
# Seconds by which the clocks of two copies of tunnelmux-api may differ.


class BegunSignIn(msgspec.Struct, frozen=True, array_like=True):
    """One sign-in that was begun in some tab."""

    state: str
    nonce: str
    verifier: str
    return_to: str
    begun: float
    """Unix time."""

    def __repr__(self) -> str:
        return "<BegunSignIn>"

    @property
    def attempt(self) -> Attempt:
        """What the provider's answer has to prove."""
        return Attempt(self.state, self.nonce, self.verifier)

    @property
    def name(self) -> str:
        """The name of its cookie."""
        return BEGUN + self.state[:_NAME_LENGTH]

    def set_cookies(self, shown: Mapping[str, str], keys: KeyRing) -> list[str]:
        """The Set-Cookie fields with which a browser that showed these cookies keeps this one too,
        and forgets those that are worth nothing any more or have to give way."""
        sealed = keys.seal(msgspec.json.encode(self), "sign-in")
        value = base64.urlsafe_b64encode(sealed).decode("ascii").rstrip("=")
        living = []
        for name, text in shown.items():
            other = _opened(text, keys)
            if other is not None and other.is_good(self.begun):
                living.append((other.begun, name))
        size, kept = len(self.name) + len(value), {self.name}
        for _, name in sorted(living, reverse=True):
            size += len(name) + len(shown[name])
            if len(kept) == _MOST or size > _MOST_BYTES:
                break
            kept.add(name)
        gone = [ended_cookie(name) for name in shown if name not in kept]
        return [*gone, begun_cookie(self.name, value, SIGN_IN_TIME)]

    @classmethod
    def found(
        cls, shown: Mapping[str, str], state: str, now: float, keys: KeyRing
    ) -> BegunSignIn | None:
        """The sign-in of this state among a browser's cookies, if it is still good."""
        text = shown.get(BEGUN + state[:_NAME_LENGTH], "")
        begun = _opened(text, keys)
        if begun is None or not begun.is_good(now):
            return None
        same = secrets.compare_digest(begun.state.encode(), state.encode("utf-8", "replace"))
        return begun if same else None

    def is_good(self, now: float) -> bool:
        """Whether it is not too old."""
        return -_SKEW <= now - self.begun < SIGN_IN_TIME


def _opened(text: str, keys: KeyRing) -> BegunSignIn | None:
    try:
        sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return read_json(keys.open(sealed, "sign-in"), BegunSignIn)
    except (ValueError, SealedValueRefused):  # neither base64 nor JSON is one
        return None
