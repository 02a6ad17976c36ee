"""Lines in an account's authorized_keys, each for one lease and removed with it. The agent may be
root and the folder another user's, so nothing here follows a symbolic link, and a file is replaced
atomically with its owner and mode kept.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Collection
from pathlib import Path
from typing import Literal, Self

__all__ = ["AccountKeys"]

_MARK = b"lease-of-tunnelmux-"

_MOST = 1_000_000
# Bytes of such a file; people write only a few lines.

Words = Literal["openssh", "dropbear"]


class AccountKeys:
    """The lines for leases in one file. All calls are short; they raise OSError."""

    def __init__(self, path: Path, words: Words, networks: Collection[str]) -> None:
        self.path = path
        self._words = words
        self._networks = ",".join(networks) or "127.0.0.0/8,::1"

    def add(self, lease_id: str, public: str, ends: float) -> None:
        """Add this key until `ends`, in seconds since 1970 by this machine's clock."""
        line = f"{self._options(ends)} {public} {_MARK.decode()}{lease_id}\n".encode("ascii")
        with _Folder(self.path) as folder:
            lines = folder.lines()
            if lines and not lines[-1].endswith(b"\n"):
                lines[-1] += b"\n"
            folder.replace([*lines, line])

    def keep_only(self, lease_ids: Collection[str]) -> int:
        """Remove the lines of all other leases. Returns how many."""
        kept = {_MARK + lease_id.encode("ascii") for lease_id in lease_ids}
        try:
            with _Folder(self.path) as folder:
                lines = folder.lines()
                left = [line for line in lines if _mark_of(line) in kept | {b""}]
                if len(left) < len(lines):
                    folder.replace(left)
                return len(lines) - len(left)
        except FileNotFoundError:
            return 0

    def _options(self, ends: float) -> str:
        if self._words == "dropbear":
            # dropbear refuses a line with an unknown option, and these are the ones it knows.
            return "no-port-forwarding,no-agent-forwarding,no-X11-forwarding"
        # In the machine's time zone: OpenSSH before 9.1 supports no other.
        until = time.strftime("%Y%m%d%H%M%S", time.localtime(ends))
        return f'restrict,pty,expiry-time="{until}",from="{self._networks}"'


def _mark_of(line: bytes) -> bytes:
    """The mark at the end of a line of ours; empty for other lines, and for commented ones."""
    if line.lstrip().startswith(b"#"):
        return b""
    last = line.split()[-1] if line.split() else b""
    return last if last.startswith(_MARK) else b""


class _Folder:
    """The file's folder, held open so that it cannot be exchanged meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = path.name
        self._mode = 0o600
        self._folder = -1

    def __enter__(self) -> Self:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._folder = os.open(self._path.parent, flags)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)

    def lines(self) -> list[bytes]:
        """The file's lines with their line ends; none where there is no file."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = os.open(self._name, flags, dir_fd=self._folder)
        except FileNotFoundError:
            return []
        with os.fdopen(file, "rb") as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise OSError(None, "it is not a regular file", str(self._path))
            if found.st_size > _MOST:
                raise OSError(None, f"it is larger than {_MOST} bytes", str(self._path))
            self._mode = stat.S_IMODE(found.st_mode)
            return opened.read().splitlines(keepends=True)

    def replace(self, lines: list[bytes]) -> None:
        """Replace the file with these lines, atomically."""
        temporary = f".{self._name}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                owner = os.fstat(self._folder)
                if os.geteuid() == 0:
                    # sshd reads the file only if the account or root owns it.
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                os.fchmod(file.fileno(), self._mode)
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except BaseException:
            os.unlink(temporary, dir_fd=self._folder)
            raise
        os.fsync(self._folder)
