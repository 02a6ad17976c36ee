"""Walking the routes of an application."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["leaves"]


def leaves(routes: Iterable[Any]) -> Iterator[Any]:
    """All routes, also those of included routers, which FastAPI keeps as one object each."""
    for route in routes:
        inner = getattr(route, "original_router", None) or getattr(route, "router", None)
        if inner is None:
            yield route
        else:
            yield from leaves(inner.routes)
