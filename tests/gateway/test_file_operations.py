"""What is read along of an sftp session, packet by packet."""

from __future__ import annotations

import pytest

from tunnelmux.gateway.file_operations import (
    MOST_OPEN,
    FileOperation,
    FileOperations,
    TooManyRequests,
)


def text(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def packet(kind: int, content: bytes) -> bytes:
    return text(bytes([kind]) + content)


class Session:
    """One that is followed; requests and answers have numbers by themselves."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.noted: list[FileOperation] = []
        self.operations = FileOperations(self.noted.append)
        self._size = size
        self._number = 0

    @property
    def lines(self) -> list[str]:
        return [operation.line for operation in self.noted]

    def ask(self, kind: int, content: bytes) -> int:
        self._number += 1
        data = packet(kind, number(self._number) + content)
        for at in range(0, len(data), self._size):
            self.operations.from_person(data[at : at + self._size])
        return self._number

    def answer(self, asked: int, kind: int, content: bytes) -> None:
        data = packet(kind, number(asked) + content)
        for at in range(0, len(data), self._size):
            self.operations.from_device(data[at : at + self._size])

    def done(self, kind: int, content: bytes, status: int = 0) -> None:
        """A request that gets a status."""
        self.answer(self.ask(kind, content), 101, number(status) + text(b"") + text(b""))

    def open(self, path: bytes, flags: int, handle: bytes) -> None:
        asked = self.ask(3, text(path) + number(flags) + number(0))
        self.answer(asked, 102, text(handle))


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_file_is_one_line_with_its_bytes(size: int) -> None:
    session = Session(size)
    session.operations.from_person(packet(1, number(3)))
    session.operations.from_device(packet(2, number(3) + text(b"x@y") + text(b"1")))
    session.open(b"/etc/motd", 1, b"h1")
    session.open(b"/tmp/new", 2 | 8 | 16, b"h2")
    first = session.ask(5, text(b"h1") + number(0) * 2 + number(32_768))
    second = session.ask(6, text(b"h2") + number(0) * 2 + text(b"w" * 30_000))
    session.answer(second, 101, number(0))
    session.answer(first, 103, text(b"r" * 100))
    session.done(5, text(b"h1") + number(0) * 2 + number(32_768), 1)  # the end of the file
    session.done(6, text(b"h2") + number(0) * 2 + text(b"x" * 10), 4)  # a write that failed
    session.done(4, text(b"h2"))
    session.done(4, text(b"h1"))
    assert session.lines == [
        "write /tmp/new (30000 bytes written)",
        "read /etc/motd (100 bytes read)",
    ]
    session.operations.end()
    assert len(session.noted) == 2


def test_what_changes_files_is_a_line_and_what_only_looks_is_none() -> None:
    session = Session()
    session.done(13, text(b"/a"))
    session.done(14, text(b"/d") + number(0), 4)
    session.done(15, text(b"/d"), 3)
    session.done(18, text(b"/a") + text(b"/b"))
    session.done(20, text(b"/a") + text(b"/l"))
    session.done(9, text(b"/a") + number(4) + number(0o600))
    for kind in (7, 16, 17, 19):  # lstat, realpath, stat, readlink
        session.done(kind, text(b"/a"), 2)
    session.done(200, text(b"posix-rename@openssh.com") + text(b"/x") + text(b"/y"))
    session.done(200, text(b"hardlink@openssh.com") + text(b"/x") + text(b"/z"))
    session.done(200, text(b"statvfs@openssh.com") + text(b"/"))
    session.done(200, text(b"erase@example.com") + text(b"/"))
    session.open(b"/from", 1, b"f")
    session.open(b"/to", 2, b"t")
    session.done(200, text(b"copy-data") + text(b"f") + b"\0" * 16 + text(b"t") + b"\0" * 8)
    session.done(10, text(b"t") + number(0))
    asked = session.ask(11, text(b"/d"))
    session.answer(asked, 102, text(b"dir"))
    session.done(4, text(b"dir"))
    asked = session.ask(3, text(b"/etc/shadow") + number(1) + number(0))
    session.answer(asked, 101, number(3) + text(b"no"))
    session.operations.end()
    assert session.lines == [
        "remove /a",
        "make directory /d (failed, status 4)",
        "remove directory /d (failed, permission denied)",
        "rename /a to /b",
        "link /a to /l",
        "set attributes of /a",
        "rename /x to /y",
        "link /x to /z",
        "extension erase@example.com",
        "copy /from to /to",
        "set attributes of /to",
        "list /d",
        "read /etc/shadow (failed, permission denied)",
        "read /from (failed, not closed)",
        "write /to (failed, not closed)",
    ]


def test_a_path_is_one_bounded_line_that_does_nothing_to_a_terminal() -> None:
    session = Session()
    session.done(13, text(b"/a\x1b[2J\r\n\xff\xc3\xa9"))
    session.done(13, text(b"/" + b"x" * 4095))
    session.done(13, text(b"/" + b"y" * 200_000))
    assert session.lines[0] == "remove /a\\x1b[2J\\r\\n\\xffé"
    assert all(len(line) <= len("remove ") + 513 for line in session.lines)
    assert " … " in session.lines[1]


def test_more_than_can_be_followed_is_said() -> None:
    session = Session()
    for _ in range(MOST_OPEN):
        session.ask(13, text(b"/a"))
    with pytest.raises(TooManyRequests, match="requests without an answer"):
        session.ask(13, text(b"/a"))
    session = Session()
    for index in range(MOST_OPEN):
        session.open(b"/a", 1, number(index))
    with pytest.raises(TooManyRequests, match="open files"):
        session.open(b"/a", 1, b"one more")


def test_what_is_no_sftp_does_no_harm() -> None:
    session = Session()
    session.operations.from_person(b"\0" * 9 + b"\0\0\0\x01\x03" + b"\xff" * 5000)
    session.operations.from_device(b"\0\0\0\x02\x65\0" + b"\xff" * 5000)
    session.operations.end()
    assert session.noted == []


def test_handles_are_as_long_as_the_protocol_allows() -> None:
    session = Session()
    session.open(b"/a", 1, b"h" * 256)
    session.done(4, text(b"h" * 256))
    assert session.lines == ["read /a"]
    with pytest.raises(TooManyRequests, match="a handle of over 256 bytes"):
        session.open(b"/a", 1, b"h" * 257)


def test_what_a_person_says_of_handles_is_kept_in_part() -> None:
    session = Session()
    for kind in (4, 5, 6):
        session.ask(kind, text(b"h" * 16_000) + bytes(20))
    kept = [asked for queue in session.operations._asked.values() for asked in queue]
    assert [len(asked.handle) for asked in kept] == [257] * 3
