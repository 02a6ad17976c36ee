"""The command line that starts this program again, for ssh and its configuration."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

__all__ = ["own_command", "proxy_command"]


def own_command() -> list[str]:
    """The words that start `tunnelmux`: as it was started, with paths that hold everywhere."""
    started = Path(sys.argv[0])
    if started.is_dir():  # the launcher in a checkout: python cmd/tunnelmux
        return [sys.executable, str(started.absolute())]
    if started.name == "tunnelmux" and os.access(started, os.X_OK):
        return [str(started.absolute())]
    return [sys.executable, "-c", "from tunnelmux.cli.main import main; main()"]


def proxy_command(words: list[str]) -> str:
    """A value for OpenSSH's ProxyCommand: for a shell, with ssh's own `%` kept out."""
    return " ".join(
        word if word in {"%n", "%h"} else shlex.quote(word).replace("%", "%%") for word in words
    )
