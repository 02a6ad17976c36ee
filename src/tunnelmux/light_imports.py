"""Imports without what they drag in and an agent does not need.

Libraries import modules for what is not used here, and modules that a device may never need. For
the length of one import these are hidden, or a `StandIn` is there, which loads the real module as
soon as anything in it is used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

__all__ = ["StandIn", "hidden", "light_imports"]


class StandIn(ModuleType):
    """Stands for the module `name`: has the names it is given, and of the real one all others."""

    def __init__(self, name: str, **given: object) -> None:
        super().__init__(name)
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # who looks through all modules uses none
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        real = importlib.import_module(self.__name__)
        value: object = getattr(real, name)
        for other, member in vars(real).items():
            self.__dict__.setdefault(other, member)  # from now on as quick as the real one
        return value


@contextmanager
def hidden(stand_ins: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """For the length of the block these are what an import finds, unless it is there already.

    With None an import fails, which the importer must be prepared for.
    """
    new = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(new)  # type: ignore[arg-type]  # None is meant
    try:
        yield
    finally:
        for name, module in new.items():
            if sys.modules.get(name, ...) is module:
                del sys.modules[name]


@contextmanager
def light_imports() -> Iterator[None]:
    """For an agent's own imports, Trio and the WebSocket stack among them.

    `ssl` stays a stand-in until it is used: a device whose proxy is reached over ws:// and whose
    targets speak no TLS never loads OpenSSL, which is an eighth of its memory. So do `hashlib` and
    `hmac`, which are Python's own for those that import them here and the whole ones for others.
    """
    sys.modules.setdefault("ssl", StandIn("ssl"))
    whole = {"hashlib", "hmac"} & sys.modules.keys()
    with hidden(_stand_ins()):
        yield
    for name in {"hashlib", "hmac"} - whole:
        sys.modules.pop(name, None)


def _stand_ins() -> dict[str, ModuleType | None]:
    library = StandIn("ctypes.util", find_library=_find_nothing)
    return {
        # Trio names threads with it for debuggers, and starts ldconfig to find where.
        "ctypes": StandIn("ctypes", util=library, CDLL=_load_nothing),
        "ctypes.util": library,
        # msgspec has these classes in a table of types that it can make, and no setting is of them.
        "decimal": StandIn("decimal", Decimal=_Decimal),
        "uuid": StandIn("uuid", UUID=_UUID, SafeUUID=_SafeUUID),
        # Trio writes host names in other letters with it; its tables are large.
        "idna": StandIn("idna"),
        # click would speak other languages, of which it has none.
        "gettext": StandIn("gettext", gettext=_as_it_is, ngettext=_one_or_more),
        # trio-websocket asks how old Trio is.
        "importlib.metadata": StandIn("importlib.metadata", version=_version),
        # structlog raises one of its errors, when a logger is pickled.
        "pickle": StandIn("pickle", PicklingError=_PicklingError),
        # msgspec takes what Python's own typing has.
        "typing_extensions": None,
        # shutil could unpack archives.
        "bz2": None,
        "lzma": None,
        # hashlib and hmac have digests of their own, without OpenSSL.
        "_hashlib": None,
    }


class _PicklingError(Exception):
    pass


class _Decimal:
    pass


class _UUID:
    pass


class _SafeUUID:
    unknown = None


def _as_it_is(message: str) -> str:
    return message


def _one_or_more(one: str, more: str, number: int) -> str:
    return one if number == 1 else more


def _find_nothing(_name: str) -> None:
    return None


def _load_nothing(name: str) -> object:
    raise OSError(f"{name} is not looked for")


def _version(distribution: str) -> str:
    """A distribution's version, as it says itself where that is loaded."""
    said = getattr(sys.modules.get(distribution), "__version__", None)
    if isinstance(said, str):
        return said
    sys.modules.pop("importlib.metadata", None)  # the real one then
    version: str = importlib.import_module("importlib.metadata").version(distribution)
    return version
