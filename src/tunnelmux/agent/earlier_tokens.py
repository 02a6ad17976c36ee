"""The tokens that a device had before, beside the one it has, for as long as they may be needed.

A proxy gives an agent its new token, and the same proxy says that it is good. Who got hold of a
tunnel could so leave a device with a token that no other proxy knows. What it replaced is therefore
kept, and shown again when the new one is refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunnelmux.config import Secret, hash_token
from tunnelmux.config.private_file import write_private
from tunnelmux.errors import ConfigError

__all__ = ["MAX_EARLIER", "EarlierTokens"]

MAX_EARLIER = 4
"""Tokens that are kept, and new ones that are taken within FRESH. A fleet's tokens are rotated once
in weeks; four leave room for a rotation that failed and was asked for again."""

FRESH = 86_400.0
"""Seconds for which what was replaced is not thrown away: a day to notice that a proxy is not ours.
"""

_MAX_FILE = 65_536


@dataclass(frozen=True, slots=True)
class _Earlier:
    token: Secret
    until: float  # when it was replaced, in seconds of the machine's clock


class EarlierTokens:
    """What stood in the file `kept_in` before, in a file beside it (`….earlier`, mode 0600).

    It says for which token it was written. Where a person put another one into the file, the
    earlier ones are of no use any more, and are never shown.
    """

    def __init__(self, kept_in: Path, now: Callable[[], float] = time.time) -> None:
        self.path = kept_in.with_name(f"{kept_in.name}.earlier")
        self._now = now

    def of(self, token: Secret) -> list[Secret]:
        """Those that `token` replaced, the latest first. A file that is damaged holds none."""
        return [earlier.token for earlier in self._of(token)]

    def keep(self, token: Secret, *, replaced_by: Secret) -> None:
        """Write down that `token` is replaced, before it is.

        Raises ConfigError, with nothing changed, when it cannot be written, or when too many
        were replaced within a day.
        """
        now = self._now()
        kept = [one for one in self._of(token) if one.token not in {token, replaced_by}]
        if len(kept) >= MAX_EARLIER:
            # A clock that was set back makes nothing older than it is.
            if kept[-1].until > now - FRESH:
                raise ConfigError(
                    f"this device was given {MAX_EARLIER} other tokens within a day; more are "
                    f"taken tomorrow, or once {self.path} is removed"
                )
            kept.pop()
        content = {
            "replaced_by_sha256": hash_token(replaced_by),
            "tokens": [
                {"token": one.token.reveal(), "until": one.until}
                for one in [_Earlier(token, now), *kept]
            ],
        }
        try:
            write_private(self.path, json.dumps(content).encode())
        except OSError as exc:
            raise ConfigError(
                f"cannot write {self.path} ({exc.strerror}); let this program's user write it and "
                "the folder it is in"
            ) from exc

    def _of(self, token: Secret) -> list[_Earlier]:
        try:
            with self.path.open("rb") as file:
                content = json.loads(file.read(_MAX_FILE))
            kept = [_Earlier(Secret(str(o["token"])), float(o["until"])) for o in content["tokens"]]
            # A crash may have come between this file and the other one: then the token is here.
            if hash_token(token) != content["replaced_by_sha256"]:
                at = [one.token for one in kept].index(token)
                kept = kept[at + 1 :]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []
        return kept[:MAX_EARLIER]
