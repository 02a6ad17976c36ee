"""What a quickstart proxy tells other programs of the same user."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tunnelmux.config.private_file import write_private
from tunnelmux.errors import ConfigError
from tunnelmux.json_text import BadJson, read_json

__all__ = ["INTERNAL_SECRET", "QuickstartState"]

INTERNAL_SECRET = "internal.secret"  # noqa: S105  the name of its file
"""The file beside the state with the secret of the internal API; a new one at each start."""

_FILE = "quickstart.json"


class QuickstartState(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `quickstart.json` in the proxy's state directory."""

    url: str
    """The URL of the tunnel endpoint for devices."""

    certificate: str
    """The path of its certificate."""

    configured: list[str] = []
    """Devices of the configuration, whose names are not free to join with."""

    public_host: str | None = None
    """Options of an earlier start, which later starts use as well."""

    internal_url: str | None = None
    """The URL of the internal API, while the proxy runs without an [internal] table."""

    @classmethod
    def read(cls, state_dir: Path) -> QuickstartState:
        """Raises ConfigError when no proxy was started there."""
        file = state_dir / _FILE
        try:
            return read_json(file.read_bytes(), cls)
        except (OSError, BadJson) as error:
            raise ConfigError(
                f"{file} cannot be read, and it tells how devices reach the proxy: start "
                "tunnelmux-proxy --quickstart first, or name its directory with --state-dir"
            ) from error

    def write(self, state_dir: Path) -> None:
        """Raises OSError."""
        write_private(state_dir / _FILE, msgspec.json.encode(self))
