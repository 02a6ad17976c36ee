from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.engines import IMPLEMENTATIONS, engine_class
from support.lone_engine import FEEDINGS, Feeding, LoneEngine, MakeLone
from tunnelmux.limits import Limits

if TYPE_CHECKING:
    from tunnelmux.yamux.engine import Engine


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    """`compiled` and `model`: a case that holds for one must hold for the other."""
    value: str = request.param
    return value


@pytest.fixture
def engine_type(implementation: str) -> type[Engine]:
    """The Engine class under test."""
    return engine_class(implementation)


@pytest.fixture(params=FEEDINGS)
def feeding(request: pytest.FixtureRequest) -> Feeding:
    """How frames reach the engine: whole, byte by byte, or with a ping right behind them."""
    value: Feeding = request.param
    return value


@pytest.fixture
def make_lone(engine_type: type[Engine], feeding: Feeding) -> MakeLone:
    """A maker of engines whose peer is the test's own hand."""

    def make(
        *,
        is_client: bool = False,
        judged: bool = True,
        first_stream_id: int | None = None,
        **limits: object,
    ) -> LoneEngine:
        # Windows that grow send pings of their own; test_engine_growth.py is about them.
        limits.setdefault("max_stream_window", 262_144)
        engine = engine_type(
            is_client=is_client,
            limits=Limits(**limits),  # type: ignore[arg-type]
            now=0.0,
            first_stream_id=first_stream_id,
        )
        return LoneEngine(engine, feeding=feeding, judged=judged)

    return make
