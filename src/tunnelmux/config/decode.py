"""Turn values from TOML, the environment or flags into configuration objects.

msgspec declares the types. This module decodes, so that every error names the key, the value and
the expected value, in TOML's terms and not Python's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunnelmux.config.rules import InvalidSetting, MissingSetting
from tunnelmux.config.schema import Setting, Table, settings_of
from tunnelmux.config.secret import Secret
from tunnelmux.config.whose_file import daemon_of

__all__ = ["Decoder", "expand_home", "nearest", "parse_text"]

_WANTED = {
    "text": "text in quotes",
    "secret": "text in quotes",
    "path": "a file name in quotes",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "texts": 'a list of texts, like ["a", "b"]',
}


class Decoder:
    """Builds the object of `root` from decoded TOML; relative file names start from `base`."""

    def __init__(self, root: Table, base: Path) -> None:
        self._root = root
        self._base = base

    def decode(self, content: Mapping[str, object]) -> Any:
        """An instance of `root.cls`. Raises InvalidSetting whose key is the setting's full path.

        Keys that are not known are told first: a key that is missing may be one of them.
        """
        self._refuse_unknown_keys(self._root, content, "")
        return self._table(self._root, content, "")

    def _refuse_unknown_keys(self, table: Table, content: object, path: str) -> None:
        if not isinstance(content, Mapping):
            return  # decoding will say what it must be
        for key in content:
            if table.find(key) is None:
                raise self._unknown_key(table, path, key, content)
        for key, value in content.items():
            entry = table.find(key)
            if not isinstance(entry, Table):
                continue
            if not entry.is_list:
                self._refuse_unknown_keys(entry, value, _join(path, key))
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    self._refuse_unknown_keys(entry, item, f"{_join(path, key)}[{index}]")

    def _table(self, table: Table, content: object, path: str) -> Any:
        if not isinstance(content, Mapping):
            raise InvalidSetting(
                path, f"must be a table, not {_shown(content)}: write it as {_header(path)}"
            )
        values: dict[str, Any] = {}
        for name, entry in table.keys.items():
            if name in content:
                values[name] = self._value(entry, content[name], _join(path, name))
            elif name in table.required:
                if isinstance(entry, Table):  # the message should name a key and not a table
                    self._table(entry, {}, _join(path, name))
                raise MissingSetting(_join(path, name), f"is missing: add it under {_header(path)}")
        for name, part in table.flat.items():
            inner = {key: value for key, value in content.items() if key in part.keys}
            values[name] = self._table(part, inner, path)
        try:
            return table.cls(**values)
        except InvalidSetting as error:
            raise type(error)(_join(path, error.key), error.problem) from None

    def _value(self, entry: Setting | Table, value: object, path: str) -> Any:
        if isinstance(entry, Setting):
            return self._scalar(entry, value, path)
        if not entry.is_list:
            return self._table(entry, value, path)
        if not isinstance(value, list):
            raise InvalidSetting(path, f"must be a list of tables: write each as [[{path}]]")
        return [self._table(entry, item, f"{path}[{index}]") for index, item in enumerate(value)]

    def _scalar(self, setting: Setting, value: object, path: str) -> object:
        match setting.kind, value:
            case ("boolean", bool()) | ("text", str()):
                return value
            case (("integer" | "number"), bool()):
                pass  # in Python, not in TOML, a bool is an int
            case "integer", int():
                return value
            case "number", int() | float():
                return float(value)
            case "texts", list() if all(isinstance(item, str) for item in value):
                return value
            case "secret", str():
                return Secret(value)
            case "path", str() if value and "\0" not in value:
                return self._base / expand_home(path, value)
            case (("choice" | "integer"), str()) if value in setting.choices:
                return value
        wanted = _wanted(setting)
        # The value of a secret's key may be the secret, even if its type is wrong.
        shown = "" if setting.kind == "secret" else f", not {_shown(value)}"
        raise InvalidSetting(path, f"must be {wanted}{shown}")

    def _unknown_key(
        self, table: Table, path: str, key: str, content: Mapping[str, object]
    ) -> InvalidSetting:
        if not path and (daemon := daemon_of(content)) is not None:
            return InvalidSetting(key, f"is not a known key: this is a file for {daemon}")
        guess = nearest(key, table.names())
        if guess is not None:
            hint = f'did you mean "{guess}"?'
        else:
            elsewhere = [name for name, _ in settings_of(self._root)]
            same = [name for name in elsewhere if name.rpartition(".")[2] == key]
            same.sort(key=lambda name: not name.startswith(f"{path}."))  # those below come first
            hint = f"known here are {', '.join(table.names())}"
            if same:
                hint = f'did you mean "{same[0]}"?'
        return InvalidSetting(_join(path, key), f"is not a known key: {hint}")


def parse_text(setting: Setting, text: str) -> object:
    """A value from the environment or a flag, as the TOML type of the setting. Raises ValueError
    that names the expected value.
    """
    try:
        match setting.kind:
            case "integer":
                return text if text in setting.choices else int(text)
            case "number":
                return float(text)
            case "boolean":
                return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            case "texts":
                return [part.strip() for part in text.split(",") if part.strip()]
            case _:
                return text
    except (ValueError, KeyError):
        raise ValueError(f'must be {_wanted(setting)}, not "{text}"') from None


def _wanted(setting: Setting) -> str:
    choices = ", ".join(f'"{choice}"' for choice in setting.choices)
    if setting.kind == "choice":
        return f"one of {choices}"
    return f"{_WANTED[setting.kind]} or {choices}" if choices else _WANTED[setting.kind]


def expand_home(key: str, value: str) -> Path:
    """The file name with a leading `~` replaced. Raises InvalidSetting if there is no home."""
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise InvalidSetting(key, f'"{value}" is in no home directory: write it in full') from None


def nearest(name: str, known: list[str]) -> str | None:
    """The known name most like `name`, or None when none is."""
    import difflib  # imported here: only needed after a typing mistake

    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def _shown(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f'the text "{value}"' if value else "empty text"
        case list():
            return "a list"
        case Mapping():
            return "a table"
        case _:
            return f"{value}"


def _header(path: str) -> str:
    """The header of the table at `path` in the file."""
    header = re.sub(r"\[\d+\]", "", path)
    return f"[[{header}]]" if path.endswith("]") else f"[{header}]"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key
