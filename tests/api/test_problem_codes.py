"""Every code of a problem document is described, and every code that is described exists."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from support.tree import SOURCE
from tunnelmux.api.problem_codes import CODES
from tunnelmux.api.problems import Refused

API = sorted((SOURCE / "api").rglob("*.py"))
REGISTRY = sorted((SOURCE / "registry").rglob("*.py"))


def strings(node: ast.AST) -> set[str]:
    return {
        inner.value
        for inner in ast.walk(node)
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
    }


def calls() -> Iterator[ast.Call]:
    for file in API:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield node


def given_out() -> dict[str, set[int]]:
    """The codes that are written out where they are given out, with their statuses."""
    found: dict[str, set[int]] = {}
    for call in calls():
        match call.func, call.args:
            case (
                ast.Name("Refused" | "problem_response") | ast.Attribute(attr="_give_up"),
                [ast.Constant(int(status)), ast.Constant(str(code)), *_],
            ):
                found.setdefault(code, set()).add(status)
    return found


def test_every_code_is_described_with_its_status() -> None:
    found = given_out()
    assert len(found) > 30
    assert sorted(found.keys() - CODES.keys()) == []
    assert found == {code: {CODES[code][0]} for code in found}


def test_every_code_that_is_described_exists() -> None:
    described = SOURCE / "api" / "problem_codes.py"
    written: set[str] = set()
    for file in [*API, *REGISTRY, SOURCE / "backend" / "proxies.py"]:
        if file != described:
            written |= strings(ast.parse(file.read_text("utf-8")))
    assert sorted(CODES.keys() - written) == []


def test_a_code_that_is_not_described_cannot_be_given_out() -> None:
    with pytest.raises(AssertionError, match="describe it"):
        Refused(400, "made_up", "Nobody knows this one.")
