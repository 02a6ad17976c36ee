"""The two implementations every engine test runs against."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from support import yamux_model

if TYPE_CHECKING:
    from tunnelmux.yamux.engine import Engine

IMPLEMENTATIONS = ("compiled", "model")


def engine_class(implementation: str) -> type[Engine]:
    """The compiled `Engine`, or the plain-Python model with the same face."""
    if implementation == "model":
        return cast("type[Engine]", yamux_model.Engine)
    from tunnelmux.yamux.engine import Engine

    return Engine
