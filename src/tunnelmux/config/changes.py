"""What differs between two configurations, in words for the log: keys and names, never values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunnelmux.config.schema import Table, table_of

__all__ = ["changes_between"]

_SHOWN = 20
# Differences that are listed. A fleet's file may differ in a thousand places.

_NAMES = ("name", "proxy_id", "listen")
# The key by which people tell the tables of a list apart, where it has one.


def changes_between(before: object, after: object) -> str:
    """`limits.max_streams, +devices.dev3, -devices.dev1, devices.dev2.enabled`, or `nothing`.

    Both must be of one class. A change of a named file's content is not seen.
    """
    found = list(_differences(table_of(type(after)), before, after, ""))
    if not found:
        return "nothing"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _differences(table: Table, before: Any, after: Any, path: str) -> Iterator[str]:
    owners: dict[str, tuple[Any, Any]] = dict.fromkeys(table.keys, (before, after))
    for field, part in table.flat.items():
        pair = (getattr(before, field), getattr(after, field))
        owners |= dict.fromkeys(part.keys, pair)
    for name, (old_owner, new_owner) in owners.items():
        old, new = getattr(old_owner, name), getattr(new_owner, name)
        if old == new:
            continue
        entry, inner = table.find(name), f"{path}{name}"
        if not isinstance(entry, Table):
            yield inner
        elif entry.is_list:
            yield from _differences_of_lists(entry, old, new, inner)
        elif old is None or new is None:
            yield f"{'+' if old is None else '-'}{inner}"
        else:
            yield from _differences(entry, old, new, f"{inner}.")


def _differences_of_lists(table: Table, old: list[Any], new: list[Any], path: str) -> Iterator[str]:
    key = next((name for name in _NAMES if name in table.keys), None)
    before = {_name(item, key, index): item for index, item in enumerate(old)}
    after = {_name(item, key, index): item for index, item in enumerate(new)}
    if list(before) != list(after) and before.keys() == after.keys():
        yield f"order of {path}"
    for name, item in after.items():
        if name not in before:
            yield f"+{path}.{name}"
        elif item != before[name]:
            yield from _differences(table, before[name], item, f"{path}.{name}.")
    for name in before:
        if name not in after:
            yield f"-{path}.{name}"


def _name(item: Any, key: str | None, index: int) -> str:
    return str(getattr(item, key)) if key is not None else str(index)
