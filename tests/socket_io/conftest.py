"""Real Socket.IO peers are built outside the tests' time."""

from __future__ import annotations

import pytest

from support.peers import build_program
from support.socketio_peers import sample_agent_command


@pytest.fixture(scope="session")
def npm_peers() -> None:
    """npm's socket.io and socket.io-client are in build/peers; a skip says why they are not."""
    build_program("socketio", "main_server")


@pytest.fixture(scope="session", params=["node", "python", "go"])
def language(request: pytest.FixtureRequest) -> str:
    """Each language of the specification's sample agents, once its agent can be started."""
    sample_agent_command(request.param)
    return str(request.param)
