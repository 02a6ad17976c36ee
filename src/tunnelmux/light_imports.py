"""Import libraries without the modules they pull in that an agent does not need.

Libraries import modules for features that are not used here, and modules that a device may never
need. During one import these are hidden, or replaced by a `StandIn`, which loads the real module
when one of its attributes is first used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

__all__ = ["StandIn", "hidden", "light_imports"]


class StandIn(ModuleType):
    """Takes the place of the module `name`. It has the attributes it is given; any other attribute
    is taken from the real module, which is loaded then.
    """

    def __init__(self, name: str, **given: object) -> None:
        super().__init__(name)
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # read by code that walks sys.modules
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        real = importlib.import_module(self.__name__)
        value: object = getattr(real, name)
        for other, member in vars(real).items():
            self.__dict__.setdefault(other, member)  # found here from now on
        return value


@contextmanager
def hidden(stand_ins: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Within the block an import of one of these names finds the given object, unless the module is
    loaded already. With None the import fails, and the importer must handle that.
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
    """Wrap the imports of an agent, Trio and the WebSocket stack among them.

    `ssl` stays a stand-in until it is used: a device whose proxy is reached over ws:// and whose
    targets speak no TLS never loads OpenSSL, which is an eighth of its memory. So do `hashlib` and
    `hmac`: modules that import them here get Python's own digests, without OpenSSL; later importers
    get the full modules.
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
        # Trio names threads with ctypes, for debuggers, and starts ldconfig to find the library.
        "ctypes": StandIn("ctypes", util=library, CDLL=_load_nothing),
        "ctypes.util": library,
        # msgspec lists these classes in a table of types, and no setting has one of them.
        "decimal": StandIn("decimal", Decimal=_Decimal),
        "uuid": StandIn("uuid", UUID=_UUID, SafeUUID=_SafeUUID),
        # Trio encodes host names outside ASCII with it; its tables are large.
        "idna": StandIn("idna"),
        # click looks for translations and ships none.
        "gettext": StandIn("gettext", gettext=_as_it_is, ngettext=_one_or_more),
        # trio-websocket checks the version of Trio.
        "importlib.metadata": StandIn("importlib.metadata", version=_version),
        # structlog raises pickle's error when a logger is pickled.
        "pickle": StandIn("pickle", PicklingError=_PicklingError),
        # msgspec falls back to the standard typing.
        "typing_extensions": None,
        # shutil needs these to unpack archives.
        "bz2": None,
        "lzma": None,
        # hashlib and hmac fall back to Python's own digests, without OpenSSL.
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
    raise OSError(f"{name} is hidden from this import")


def _version(distribution: str) -> str:
    """A distribution's version: its module's `__version__` where that is loaded."""
    said = getattr(sys.modules.get(distribution), "__version__", None)
    if isinstance(said, str):
        return said
    sys.modules.pop("importlib.metadata", None)  # importlib.metadata reads it from the files
    version: str = importlib.import_module("importlib.metadata").version(distribution)
    return version
