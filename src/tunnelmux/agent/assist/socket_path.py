"""Paths of Unix sockets, also those that are longer than the system's 107 bytes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunnelmux.errors import ConfigError

__all__ = ["socket_path"]

_MAX_PATH = 107
# Bytes of a path in sockaddr_un on Linux, unix(7).


@contextmanager
def socket_path(path: Path) -> Iterator[str]:
    """A name by which a socket at `path` is bound and connected to, good within the block.

    A path that is too long is named by way of its open folder, which is on Linux only. Raises
    ConfigError for one that has no short name, and OSError where there is no such folder.
    """
    if len(os.fsencode(path)) <= _MAX_PATH:
        yield str(path)
        return
    if sys.platform != "linux":
        raise _too_long(path)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = f"/proc/self/fd/{folder}/{path.name}"
        if len(os.fsencode(name)) > _MAX_PATH:
            raise _too_long(path)
        yield name
    finally:
        os.close(folder)


def _too_long(path: Path) -> ConfigError:
    return ConfigError(
        f"device.state_dir: {path} is longer than the {_MAX_PATH} bytes that a socket's path has: "
        "choose a shorter folder, or a shorter device.name"
    )
