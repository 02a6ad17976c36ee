"""Where the registry is: keys that several programs share."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tunnelmux.config.rules import InvalidSetting, check_one_line
from tunnelmux.config.secret import Secret
from tunnelmux.config.token_file import read_token_file

__all__ = ["RegistryAddress"]


class RegistryAddress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `[registry]` that say which database it is."""

    url: Secret | None = None
    """`sqlite:////absolute/path.db` or `postgresql://user@host/name`."""

    url_file: Path | None = None
    """A file whose only content is the URL: it may hold a password."""

    def __post_init__(self) -> None:
        if self.url is not None and self.url_file is not None:
            raise InvalidSetting("url", "and url_file are both there: keep one of them")

    @property
    def is_there(self) -> bool:
        """Whether a registry is configured."""
        return self.url is not None or self.url_file is not None

    @property
    def has_password(self) -> bool:
        """Whether `url` holds a password, so that the file it is in must not be readable by all."""
        try:
            return self.url is not None and urlsplit(self.url.reveal()).password is not None
        except ValueError:
            return True  # not a URL: it may be a damaged one with a password in it

    def read_url(self) -> Secret | None:
        """The URL, from its file when that is the source; raises InvalidSetting."""
        if self.url_file is None:
            return self.url
        return read_token_file("url_file", self.url_file, check_one_line)
