"""The list of all settings, derived from the configuration's types.

Everything that needs a list of keys (unknown keys, environment names, the printed configuration,
the documentation) uses this one, so that a field added to a struct is known everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec.inspect

from tunnelmux.config.secret import Secret

__all__ = ["Kind", "Setting", "Table", "settings_of", "table_of"]

Kind = Literal["text", "integer", "number", "boolean", "choice", "path", "secret", "texts"]
"""The type of a setting's value; `texts` is a list of text."""

_KINDS: dict[type[msgspec.inspect.Type], Kind] = {
    msgspec.inspect.StrType: "text",
    msgspec.inspect.IntType: "integer",
    msgspec.inspect.FloatType: "number",
    msgspec.inspect.BoolType: "boolean",
    msgspec.inspect.LiteralType: "choice",
}
_CUSTOM_KINDS: dict[type, Kind] = {Path: "path", Secret: "secret"}


class Setting(NamedTuple):
    """One key with a single value. `choices` are the allowed texts, if they are limited; for an
    integer they are texts that are allowed beside numbers.

    `default` is None when there is none, and when the key may be absent.
    """

    kind: Kind
    choices: tuple[str, ...] = ()
    default: object = None


class Table(NamedTuple):
    """One TOML table, and the class that its content becomes.

    `flat` names fields without a table in the file: their keys stand in this table. `required` are
    the keys that must be there; `is_list` says that the table is written `[[…]]`.
    """

    cls: type
    keys: dict[str, Setting | Table]
    flat: dict[str, Table]
    required: tuple[str, ...]
    is_list: bool = False

    def find(self, key: str) -> Setting | Table | None:
        """The setting or table that `key` names here, or None."""
        if key in self.keys:
            return self.keys[key]
        return next((part.keys[key] for part in self.flat.values() if key in part.keys), None)

    def old_names(self) -> dict[str, str]:
        """Old names of keys in this table, with their new names."""
        return {
            old: new
            for cls in (self.cls, *(part.cls for part in self.flat.values()))
            for new, old in getattr(cls, "renamed_from", {}).items()
        }

    def names(self) -> list[str]:
        """Every key of this table, in the order of the documentation."""
        return [*self.keys, *(key for part in self.flat.values() for key in part.keys)]


def table_of(cls: type) -> Table:
    """The table that a configuration class is decoded from."""
    described = msgspec.inspect.type_info(cls)
    assert isinstance(described, msgspec.inspect.StructType)
    return _table(described)


def settings_of(table: Table, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Every setting under `table` as `("ingress.tcp[].listen", …)`; lists of tables have `[]`."""
    for name in table.names():
        entry = table.find(name)
        if isinstance(entry, Table):
            yield from settings_of(entry, f"{prefix}{name}{'[]' if entry.is_list else ''}.")
        elif entry is not None:
            yield prefix + name, entry


def _table(
    described: msgspec.inspect.StructType | msgspec.inspect.DataclassType, is_list: bool = False
) -> Table:
    keys: dict[str, Setting | Table] = {}
    flat: dict[str, Table] = {}
    left_out: frozenset[str] = getattr(described.cls, "left_out", frozenset())
    for field in described.fields:
        kind = _without_none(field.type)
        if isinstance(kind, msgspec.inspect.UnionType):
            keys[field.name] = _number_or_word(kind, field)
            continue
        if isinstance(kind, msgspec.inspect.DataclassType):
            part = _table(kind)
            for name in left_out & part.keys.keys():
                del part.keys[name]
            flat[field.name] = part
        else:
            keys[field.name] = _entry(kind, field)
    required = tuple(field.name for field in described.fields if field.required)
    return Table(described.cls, keys, flat, required, is_list)


def _entry(kind: msgspec.inspect.Type, field: msgspec.inspect.Field) -> Setting | Table:
    if isinstance(kind, msgspec.inspect.StructType):
        return _table(kind)
    if isinstance(kind, msgspec.inspect.ListType):
        if isinstance(kind.item_type, msgspec.inspect.StructType):
            return _table(kind.item_type, is_list=True)
        assert isinstance(kind.item_type, msgspec.inspect.StrType)
        made = field.default_factory
        return Setting("texts", default=[] if made is msgspec.NODEFAULT else made())
    default = None if field.default is msgspec.NODEFAULT else field.default
    if isinstance(kind, msgspec.inspect.CustomType):
        return Setting(_CUSTOM_KINDS[kind.cls], default=default)
    if isinstance(kind, msgspec.inspect.LiteralType):
        return Setting("choice", tuple(str(value) for value in kind.values), default)
    return Setting(_KINDS[type(kind)], default=default)


def _without_none(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    if not isinstance(kind, msgspec.inspect.UnionType):
        return kind
    rest = [t for t in kind.types if not isinstance(t, msgspec.inspect.NoneType)]
    return rest[0] if len(rest) == 1 else kind


def _number_or_word(kind: msgspec.inspect.UnionType, field: msgspec.inspect.Field) -> Setting:
    """A whole number, or one of some words for a number."""
    number, words = sorted(kind.types, key=lambda t: isinstance(t, msgspec.inspect.LiteralType))
    assert isinstance(number, msgspec.inspect.IntType)
    assert isinstance(words, msgspec.inspect.LiteralType)
    return Setting("integer", tuple(str(word) for word in words.values), field.default)
