"""Sizes, names and words that a reader of this project may rely on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support.tree import ROOT, SOURCE, project_files

MOST_LINES_PER_FILE = 700
MOST_LINES_PER_FUNCTION = 60

LONG_FILES: dict[str, str] = {}
"""Files allowed to be longer, each with the reason why it is not split."""

NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}

FOREIGN = re.compile(
    r"/(?:home|root|work|Users)/[\w.]"
    r"|\b(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|crates\.io|proxy\.golang\.org)\b"
    r"|\b(?:deb\.debian\.org|ghcr\.io|docker\.io|quay\.io)\b"
)
"""Paths of one machine and hosts of registries: a clone must work elsewhere, through mirrors."""

RIDDLES = re.compile(r"\b(?:nobody|somebody|someone|whoever)\b", re.IGNORECASE)
"""Words that hide who is meant: a caller, a peer, an owner, a task, a person has a name."""

FILES = list(project_files())
SOURCES = [path for path in FILES if path.suffix in {".py", ".pyx", ".pxd", ".pyi"}]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    text = path.read_text("utf-8")
    cython = path.suffix in {".pyx", ".pxd"}
    return functions_of_cython(text) if cython else functions_of_python(text)


def functions_of_python(text: str) -> Iterator[tuple[str, int]]:
    """Each function's name and how many lines it has, its docstring not counted."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                assert docstring.end_lineno is not None
                lines -= docstring.end_lineno - docstring.lineno + 1
            yield node.name, lines


def functions_of_cython(text: str) -> Iterator[tuple[str, int]]:
    """The same, by indentation, for what Python's own parser does not read."""
    lines = text.splitlines()
    header = re.compile(r"^(\s*)(?:async\s+)?c?p?def\s+(?!class\b)(?!enum\b)(?!struct\b)[^=]*\(")
    for start, line in enumerate(lines):
        if not (match := header.match(line)):
            continue
        indent = len(match[1])
        end = next(
            (
                number
                for number in range(start + 1, len(lines))
                if lines[number].strip()
                and len(lines[number]) - len(lines[number].lstrip()) <= indent
                and not lines[number].lstrip().startswith(")")
            ),
            len(lines),
        )
        body = "\n".join(lines[start:end]).rstrip()
        body = re.sub(r'^\s*"""[\s\S]*?"""\n', "", body, count=1, flags=re.MULTILINE)
        yield line.strip(), body.count("\n") + 1


def test_files_are_short_enough_to_read() -> None:
    counts = {relative(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    long = {path for path, lines in counts.items() if lines > MOST_LINES_PER_FILE}
    assert long == set(LONG_FILES), "split the file; or list it with the reason; or unlist it"


def test_texts_say_who_is_meant() -> None:
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in FILES
        if path.is_relative_to(SOURCE) and path.suffix in {".py", ".pyx", ".pxd", ".pyi", ".html"}
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if RIDDLES.search(line)
    ]
    assert found == []


def test_functions_are_short_enough_to_read() -> None:
    long = {
        f"{relative(path)}: {name}": lines
        for path in SOURCES
        if path.is_relative_to(SOURCE)
        for name, lines in functions_of(path)
        if lines > MOST_LINES_PER_FUNCTION
    }
    assert long == {}


def test_both_counts_agree_on_plain_source() -> None:
    for path in (SOURCE / "config").glob("*.py"):
        text = path.read_text("utf-8")
        by_parser = sorted(lines for _, lines in functions_of_python(text))
        assert sorted(lines for _, lines in functions_of_cython(text)) == by_parser


def test_files_are_named_for_what_they_hold() -> None:
    vague = [
        relative(path)
        for path in SOURCES
        if NAMES_THAT_SAY_NOTHING & {*path.relative_to(ROOT).parts[:-1], path.stem}
    ]
    assert vague == []


def test_no_file_names_one_machine_or_a_registry() -> None:
    this_file = Path(__file__).resolve()  # holds the very words it looks for
    found = {
        relative(path): words
        for path in FILES
        if path != this_file and (words := FOREIGN.findall(path.read_text("utf-8", "replace")))
    }
    assert found == {}


def test_names_on_the_wire_are_written_once() -> None:
    """Proxy and agent take the names of fields from one module, so that they cannot drift apart."""
    field = re.compile(rb"tunnelmux-(?!raw$)[a-z-]+", re.IGNORECASE)
    found = {
        f"{relative(path)}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        if path.name != "wire.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, bytes)
        and field.fullmatch(node.value)
        and "demo" not in path.parts  # a visitor, who writes what a person would
    }
    assert found == set()


def test_json_of_others_is_read_in_one_place() -> None:
    # It names all that a text can do to a reader: a hostile one is not only no JSON.
    alone = SOURCE / "json_text.py"
    found = [
        relative(path)
        for path in SOURCES
        if path.is_relative_to(SOURCE) and path != alone
        if re.search(r"except .*msgspec\.(?:MsgspecError|DecodeError)", path.read_text("utf-8"))
    ]
    assert not found
