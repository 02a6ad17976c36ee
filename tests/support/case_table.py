"""A table of test cases written as functions: each row has its number and name as its test id."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

Script = TypeVar("Script", bound=Callable[..., None])


class CaseTable:
    """Collects case functions; `rows` goes into `pytest.mark.parametrize`."""

    def __init__(self) -> None:
        self.rows: list[ParameterSet] = []
        self._names: set[str] = set()

    def __call__(self, name: str) -> Callable[[Script], Script]:
        """Add the decorated function under *name*, which must be new."""
        assert name not in self._names, f"two cases are called {name}"
        self._names.add(name)

        def add(script: Script) -> Script:
            self.rows.append(pytest.param(script, id=name))
            return script

        return add
