"""The list of devices for a person who has not named one."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Menu", "Typed"]

_SHOWN = 50
_LONGEST = 64
_ENTER = b"\r\n"
_BACKSPACE = b"\x7f\x08"
_LEAVE = b"\x03\x04"


@dataclass(frozen=True, slots=True)
class Typed:
    """The effect of some keys that were typed."""

    echo: bytes = b""
    device: str = ""
    leaves: bool = False
    rest: bytes = b""
    """What was typed after the choice, for the device."""


class Menu:
    """A list of devices to choose from by number; a part of a name narrows it."""

    def __init__(self, labels: list[str]) -> None:
        self._labels = labels
        self._matching = labels
        self._line = b""

    def screen(self) -> bytes:
        """The list and a prompt, as bytes for a terminal."""
        if not self._labels:
            text = "None of your devices is connected now. Ctrl-D leaves.\r\n> "
            return text.encode()
        shown = self._matching[:_SHOWN]
        lines = [f"{number:4}  {label}" for number, label in enumerate(shown, 1)]
        more = len(self._matching) - len(shown)
        if more > 0:
            lines.append(f"      and {more} more: type a part of a name")
        lines.append("A number, or a part of a name (Ctrl-D leaves): ")
        return "\r\n".join(["", "Your devices:", *lines]).encode()

    def typed(self, data: bytes) -> Typed:
        """Take some keys; return their effect."""
        echo = b""
        for place, number in enumerate(data, 1):
            key = bytes([number])
            if key in _LEAVE:
                return Typed(echo + b"\r\n", leaves=True)
            if key in _ENTER:
                answer = self._entered()
                echo += answer.echo
                if answer.device:
                    return Typed(echo, answer.device, rest=data[place:])
                continue
            if key in _BACKSPACE:
                if self._line:
                    self._line = self._line[:-1]
                    echo += b"\b \b"
            elif 0x20 < number < 0x7F and len(self._line) < _LONGEST:
                self._line += key
                echo += key
        return Typed(echo)

    def _entered(self) -> Typed:
        word, self._line = self._line.decode("ascii"), b""
        if not word:
            return Typed(self.screen())
        if word.isdigit() and 1 <= int(word) <= min(len(self._matching), _SHOWN):
            return Typed(b"\r\n", self._matching[int(word) - 1])
        if word in self._labels:
            return Typed(b"\r\n", word)
        matching = [label for label in self._labels if word.lower() in label]
        if len(matching) == 1:
            return Typed(f"\r\n{matching[0]}\r\n".encode(), matching[0])
        self._matching = matching or self._labels
        note = b"" if matching else b"\r\nNo device has that in its name."
        return Typed(note + self.screen())
