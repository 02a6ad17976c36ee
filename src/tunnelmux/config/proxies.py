"""How a program of the control plane calls the proxies' internal APIs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tunnelmux.config.rules import InvalidSetting, check_token
from tunnelmux.config.secret import Secret
from tunnelmux.config.token_file import read_token_file

__all__ = ["ProxyCalls"]


class ProxyCalls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to call the proxies' internal APIs. Their addresses are in the registry: a proxy with
    `[registry]` and `[internal]` writes its own there.
    """

    secret: Secret | None = None
    """The secret of their `[internal]` tables."""

    secret_file: Path | None = None
    """A file whose only content is that secret."""

    ca_file: Path | None = None
    """PEM file with the authorities that sign the proxies' internal certificates."""

    timeout: float = 10.0
    """Seconds within which a proxy must answer."""

    def __post_init__(self) -> None:
        if self.secret is not None and self.secret_file is not None:
            raise InvalidSetting("secret", "and secret_file are both there: keep one of them")
        if self.secret is not None:
            check_token("secret", self.secret.reveal())

    def read_secret(self) -> Secret | None:
        """The secret, from its file when that is the source; raises InvalidSetting."""
        if self.secret_file is None:
            return self.secret
        return read_token_file("secret_file", self.secret_file)
