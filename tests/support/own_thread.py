"""Replacements that hold for the test's own thread.

A module's function is one for the whole process, and the installation that tests of commands share
runs in another thread of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["replace_here"]


def replace_here(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, replacement: Callable[..., Any]
) -> None:
    """Replace this function of `owner` for callers in this thread; others get what was there."""
    original, here = getattr(owner, name), threading.get_ident()

    def choose(*arguments: Any, **options: Any) -> Any:
        function = replacement if threading.get_ident() == here else original
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, choose)
