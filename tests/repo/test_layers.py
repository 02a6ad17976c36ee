"""The order of the layers, for what import-linter cannot see: compiled modules and asyncio."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from support.tree import ROOT, SOURCE

COMPILED_LAYERS = [
    ["pump.http_relay"],
    ["pump.legs", "pump.followers"],
    ["pump.relay", "pump.joined"],
    ["pump.passing"],
    ["pump.tunnel", "pump.sockets"],
    ["pump.pump_socket"],
    ["pump.epoll"],
    ["yamux.engine", "pump.websocket"],
    ["yamux.streams", "yamux.liveness", "pump.lines", "pump.head", "pump.chunks"],
    [
        "_frame",
        "pump.cookies",
        "pump.counts",
        "pump.field_names",
        "pump.spans",
        "pump.tls_records",
        "pump.visits",
        "yamux.links",
        "yamux.ring",
    ],
]
"""The compiled modules, each line above the next: above errors and limits, below all else."""

ASYNCIO_FAMILY = {"asyncio", "trio_asyncio", "asyncssh"}

SQL_FAMILY = {"alembic", "psycopg", "sqlalchemy", "sqlite3"}

IMPURE = {"logging", "random", "secrets", "socket", "structlog", "time", "trio"}

CIMPORT = re.compile(r"^\s*(?:from\s+(\S+)\s+c?import\s+(.+)|c?import\s+(.+))$")


def layers() -> list[list[str]]:
    """All layers, top first: those import-linter holds, with the compiled ones in their place."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contract = settings["tool"]["importlinter"]["contracts"][0]
    plain = [[name.strip() for name in line.split("|")] for line in contract["layers"]]
    return [*plain[:-1], *COMPILED_LAYERS, plain[-1]]


LEVEL = {name: depth for depth, line in enumerate(layers()) for name in line}


def part_of(path: Path) -> str:
    """Which layer's part a source file belongs to: its folder, or its own name at the top.

    A compiled module is a part of its own, in whatever folder it stands.
    """
    inside = path.relative_to(SOURCE)
    if path.suffix in {".pyx", ".pxd"}:
        return ".".join(inside.with_suffix("").parts)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imports_of_text(text: str) -> Iterator[str]:
    """The full names that Cython source imports or cimports, one logical line at a time."""
    joined = re.sub(r"\(([^()]*)\)", lambda m: m[1].replace("\n", " "), text)
    for line in joined.splitlines():
        if not (match := CIMPORT.match(line.split("#")[0].rstrip())):
            continue
        package, names, modules = match.groups()
        for name in (names or modules).split(","):
            bare = name.split(" as ")[0].strip()
            if bare:
                yield f"{package}.{bare}" if package else bare


def imports_of_python(text: str) -> Iterator[str]:
    """The full names that Python source imports, wherever in the file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def imports_of(path: Path) -> list[str]:
    text = path.read_text("utf-8")
    return list(imports_of_python(text) if path.suffix == ".py" else imports_of_text(text))


def parts_imported(path: Path) -> set[str]:
    """The parts of tunnelmux that a file imports; "" for a name of the top package itself."""
    names = [name.split(".") for name in imports_of(path)]
    inner = {tuple(name[1:]) for name in names if name[0] == "tunnelmux"}
    return {part_named(name) for name in inner}


def part_named(name: tuple[str, ...]) -> str:
    """The part that a dotted name leads into: the compiled module before the folder."""
    dotted = (".".join(name[:length]) for length in (2, 1))
    return next((part for part in dotted if part in LEVEL), "")


COMPILED_SOURCES = sorted([*SOURCE.rglob("*.pyx"), *SOURCE.rglob("*.pxd")])
PYTHON_SOURCES = sorted(SOURCE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def not_below(path: Path, parts: set[str]) -> set[str]:
    """Those of *parts* that a file may not import; the package's own face stands above all."""
    own = LEVEL.get(part_of(path), -1)
    return {part for part in parts if LEVEL.get(part, -1) <= own}


def importers_of(roots: set[str], paths: list[Path]) -> dict[str, list[str]]:
    """The files that import any of the top-level packages *roots*, and which."""
    imported = {relative(path): {name.split(".")[0] for name in imports_of(path)} for path in paths}
    return {path: sorted(names & roots) for path, names in imported.items() if names & roots}


def test_every_compiled_module_has_a_place() -> None:
    placed = {name for line in COMPILED_LAYERS for name in line}
    assert {part_of(path) for path in COMPILED_SOURCES} == placed


def test_compiled_modules_import_only_from_below() -> None:
    wrong = {
        relative(path): sorted(upward)
        for path in COMPILED_SOURCES
        if (upward := not_below(path, parts_imported(path) - {part_of(path)}))
    }
    assert wrong == {}


def test_python_modules_import_compiled_ones_only_from_below() -> None:
    compiled = {name for line in COMPILED_LAYERS for name in line}
    wrong = {
        relative(path): sorted(upward)
        for path in PYTHON_SOURCES
        if (upward := not_below(path, parts_imported(path) & compiled))
    }
    assert wrong == {}


def test_compiled_modules_have_no_clock_no_dice_and_no_log() -> None:
    """The pump's own sockets and masks come by way of the C library and `os`."""
    assert importers_of(IMPURE, COMPILED_SOURCES) == {}


def test_asyncio_appears_only_under_ssh_and_in_the_gateway_that_it_hosts() -> None:
    elsewhere = [path for path in PYTHON_SOURCES if part_of(path) not in {"ssh", "gateway"}]
    assert importers_of(ASYNCIO_FAMILY, elsewhere) == {}
    gateway = [path for path in PYTHON_SOURCES if part_of(path) == "gateway"]
    assert importers_of({"trio_asyncio"}, gateway) == {}


def test_sql_appears_only_in_the_registry() -> None:
    inside = SOURCE / "registry" / "sql"
    elsewhere = [path for path in PYTHON_SOURCES if not path.is_relative_to(inside)]
    assert importers_of(SQL_FAMILY, elsewhere) == {}


def test_cython_imports_are_recognised() -> None:
    text = """
from libc.stdint cimport uint8_t, uint32_t  # widths
from tunnelmux._frame cimport (
    SendWindow,
    ReceiveWindow as Window,
)
cimport cython
import tunnelmux.errors as e
    from tunnelmux import limits
# from tunnelmux.mux import Session
"""
    assert list(imports_of_text(text)) == [
        "libc.stdint.uint8_t",
        "libc.stdint.uint32_t",
        "tunnelmux._frame.SendWindow",
        "tunnelmux._frame.ReceiveWindow",
        "cython",
        "tunnelmux.errors",
        "tunnelmux.limits",
    ]
