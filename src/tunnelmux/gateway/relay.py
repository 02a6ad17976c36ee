"""One SSH session of a person, joined to one on the device: bytes, sizes, signals, the exit status.

asyncssh calls `PersonSession` about the person's channel, and `DeviceSession` about the device's.
Everything is passed on as it comes, so terminals, scp, sftp, rsync and git are all the same here.
Output of the device is recorded before the person gets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import asyncssh

from tunnelmux.gateway.authority import Access, AccessDenied
from tunnelmux.gateway.file_operations import TooManyRequests
from tunnelmux.gateway.file_record import FileRecord
from tunnelmux.gateway.menu import Menu
from tunnelmux.gateway.recording import Recording, RecordingStopped
from tunnelmux.gateway.side_channels import X11Request
from tunnelmux.gateway.upstream import SshdRefused
from tunnelmux.gateway.windows import WINDOW
from tunnelmux.observability import get_logger
from tunnelmux.printable import said
from tunnelmux.ssh.session_channel import discard_unsent

__all__ = ["Opened", "PersonSession", "Request", "SessionOwner"]

_log = get_logger("gateway")

_MOST_EARLY = 64
# Window changes and signals that wait until the device is connected. Only a program makes many.

_EXIT_USAGE = 64
_EXIT_FAILED = 255
_EXIT_INTERRUPTED = 130


@dataclass(slots=True)
class Request:
    """The requests that a person's channel has made."""

    command: str | None = None
    subsystem: str | None = None
    term: str = ""
    size: tuple[int, int, int, int] = (0, 0, 0, 0)
    modes: dict[int, int] = field(default_factory=dict)
    environment: dict[bytes, bytes] = field(default_factory=dict)
    wants_agent: bool = False
    """Whether the person's SSH agent is to be forwarded (`ssh -A`)."""
    x11: X11Request | None = None
    """What is to be known of the person's X11 display (`ssh -X`)."""

    @property
    def has_terminal(self) -> bool:
        return bool(self.term)

    @property
    def kind(self) -> str:
        """The right that it needs."""
        if self.subsystem is not None:
            return "sftp"
        return "shell" if self.command is None else "exec"

    @property
    def text(self) -> str:
        """For a record."""
        return self.subsystem or self.command or ""


@dataclass(frozen=True, slots=True)
class Opened:
    """The connection to the device, the recording and other things that a session needs."""

    access: Access
    connection: Any
    recording: Recording | None
    environment: dict[bytes, bytes]
    timeout: float
    """Seconds for the device's sshd to begin the session."""
    x11: X11Request | None = None
    """What the device's sshd is asked to forward."""
    files: FileRecord | None = None
    """Of an sftp session, whose bytes are not for people."""
    records_input: bool = False
    """Whether the recording holds what the person types, too."""
    window: int = WINDOW
    """Of the channel on the device, in bytes."""


class SessionOwner(Protocol):
    """The connection that a session belongs to."""

    async def open_device(self, session: PersonSession, device: str) -> Opened:
        """Check what the person may do, connect to the device, and begin the recording. Raises
        AccessDenied, SshdRefused, RecordingStopped."""

    async def list_devices(self) -> list[str]:
        """Labels of devices to choose from."""

    async def why_lost(self, session: PersonSession) -> str:
        """Why the device's connection ended under a session, for the person."""

    def session_over(self, session: PersonSession) -> None:
        """Called once."""


class PersonSession(asyncssh.SSHServerSession[bytes]):
    """The person's channel."""

    def __init__(
        self,
        owner: SessionOwner,
        device: str,
        start: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """`start` runs a coroutine as a task of asyncio."""
        self.request = Request()
        self.opened: Opened | None = None
        self.sent = 0
        """Bytes to the device."""
        self.received = 0
        """Bytes from it."""
        self.end_reason = ""
        """Why the gateway ended it; empty where the device or the person did."""
        self._owner = owner
        self._device = device
        self._start = start
        self._channel: Any = None
        self._other: DeviceSession | None = None
        self._menu: Menu | None = None
        self._early: list[bytes] = []
        self._orders: list[Callable[[], None]] = []
        self._is_eof = False
        self._is_over = False
        self._is_full = False
        self._is_held = False

    # -- what the person asks for --------------------------------------------------------------

    def connection_made(self, chan: Any) -> None:
        self._channel = chan

    def pty_requested(
        self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Any
    ) -> bool:
        if "\0" in term_type:
            return False  # see `_begin`
        self.request.term = term_type[:64] or "dumb"
        self.request.size = term_size
        self.request.modes = dict(term_modes)
        return True

    def agent_requested(self) -> bool:
        """The person's ssh offers its agent. Its use is decided with the session."""
        self.request.wants_agent = True
        return True

    def x11_requested(self, x11: X11Request) -> bool:
        """The person's ssh offers its display. Its use is decided with the session."""
        self.request.x11 = x11
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self.request.command = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        self.request.subsystem = subsystem
        return subsystem == "sftp"

    def session_started(self) -> None:
        self.request.environment = dict(self._channel.get_environment_bytes())
        self._start(self._begin() if self._device else self._offer())

    async def _offer(self) -> None:
        if not self.request.has_terminal:
            self.tell("no device is named: write ssh ACCOUNT@DEVICE@GATEWAY")
            self._exit(_EXIT_USAGE)
            return
        labels = await self._owner.list_devices()
        if self._is_over:
            return
        self._menu = Menu(labels)
        self._channel.write(self._menu.screen())

    async def _begin(self) -> None:
        if "\0" in self.request.text:
            # OpenSSH's sshd would end the connection, with all sessions of this person on it.
            self.tell("a command cannot have a NUL byte in it: sshd takes none")
            self._exit(_EXIT_USAGE)
            return
        try:
            opened = await self._owner.open_device(self, self._device)
        except (AccessDenied, SshdRefused, RecordingStopped) as exc:
            self.tell(str(exc))
            self._exit(_EXIT_FAILED)
            return
        except Exception as exc:  # noqa: BLE001  else the person would wait for ever
            self._fail(exc)
            return
        self.opened = opened
        if self._is_over:
            self._owner.session_over(self)
            return
        if self.end_reason:
            self._finish()  # it was cut meanwhile: the device must not begin anything
            return
        if opened.records_input:
            self.tell("what you type is recorded here, too")
        # Not by a cancel: asyncssh would leave a channel open whose opening was cancelled.
        late = f"the device's sshd did not begin the session within {opened.timeout:g} s"
        timer = asyncio.get_running_loop().call_later(opened.timeout, self.cut, late)
        try:
            await self._create(opened)
        except (OSError, asyncssh.Error) as exc:
            self.tell(f"the device's sshd gave no session: {exc}")
            self._exit(_EXIT_FAILED)
        except Exception as exc:  # noqa: BLE001  as above
            self._fail(exc)
        else:
            self._go()
        finally:
            timer.cancel()

    async def _create(self, opened: Opened) -> None:
        request = self.request
        await opened.connection.create_session(
            lambda: DeviceSession(self),
            request.command,
            subsystem=request.subsystem,
            env=request.environment | opened.environment,
            request_pty="force" if request.has_terminal else False,
            term_type=request.term or None,
            term_size=request.size,
            term_modes=request.modes,
            encoding=None,
            window=opened.window,
            x11_forwarding="ignore_failure" if opened.x11 is not None else False,
            x11_display=opened.x11,
            x11_single_connection=opened.x11 is not None and opened.x11.is_single,
        )

    def _fail(self, exc: Exception) -> None:
        if not self._is_over:
            _log.error("unhandled error in session", device=self._device, exc_info=exc)
            self.tell("the gateway failed on this session; its log says how")
            self._exit(_EXIT_FAILED)

    def _go(self) -> None:
        """Send the device what the person has sent before it was connected."""
        assert self._other is not None
        if self._is_over or self.end_reason:
            self._other.channel.close()
            return
        for order in self._orders:
            order()
        early, self._early = self._early, []
        for data in early:
            self._to_device(data)
        if self._is_eof:
            self._other.channel.write_eof()
        self._read_person_again()

    def _to_device(self, data: bytes) -> None:
        opened = self.opened
        assert opened is not None
        assert self._other is not None
        self.sent += len(data)
        try:
            may_go_on = self._recorded_input(opened, data)
        except TooManyRequests as exc:
            self.cut(f"this session cannot be recorded: {exc}")
            return
        if not may_go_on:
            self._channel.pause_reading()
        self._other.channel.write(data)

    def _recorded_input(self, opened: Opened, data: bytes) -> bool:
        if opened.files is not None:
            return opened.files.from_person(data)
        if opened.records_input and opened.recording is not None:
            return opened.recording.input(data)
        return True

    def _read_person_again(self) -> None:
        """Read from the person again, if the device and the recording have room."""
        opened = self.opened
        reads_along = opened is not None and (opened.records_input or opened.files is not None)
        recording = opened.recording if opened is not None and reads_along else None
        is_behind = recording is not None and recording.is_full
        if not self._is_over and not self._is_held and not is_behind:
            self._channel.resume_reading()

    # -- what the person does ------------------------------------------------------------------

    def data_received(self, data: bytes, _datatype: object) -> None:
        if self._menu is not None:
            self._choose(data)
        elif self._other is not None and not self._early:
            if not self._other.channel.is_closing():
                self._to_device(data)
        else:
            self._early.append(data)
            self._channel.pause_reading()  # not earlier: asyncssh begins to read later

    def _choose(self, data: bytes) -> None:
        assert self._menu is not None
        answer = self._menu.typed(data)
        if answer.echo:
            self._channel.write(answer.echo)
        if answer.leaves:
            self._exit(_EXIT_INTERRUPTED)
        elif answer.device:
            self._menu = None
            self._device = answer.device
            if answer.rest:
                self._early.append(answer.rest)
                self._channel.pause_reading()
            self._start(self._begin())

    def eof_received(self) -> bool:
        self._is_eof = True
        if self._other is not None:
            self._other.channel.write_eof()
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        self.request.size = (width, height, pixwidth, pixheight)
        if self.opened is not None and self.opened.recording is not None:
            self.opened.recording.resized(width, height)
        self._order(
            lambda: self._device_channel.change_terminal_size(width, height, pixwidth, pixheight)
        )

    def signal_received(self, signal: str) -> None:
        if "\0" in signal:
            return  # see `_begin`
        self._order(lambda: self._device_channel.send_signal(signal))

    def break_received(self, msec: int) -> bool:
        self._order(lambda: self._device_channel.send_break(msec))
        return True

    def pause_writing(self) -> None:
        self._is_full = True
        if self._other is not None:
            self._other.channel.pause_reading()

    def resume_writing(self) -> None:
        self._is_full = False
        if self._other is not None:
            self._other.room()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._is_over:
            return
        if self._other is not None:
            self._other.channel.close()
        self._finish()

    @property
    def _device_channel(self) -> Any:
        assert self._other is not None
        return self._other.channel

    def _order(self, order: Callable[[], None]) -> None:
        if self._other is not None:
            order()
        elif len(self._orders) < _MOST_EARLY:
            self._orders.append(order)

    # -- what others do to it ------------------------------------------------------------------

    @property
    def _may_write(self) -> bool:
        """Whether anything can still be written to the person."""
        if self._is_over or self._channel is None:
            return False
        return not self._channel.is_closing()

    def tell(self, sentence: str) -> None:
        """Write a line of the gateway's to the person: on the screen, or to standard error. It
        may have words of a device in it, which must not look like more lines of the gateway's."""
        if self._may_write:
            end = "\r\n" if self.request.has_terminal else "\n"
            line = f"tunnelmux: {said(sentence)}{end}".encode()
            if self.request.has_terminal:
                self._channel.write(b"\r\n" + line)
            else:
                self._channel.write_stderr(line)

    def cut(self, reason: str) -> None:
        """End it now, and say why. It is over then, also for a person whose ssh reads nothing, or
        never answers the end."""
        if self._is_over:
            return
        self.end_reason = self.end_reason or reason
        discard_unsent(self._channel)
        self.tell(reason)
        self._channel.exit_with_signal("HUP", False, said(reason))
        if self._other is not None:
            self._other.channel.abort()
        if self.opened is not None:
            self._finish()

    def _finish(self) -> None:
        self._is_over = True
        self._owner.session_over(self)

    def attach(self, other: DeviceSession) -> None:
        """Take the device's session, whose channel is open now."""
        self._other = other
        if self._is_over:
            other.channel.abort()  # nothing more is asked for: a command never begins
        elif self._is_full:
            other.channel.pause_reading()

    def room(self) -> None:
        """The recording has caught up."""
        if self._other is not None:
            self._other.room()
            self._read_person_again()

    def from_device(self, data: bytes, datatype: Any) -> bool:
        """Record the device's output and pass it on. False: wait for `room` with more."""
        self.received += len(data)
        try:
            may_go_on = self._recorded_output(data, datatype)
        except TooManyRequests as exc:
            self.cut(f"this session cannot be recorded: {exc}")
            return True
        if self._may_write:
            self._channel.write(data, datatype)
        return may_go_on

    def _recorded_output(self, data: bytes, datatype: Any) -> bool:
        opened = self.opened
        if opened is None or opened.recording is None:
            return True
        if opened.files is None:
            return opened.recording.output(data)
        # What sftp-server says besides the protocol is for people.
        return opened.files.from_device(data) if datatype is None else True

    def device_eof(self) -> None:
        """The device has sent its last output."""
        self._when_recorded(self._pass_on_eof)

    def _pass_on_eof(self) -> None:
        if not self._is_over:
            self._channel.write_eof()

    def _when_recorded(self, done: Callable[[], object]) -> None:
        """Call `done` once everything is recorded. After the end of the channel, the person could
        not be told that the recording failed."""
        recording = self.opened.recording if self.opened is not None else None
        if recording is None:
            done()
        else:
            recording.when_written(done)

    @property
    def is_full(self) -> bool:
        """Whether the person does not read."""
        return self._is_full

    def hold(self, held: bool) -> None:
        """Stop reading from the person while the device takes nothing, or read again."""
        self._is_held = held
        if self._is_over:
            return
        if held:
            self._channel.pause_reading()
        else:
            self._read_person_again()

    def device_over(self, status: int | None, signal: tuple[str, bool, str, str] | None) -> None:
        """The device's session is over, with its exit status, a signal, or neither."""
        self._when_recorded(lambda: self._pass_on_end(status, signal))

    def _pass_on_end(self, status: int | None, signal: tuple[str, bool, str, str] | None) -> None:
        if self._is_over:
            return
        if signal is not None:
            name, dumped_core, message, language = signal
            texts = said(message), said(language)
            self._channel.exit_with_signal(said(name), dumped_core, *texts)
        elif status is not None:
            self._channel.exit(status)
        else:
            self._start(self._tell_loss())

    async def _tell_loss(self) -> None:
        reason = await self._owner.why_lost(self)
        if not self._is_over:
            self.cut(reason)

    def _exit(self, status: int) -> None:
        if not self._is_over:
            self._channel.exit(status)


class DeviceSession(asyncssh.SSHClientSession[bytes]):
    """The device's channel of one person's session."""

    def __init__(self, person: PersonSession) -> None:
        self.channel: Any = None
        self._person = person
        self._status: int | None = None
        self._signal: tuple[str, bool, str, str] | None = None

    def connection_made(self, chan: Any) -> None:
        self.channel = chan
        self._person.attach(self)

    def x11_failed(self) -> None:
        """The device's sshd forwards no X11."""
        self._person.tell("the device's sshd forwards no X11: has it X11Forwarding and xauth?")

    def data_received(self, data: bytes, datatype: Any) -> None:
        if not self._person.from_device(data, datatype):
            self.channel.pause_reading()

    def room(self) -> None:
        """Read from the device again, if the person and the recording have room."""
        recording = self._person.opened.recording if self._person.opened is not None else None
        if not self._person.is_full and not (recording is not None and recording.is_full):
            self.channel.resume_reading()

    def eof_received(self) -> bool:
        self._person.device_eof()
        return True

    def exit_status_received(self, status: int) -> None:
        self._status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._signal = (signal, core_dumped, msg, lang)

    def pause_writing(self) -> None:
        self._person.hold(True)

    def resume_writing(self) -> None:
        self._person.hold(False)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._person.device_over(self._status, self._signal)  # comes after the last data
