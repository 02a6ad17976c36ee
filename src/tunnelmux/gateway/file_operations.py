"""What a person does with files over sftp, read along from both directions of the session.

SFTP version 3 (draft-ietf-secsh-filexfer-02), which OpenSSH speaks, and OpenSSH's extensions. Only
the beginning of each packet is kept; content passes by and is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FileOperation", "FileOperations", "TooManyRequests"]

_KEPT = 16_384
# Bytes of one packet that are looked at: two paths of 4096 bytes, and room.

_LONGEST_PATH = 512
# Characters of a path in a line; a longer one is cut in the middle.

MOST_OPEN = 4096
"""Unanswered requests, and open files, of one session. OpenSSH's client has 64 requests under way,
and its server opens some 1000 files."""

_LONGEST_HANDLE = 256
# Bytes of a handle (section 6.3): those of all open files are kept.

_OPEN, _CLOSE, _READ, _WRITE = 3, 4, 5, 6
_SETSTAT, _FSETSTAT, _OPENDIR = 9, 10, 11
_REMOVE, _MKDIR, _RMDIR, _RENAME, _SYMLINK = 13, 14, 15, 18, 20
_EXTENDED = 200
_STATUS, _HANDLE, _DATA = 101, 102, 103

_WITH_PATH = {
    _SETSTAT: "set attributes of",
    _REMOVE: "remove",
    _MKDIR: "make directory",
    _RMDIR: "remove directory",
    _RENAME: "rename",
    _SYMLINK: "link",
}

_WITH_TWO = frozenset({_RENAME, _SYMLINK})

_EXTENSIONS = {
    b"posix-rename@openssh.com": ("rename", 2),
    b"hardlink@openssh.com": ("link", 2),
    b"lsetstat@openssh.com": ("set attributes of", 1),
}

_HARMLESS = frozenset(
    {
        b"statvfs@openssh.com",
        b"fstatvfs@openssh.com",
        b"fsync@openssh.com",
        b"limits@openssh.com",
        b"expand-path@openssh.com",
        b"users-groups-by-id@openssh.com",
        b"home-directory",
    }
)

_MAY_READ, _MAY_WRITE = 1, 2
# Flags of SSH_FXP_OPEN.

_PROBLEMS = {2: "no such file", 3: "permission denied", 8: "not supported"}


class TooManyRequests(Exception):
    """More is under way than can be followed; the message says so to the person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOperation:
    """One operation that was answered: for a file, from its opening to its closing."""

    what: str
    path: str
    to: str = ""
    """The other path of a rename or a link."""
    read: int = 0
    """Bytes that came from the file."""
    written: int = 0
    """Bytes that went into it."""
    problem: str = ""
    """Why it failed; empty where it did not."""

    @property
    def line(self) -> str:
        """For a record: `write /etc/motd (120 bytes written)`."""
        text = f"{self.what} {self.path}" + (f" to {self.to}" if self.to else "")
        notes = []
        if self.read:
            notes.append(f"{self.read} bytes read")
        if self.written:
            notes.append(f"{self.written} bytes written")
        if self.problem:
            notes.append(f"failed, {self.problem}")
        return text + (f" ({', '.join(notes)})" if notes else "")


@dataclass(slots=True)
class _Asked:
    """A request that waits for its answer."""

    kind: int
    what: str = ""
    path: str = ""
    to: str = ""
    flags: int = 0
    handle: bytes = b""
    size: int = 0


@dataclass(slots=True)
class _OpenFile:
    what: str
    path: str
    read: int = 0
    written: int = 0


class FileOperations:
    """Follows one session; `note` is called with each operation once it is answered."""

    def __init__(self, note: Callable[[FileOperation], object]) -> None:
        self._note = note
        self._requests = _Packets(self._request)
        self._answers = _Packets(self._answer)
        self._asked: dict[bytes, deque[_Asked]] = {}
        self._waiting = 0
        self._files: dict[bytes, _OpenFile] = {}

    def from_person(self, data: bytes) -> None:
        """Take what goes to the device. Raises TooManyRequests."""
        self._requests.feed(data)

    def from_device(self, data: bytes) -> None:
        """Take what comes from it. Raises TooManyRequests."""
        self._answers.feed(data)

    def end(self) -> None:
        """The session is over: note the files that were not closed."""
        for file in self._files.values():
            self._note_file(file, "not closed")
        self._files.clear()

    def _request(self, kind: int, body: _Fields) -> None:
        number = body.take(4)
        asked = self._asked_for(kind, body)
        if asked is None:
            return
        self._waiting += 1
        if self._waiting > MOST_OPEN:
            raise TooManyRequests(f"sftp has {MOST_OPEN} requests without an answer")
        self._asked.setdefault(number, deque()).append(asked)

    def _asked_for(self, kind: int, body: _Fields) -> _Asked | None:
        """What is to be remembered of a request; None for those that change and read nothing."""
        if kind == _OPEN:
            path, flags = body.path(), body.number()
            return _Asked(kind, _way_of(flags), path, flags=flags)
        if kind == _OPENDIR:
            return _Asked(kind, "list", body.path())
        if kind in (_CLOSE, _READ):
            return _Asked(kind, handle=body.handle())
        if kind == _WRITE:
            handle = body.handle()
            body.take(8)  # the offset
            return _Asked(kind, handle=handle, size=body.number())
        if kind == _FSETSTAT:
            return _Asked(kind, _WITH_PATH[_SETSTAT], self._path_of(body.string()))
        if kind in _WITH_PATH:
            path = body.path()
            return _Asked(kind, _WITH_PATH[kind], path, body.path() if kind in _WITH_TWO else "")
        return self._extension(body) if kind == _EXTENDED else None

    def _extension(self, body: _Fields) -> _Asked | None:
        name = body.string()
        if name in _HARMLESS:
            return None
        if name == b"copy-data":
            source = self._path_of(body.string())
            body.take(16)  # where it begins, and how much
            return _Asked(_EXTENDED, "copy", source, self._path_of(body.string()))
        if name not in _EXTENSIONS:
            return _Asked(_EXTENDED, "extension", _readable(name))
        what, paths = _EXTENSIONS[name]
        path = body.path()
        return _Asked(_EXTENDED, what, path, body.path() if paths == 2 else "")

    def _answer(self, kind: int, body: _Fields) -> None:
        number = body.take(4)
        queue = self._asked.get(number)
        if not queue:
            return
        asked = queue.popleft()
        self._waiting -= 1
        if not queue:
            del self._asked[number]
        problem = _problem(body) if kind == _STATUS else ""
        if asked.kind in (_OPEN, _OPENDIR):
            if kind == _HANDLE:
                handle = body.string()
                if len(handle) > _LONGEST_HANDLE:
                    raise TooManyRequests(f"sftp has a handle of over {_LONGEST_HANDLE} bytes")
                self._files[handle] = _OpenFile(asked.what, asked.path)
                if len(self._files) > MOST_OPEN:
                    raise TooManyRequests(f"sftp has {MOST_OPEN} open files")
                return
            self._note(FileOperation(what=asked.what, path=asked.path, problem=problem))
        elif asked.kind in (_READ, _WRITE, _CLOSE):
            self._used(asked, kind, body, problem)
        else:
            self._note(
                FileOperation(what=asked.what, path=asked.path, to=asked.to, problem=problem)
            )

    def _used(self, asked: _Asked, kind: int, body: _Fields, problem: str) -> None:
        file = self._files.get(asked.handle)
        if file is None:
            return
        if asked.kind == _READ and kind == _DATA:
            file.read += body.number()
        elif asked.kind == _WRITE and not problem:
            file.written += asked.size
        elif asked.kind == _CLOSE:
            del self._files[asked.handle]
            self._note_file(file, problem)

    def _note_file(self, file: _OpenFile, problem: str) -> None:
        self._note(
            FileOperation(
                what=file.what,
                path=file.path,
                read=file.read,
                written=file.written,
                problem=problem,
            )
        )

    def _path_of(self, handle: bytes) -> str:
        file = self._files.get(handle)
        return file.path if file is not None else "an unknown file"


def _way_of(flags: int) -> str:
    if flags & _MAY_WRITE:
        return "read and write" if flags & _MAY_READ else "write"
    return "read"


def _problem(body: _Fields) -> str:
    code = body.number()
    return _PROBLEMS.get(code, f"status {code}") if code else ""


def _readable(path: bytes) -> str:
    """A path as one line of text that does nothing to a terminal."""
    text = path.decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(shown) <= _LONGEST_PATH:
        return shown
    half = _LONGEST_PATH // 2
    return f"{shown[: half - 2]} … {shown[len(shown) - half + 1 :]}"


class _Fields:
    """Reads the fields of one packet; what is missing reads as nothing."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        self._at += size
        return data

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        return self.take(self.number())

    def handle(self) -> bytes:
        """One that is too long is none of an open file."""
        return self.string()[: _LONGEST_HANDLE + 1]

    def path(self) -> str:
        return _readable(self.string())


class _Packets:
    """Cuts one direction into packets, and calls `take(type, fields)` with each."""

    def __init__(self, take: Callable[[int, _Fields], None]) -> None:
        self._take = take
        self._head = bytearray()
        self._left = 0
        """Bytes of the packet under way that are still to come."""
        self._kept = bytearray()

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if not self._left:
                missing = 4 - len(self._head)
                self._head += data[at : at + missing]
                at += missing
                if len(self._head) == 4:
                    self._left = int.from_bytes(self._head, "big")
                    self._head.clear()
                    self._kept.clear()
                continue
            size = min(self._left, len(data) - at)
            room = _KEPT - len(self._kept)
            if room > 0:
                self._kept += data[at : at + min(size, room)]
            at += size
            self._left -= size
            if not self._left:
                kept = bytes(self._kept)
                self._take(kept[0], _Fields(kept[1:]))
