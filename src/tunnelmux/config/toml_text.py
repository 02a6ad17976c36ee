"""Reading a TOML file, and what to do about one that is no TOML.

The standard library's parser says where it stopped. People mostly make a few mistakes: each of
these gets the correction of its line.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from tunnelmux.config.unreadable import fix_for_unreadable
from tunnelmux.errors import ConfigError

__all__ = ["read_toml"]

_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_PAIR = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*=\s*(.*)")
_COLON = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*:")
_HEADER = re.compile(r"\s*\[{1,2}\s*([A-Za-z0-9_.-]+)")
_TRUTH = re.compile(r"(?i:true|false|yes|no|on|off)(?![A-Za-z0-9_-])")
_WITH_UNIT = re.compile(r"[0-9][0-9_.]* *[A-Za-z%]+\s*(?:#|$)")
_TYPOGRAPHIC = "“”„‘’«»"  # noqa: RUF001  those that editors write
_GENERAL = "each line is KEY = VALUE, [TABLE], or a comment that begins with #"


def read_toml(file: Path) -> dict[str, Any]:
    """The content of the file. Raises ConfigError, which names the line and what to change, and
    shows no value: there may be a secret in it.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        fix = fix_for_unreadable(error, "check the name given with --config")
        raise ConfigError(f"{file} cannot be read ({error.strerror}): {fix}") from None
    try:
        # Editors of Windows begin a file with a byte order mark.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{file}: line {line} is not UTF-8 text: save the file as UTF-8"
        ) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {_explain(text, str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{file}: lists in lists go too deep: no setting needs that") from None
    except ValueError:  # Python reads no number of thousands of digits
        raise ConfigError(f"{file}: a number has too many digits: no setting needs that") from None


def _explain(text: str, message: str) -> str:
    place = _PLACE.search(message)
    # It quotes single characters and names of keys, never a value.
    what = message[: place.start()] if place else message
    lines = text.replace("\r\n", "\n").split("\n")
    number = int(place[1]) if place and place[1] else len(lines)
    line = lines[number - 1] if number <= len(lines) else ""
    return f"line {number} is not TOML ({what[:1].lower()}{what[1:]}): {_fix(line, what)}"


def _fix(line: str, what: str) -> str:
    """What to change in this line, of which the parser said `what`."""
    start = line.lstrip()
    pair = _PAIR.match(line)
    if what.startswith(("Cannot declare", "Cannot overwrite")):
        return _fix_repeated(line, pair)
    if pair is not None:
        return _fix_value(pair[1], pair[2], what)
    if start.startswith((";", "//", "--")):
        return "a comment begins with #"
    if start.startswith("["):
        return 'close the name of the table, as in [device]; a list of tables has two of each "["'
    colon = _COLON.match(line)
    if colon is not None:
        return f'write {colon[1]} = "…", with "=" and not ":"'
    return _GENERAL


def _fix_repeated(line: str, pair: re.Match[str] | None) -> str:
    if pair is not None:
        return f"{pair[1]} is there already: keep one of the two"
    header = _HEADER.match(line)
    name = header[1] if header is not None else "table"
    return (
        f"[{name}] is there already: put all of its keys under one; if it may be there several "
        f"times, write each as [[{name}]]"
    )


def _fix_value(key: str, value: str, what: str) -> str:
    """What to change in `value`, of which nothing may be shown."""
    if not value or value.startswith("#"):
        return f'{key} has no value: write {key} = "…", or take the line out'
    if value[0] in _TYPOGRAPHIC:
        return f'put straight quotes around the value: {key} = "…"'
    if value[0] in "\"'":
        return _fix_text(key, value, what)
    if value[0] in "[{":
        return f'write the list as {key} = ["a", "b"]: each text in quotes, with commas between'
    if _TRUTH.match(value):
        return f"write {key} = true or {key} = false, in small letters and without quotes"
    if _WITH_UNIT.match(value):
        return f'write the number of {key} without a unit; a text needs quotes: {key} = "…"'
    return f'put the value in quotes: {key} = "…"'


def _fix_text(key: str, value: str, what: str) -> str:
    if "\\" in value and any(word in what for word in ("escape", "Escape", "'\\\\'", "hex")):
        return f"a backslash in double quotes stands for more: write {key} = '…'"
    if what.startswith("Expected newline"):
        return f"end the line after the value of {key}: only a comment with # may follow it"
    return f"close the quotes at the end of the value of {key}, on the same line"
