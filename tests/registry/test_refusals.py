"""Every code with which the registry refuses is one that the API can tell its callers."""

from __future__ import annotations

import ast

from support.tree import SOURCE
from tunnelmux.api.problem_codes import CODES


def refused_by_registry() -> set[str]:
    return {
        keyword.value.value
        for file in sorted((SOURCE / "registry").rglob("*.py"))
        for call in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "code"
        and isinstance(keyword.value, ast.Constant)
        and isinstance(keyword.value.value, str)
    }


def test_every_refusal_of_the_registry_is_described() -> None:
    found = refused_by_registry()
    assert len(found) > 20
    assert sorted(found - CODES.keys()) == []
