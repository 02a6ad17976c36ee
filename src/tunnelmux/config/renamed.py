"""Renamed settings: the old name works for one more release, with a warning.

To rename a field, add it to its class like this, and remove the entry with the release after the
next:

    renamed_from: ClassVar[dict[str, str]] = {"new_name": "old_name"}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tunnelmux.config.rules import InvalidSetting
from tunnelmux.config.schema import Table

__all__ = ["old_paths", "with_new_names"]


def with_new_names(
    table: Table, content: Mapping[str, Any], tell: Callable[[str, str], None], path: str = ""
) -> dict[str, Any]:
    """The content of a file with old names replaced; `tell(old, new)` is called for each. Raises
    InvalidSetting where a setting is there under both names. A value that should be a table and is
    not stays unchanged: decoding refuses it with a better message.
    """
    renamed = dict(content)
    for old, new in table.old_names().items():
        if old not in content or table.find(old) is not None:
            continue
        if new in content:
            raise InvalidSetting(
                path + old, f"is the old name of {path}{new}: leave out one of them"
            )
        tell(path + old, path + new)
        renamed[new] = renamed.pop(old)
    for name, entry in table.keys.items():
        inner = renamed.get(name)
        if not isinstance(entry, Table):
            continue
        if isinstance(inner, Mapping):
            renamed[name] = with_new_names(entry, inner, tell, f"{path}{name}.")
        elif isinstance(inner, list):
            renamed[name] = [
                with_new_names(entry, item, tell, f"{path}{name}[{index}].")
                if isinstance(item, Mapping)
                else item
                for index, item in enumerate(inner)
            ]
    return renamed


def old_paths(table: Table, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The path of every old name outside a list of tables, and the path it has today."""
    for old, new in table.old_names().items():
        yield prefix + old, prefix + new
    for name, entry in table.keys.items():
        if isinstance(entry, Table) and not entry.is_list:
            yield from old_paths(entry, f"{prefix}{name}.")
