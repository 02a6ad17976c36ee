"""The file that `tunnelmux login` writes: the server and the token, readable by its owner only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from tunnelmux.config import Secret
from tunnelmux.config.private_file import write_private
from tunnelmux.errors import ConfigError
from tunnelmux.json_text import BadJson, read_json

__all__ = ["SignIn", "forget_sign_in", "read_sign_in", "sign_in_file", "write_sign_in"]

_MAX_SIZE = 65_536


class _Content(msgspec.Struct):
    server: str
    token: str
    ca_file: str | None = None


class SignIn(msgspec.Struct, frozen=True, kw_only=True):
    """A server that a person is signed in at."""

    server: str
    token: Secret
    ca_file: Path | None = None


def sign_in_file(environ: Mapping[str, str]) -> Path:
    """`~/.config/tunnelmux/login.json`, or below XDG_CONFIG_HOME."""
    config = environ.get("XDG_CONFIG_HOME")
    home = Path(config) if config else Path(environ.get("HOME") or Path.home()) / ".config"
    return home / "tunnelmux" / "login.json"


def read_sign_in(file: Path) -> SignIn | None:
    """What is in the file, or None when there is none. Raises ConfigError for an unusable one."""
    try:
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"{file} holds a token, and others may read it: chmod 600 {file}")
        with file.open("rb") as source:
            content = read_json(source.read(_MAX_SIZE), _Content)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(f"{file} cannot be read ({exc.strerror})") from None
    except BadJson:
        raise ConfigError(f"{file} is not what `tunnelmux login` writes: sign in again") from None
    ca_file = Path(content.ca_file) if content.ca_file else None
    return SignIn(server=content.server, token=Secret(content.token), ca_file=ca_file)


def write_sign_in(file: Path, sign_in: SignIn) -> None:
    """Replace the file; only its owner may read it. Raises ConfigError."""
    ca_file = str(sign_in.ca_file.resolve()) if sign_in.ca_file else None
    content = _Content(server=sign_in.server, token=sign_in.token.reveal(), ca_file=ca_file)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, msgspec.json.encode(content) + b"\n")
    except OSError as exc:
        raise ConfigError(f"{file} cannot be written ({exc.strerror})") from None


def forget_sign_in(file: Path) -> None:
    """Remove the file. Raises ConfigError."""
    try:
        file.unlink(missing_ok=True)
    except OSError as exc:
        raise ConfigError(f"{file} cannot be removed ({exc.strerror})") from None
