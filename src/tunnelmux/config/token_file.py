"""Files that hold one secret and nothing else."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from tunnelmux.config.rules import InvalidSetting, check_token
from tunnelmux.config.secret import Secret
from tunnelmux.config.unreadable import fix_for_unreadable

__all__ = ["exposed_to_others", "read_small_file", "read_token_file"]

_MAX_TOKEN_FILE = 16_384
"""Bytes: longer than any token, and a log file named by mistake is not read whole."""


def read_token_file(
    key: str, path: Path, check: Callable[[str, str], None] = check_token
) -> Secret:
    """The token a file holds, without the white space around it. `check(key, token)` judges it.

    Raises InvalidSetting for `key` when the file cannot be read or does not hold one token.
    """
    # latin-1 decodes every byte; check_token then refuses what is not ASCII, without showing it.
    token = read_small_file(key, path).strip()
    try:
        check(key, token)
    except InvalidSetting as error:
        raise InvalidSetting(key, f"{path} {error.problem}") from None
    return Secret(token)


def read_small_file(key: str, path: Path, what: str = "token") -> str:
    """The content of a file with a secret, as latin-1; `what` names its kind in errors.

    Raises InvalidSetting for `key`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_TOKEN_FILE + 1)
    except OSError as error:
        fix = f"create it with the {what} as its only content, readable by this program's user"
        raise InvalidSetting(
            key,
            f"{path} cannot be read ({error.strerror}): {fix_for_unreadable(error, fix)}",
        ) from None
    if len(content) > _MAX_TOKEN_FILE:
        raise InvalidSetting(key, f"{path} is too long for a {what}: is it the right file?")
    return content.decode("latin-1")


def exposed_to_others(path: Path) -> bool:
    """Whether users outside the file's owner and group may read it."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
