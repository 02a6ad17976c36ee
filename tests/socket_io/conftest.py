"""Real Socket.IO peers are built outside the tests' time."""

from __future__ import annotations

import pytest

from support.peers import build_program


@pytest.fixture(scope="session")
def npm_peers() -> None:
    """npm's socket.io and socket.io-client are in build/peers; a skip says why they are not."""
    build_program("socketio", "main_server")
