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

    audit_per_day: int = 20_000
    """Entries of the audit that one person or device may cause in a day, in each program: they stay
    for years. That is some 20 MB, and a script that goes through 10,000 devices twice. What takes a
    right away is never refused."""

    audit_per_day_of_tenant: int = 500_000
    """The same of all people and devices of one tenant, its devices with half of it at most: so
    that a tenant of hostile devices does not fill the disk of all (half a gigabyte in a day), nor
    keep its own people from work. 100,000 devices can be enrolled in a day."""

    def __post_init__(self) -> None:
        if self.url is not None and self.url_file is not None:
            raise InvalidSetting("url", "and url_file are both there: keep one of them")
        for name in ("audit_per_day", "audit_per_day_of_tenant"):
            if not 10 <= getattr(self, name) <= 10**9:
                raise InvalidSetting(name, f"{getattr(self, name)} is not from 10 to {10**9}")

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
