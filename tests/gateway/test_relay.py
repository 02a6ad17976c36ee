"""A person's session that is ended from both sides at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from asyncssh.packet import Boolean, SSHPacket, String, UInt32

from tunnelmux.gateway.relay import Opened, PersonSession
from tunnelmux.gateway.side_channels import take_requests


class Channel:
    """A channel as asyncssh has it: nothing can be written once it was ended."""

    def __init__(self) -> None:
        self.written = b""
        self.signals: list[str] = []
        self.ends: list[object] = []
        self.texts: list[bytes] = []
        self._send_buf = [b"what the person has not read"]

    def get_environment_bytes(self) -> dict[bytes, bytes]:
        return {}

    def is_closing(self) -> bool:
        return bool(self.signals or self.ends)

    def write_eof(self) -> None:
        self.ends.append("eof")

    def exit(self, status: int) -> None:
        self.ends.append(status)

    def write_stderr(self, data: bytes) -> None:
        self.write(data)

    def write(self, data: bytes, datatype: Any = None) -> None:
        if self.is_closing():
            raise BrokenPipeError("Channel not open for sending")
        self.written += data

    def exit_with_signal(
        self, signal: str, core_dumped: bool, reason: str, language: str = ""
    ) -> None:
        if not self.is_closing():
            self.signals.append(reason)
            self.texts = [text.encode() for text in (signal, reason, language)]


class DeviceChannel:
    def __init__(self) -> None:
        self.signals: list[str] = []

    def send_signal(self, signal: str) -> None:
        self.signals.append(signal)


class Owner:
    async def why_lost(self, session: PersonSession) -> str:
        return "the device is away"


class BusyDisk:
    """A recording that is written when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []

    def output(self, data: bytes) -> bool:
        return True

    def when_written(self, done: Callable[[], object]) -> None:
        self.waiting.append(done)


def test_the_end_waits_for_the_recording_which_may_fail() -> None:
    session = PersonSession(Owner(), "dev1", lambda _: None)  # type: ignore[arg-type]
    channel, disk = Channel(), BusyDisk()
    session.connection_made(channel)
    session.opened = Opened(None, None, disk, {}, 20.0)  # type: ignore[arg-type]
    session.from_device(b"output", None)
    session.device_eof()
    session.device_over(0, None)
    session.tell("this session is not recorded any more")
    for done in disk.waiting:
        done()
    assert channel.written == b"outputtunnelmux: this session is not recorded any more\n"
    assert channel.ends == ["eof", 0]


def test_what_has_a_nul_byte_never_reaches_the_sshd_which_would_end_the_connection() -> None:
    tasks: list[Coroutine[Any, Any, None]] = []
    session = PersonSession(Owner(), "dev1", tasks.append)  # type: ignore[arg-type]
    channel = Channel()
    session.connection_made(channel)
    assert not session.pty_requested("xterm\0", (80, 24, 0, 0), {})
    session.exec_requested("cat a\0b")
    session.session_started()
    [task] = tasks
    with contextlib.suppress(StopIteration):
        task.send(None)  # `Owner` opens no device
    assert channel.written == (
        b"tunnelmux: a command cannot have a NUL byte in it: sshd takes none\n"
    )
    assert channel.ends == [64]

    other = PersonSession(Owner(), "dev1", tasks.append)  # type: ignore[arg-type]
    device = SimpleNamespace(is_full=False, channel=DeviceChannel())
    other.connection_made(Channel())
    other.attach(device)  # type: ignore[arg-type]
    other.signal_received("INT\0")
    other.signal_received("INT")
    assert device.channel.signals == ["INT"]


def test_a_display_whose_method_has_a_nul_byte_is_refused() -> None:
    asked: list[object] = []
    channel = SimpleNamespace()
    session = SimpleNamespace(x11_requested=lambda x11: asked.append(x11) or True)
    take_requests(channel, session)
    for method, is_taken in ((b"MIT-MAGIC-COOKIE-1", True), (b"MIT\0", False)):
        words = Boolean(False) + String(method) + String(b"0a") + UInt32(0)
        assert channel._process_x11_req_request(SSHPacket(words)) is is_taken
    assert len(asked) == 1


def test_it_is_ended_once_and_the_first_reason_counts() -> None:
    tasks: list[Coroutine[Any, Any, None]] = []
    session = PersonSession(Owner(), "dev1", tasks.append)  # type: ignore[arg-type]
    channel = Channel()
    session.connection_made(channel)
    session.device_over(None, None)  # it was lost: why, is being asked for
    session.cut("the lease has ended")
    [task] = tasks
    with contextlib.suppress(StopIteration):
        task.send(None)
    session.tell("too late")
    session.from_device(b"too late", None)
    assert channel.written == b"tunnelmux: the lease has ended\n"
    assert channel.signals == ["the lease has ended"]
    assert session.end_reason == "the lease has ended"
    assert channel._send_buf == []  # the reason waits for nothing that the person did not read


def test_words_of_a_device_do_nothing_to_the_terminal_of_a_person() -> None:
    for has_terminal in (True, False):
        session = PersonSession(Owner(), "dev1", lambda _: None)  # type: ignore[arg-type]
        channel = Channel()
        session.connection_made(channel)
        if has_terminal:
            session.pty_requested("xterm", (80, 24, 0, 0), {})
        evil = "closed: \x1b]0;x\x07\x1b[2J\x9b1m\r\ntunnelmux: all is well\u202e"
        session.tell(evil)
        session.cut(evil)
        text = channel.written.decode()
        assert text.count("closed: �]0;x��[2J�1m��tunnelmux: all is well�") == 2
        assert set(text) - {"\r", "\n"} == {char for char in text if char.isprintable()}
        assert text.replace("\r\n", "\n").strip("\n").count("\n") <= 2
        assert channel.signals[0].isprintable()


def test_the_words_of_a_devices_last_signal_are_made_harmless_too() -> None:
    session = PersonSession(Owner(), "dev1", lambda _: None)  # type: ignore[arg-type]
    channel = Channel()
    session.connection_made(channel)
    session.device_over(None, ("TERM", False, "\x1b[2Jbye", ""))
    assert channel.signals == ["�[2Jbye"]


def test_the_words_of_a_device_are_few_enough_for_one_packet() -> None:
    for end in (
        ("TERM", False, "\x01" * 250_000, ""),
        ("\x1b" * 250_000, False, "", ""),
        ("TERM", False, "", "\x01" * 250_000),
    ):
        session = PersonSession(Owner(), "dev1", lambda _: None)  # type: ignore[arg-type]
        channel = Channel()
        session.connection_made(channel)
        session.device_over(None, end)
        assert sum(map(len, channel.texts)) < 4000
    for say in ("tell", "cut"):
        session = PersonSession(Owner(), "dev1", lambda _: None)  # type: ignore[arg-type]
        channel = Channel()
        session.connection_made(channel)
        getattr(session, say)("the device says: " + "\x01" * 250_000)
        assert len(channel.written) + sum(map(len, channel.texts)) < 8000
