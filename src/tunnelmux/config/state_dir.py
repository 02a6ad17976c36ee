"""The folder where a program keeps its state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tunnelmux.errors import ConfigError

__all__ = ["default_state_dir"]


def default_state_dir(program: str, environ: Mapping[str, str]) -> Path:
    """The folder for `program`'s state; it need not exist yet.

    systemd's `StateDirectory=` wins; then the XDG base directory for state, which is
    `~/.local/state` unless XDG_STATE_HOME says otherwise. Raises ConfigError when this user has
    no home directory either.
    """
    # systemd separates several directories with colons; the first is for state.
    if service_dir := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(service_dir)
    # The specification says to ignore relative values.
    base = Path(environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path("~/.local/state").expanduser()
        except RuntimeError:
            raise ConfigError(
                "this user has no home directory to keep state in: name a folder with --state-dir"
            ) from None
    return base / program
