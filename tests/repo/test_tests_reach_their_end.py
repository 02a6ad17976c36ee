"""A test whose last lines never run shows nothing, and passes."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from support.tree import ROOT

CANCELLING = "nursery.cancel_scope.cancel"


def cut_short(tree: ast.AST) -> Iterator[int]:
    """Where a test cancels the `nursery` that it was given, with assertions behind it. pytest-trio
    runs the test itself in that one, so that nothing behind the next checkpoint runs."""
    for test in ast.walk(tree):
        if not isinstance(test, ast.AsyncFunctionDef) or not test.name.startswith("test_"):
            continue
        if "nursery" not in {argument.arg for argument in test.args.args}:
            continue
        cancelled = [
            node.lineno
            for node in ast.walk(test)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == CANCELLING
        ]
        last = max(
            (node.lineno for node in ast.walk(test) if isinstance(node, ast.Assert)), default=0
        )
        yield from (line for line in cancelled if line < last)


def test_no_test_cancels_itself_before_its_last_assertion() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / "tests").rglob("test_*.py")
        if CANCELLING in (text := path.read_text("utf-8"))
        for line in cut_short(ast.parse(text))
    ]
    assert found == [], "open a nursery in the test, and cancel that"


def test_such_a_test_is_found() -> None:
    lines = ["async def test_it(nursery):", f"    {CANCELLING}()", "    await f()", "    assert 0"]
    assert list(cut_short(ast.parse("\n".join(lines)))) == [2]
