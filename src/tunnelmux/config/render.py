"""A configuration as TOML again, with every secret hidden: what `check` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunnelmux.config.schema import Setting, Table, table_of
from tunnelmux.config.secret import Secret

__all__ = ["render"]


_LIMITS = "limits"


def render(config: object, *, all_limits: bool = True) -> str:
    """The whole configuration, defaults included, as TOML text. Secrets are `"***"`.

    Keys that are not set are left out; without `all_limits`, so are keys of `[limits]` that have
    their default.
    """
    lines = _table_lines(table_of(type(config)), config, "", all_limits=all_limits)
    return "\n".join(lines).strip() + "\n"


def _owners(table: Table, value: Any) -> dict[str, Any]:
    """Yield each key of the table with the object that has it."""
    owners = dict.fromkeys(table.keys, value)
    for field, part in table.flat.items():
        owners |= {name: getattr(value, field) for name in part.keys}
    return owners


def _changed(table: Table, value: Any) -> dict[str, Any]:
    """The same for the keys that differ from their default; every key of the table must
    have one."""
    defaults = _owners(table, table.cls())
    return {
        name: owner
        for name, owner in _owners(table, value).items()
        if getattr(owner, name) != getattr(defaults[name], name)
    }


def _table_lines(table: Table, value: Any, path: str, *, all_limits: bool) -> Iterator[str]:
    is_short = path == _LIMITS and not all_limits
    owners = _changed(table, value) if is_short else _owners(table, value)
    tables: list[tuple[str, Table]] = []
    for name, owner in owners.items():
        entry = table.find(name)
        if isinstance(entry, Table):
            tables.append((name, entry))
        elif entry is not None and getattr(owner, name) is not None:
            yield f"{name} = {_literal(entry, getattr(owner, name))}"
    for name, inner in tables:
        inner_path = f"{path}.{name}" if path else name
        content = getattr(value, name)
        for item in content if inner.is_list else [content]:
            if item is None:
                continue
            lines = list(_table_lines(inner, item, inner_path, all_limits=all_limits))
            if inner.is_list:
                yield from ("", f"[[{inner_path}]]")
            elif lines and lines[0]:
                yield from ("", f"[{inner_path}]")
            yield from lines


def _literal(setting: Setting, value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case Secret() | Path() | str():
            # JSON's escapes are TOML's, DEL apart, which a TOML string may not hold raw.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return "[" + ", ".join(_literal(setting, item) for item in value) + "]"
    raise TypeError(f"no TOML for {type(value).__name__}")
