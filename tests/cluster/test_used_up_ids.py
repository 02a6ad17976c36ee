"""Sessions that have used all their stream ids, 2**31 of each side: the next ones follow by
themselves."""

from __future__ import annotations

import pytest
import trio

from support.nodes import running_nodes
from support.origin import Origin, serving
from support.redis_server import run_redis
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.pump.tunnel import PumpedEngine

IDS = 12
"""How many streams each side of a session may open here."""


def new_engine(_pump: DataPump, *, is_client: bool, **settings: object) -> PumpedEngine:
    first = 2**32 - 2 * IDS + is_client
    return PumpedEngine(is_client=is_client, first_stream_id=first, **settings)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("node", ["a", "b"])
async def test_a_session_without_stream_ids_is_followed_by_another(
    node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the device with its node b, and for a visitor of node a the hop to that too. A
    device is away for the time that its agent takes to connect; a hop is not missed."""
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    monkeypatch.setattr(DataPump, "new_engine", new_engine)
    with run_redis() as redis:
        async with (
            serving(Origin().handle) as web,
            running_nodes(redis) as nodes,
            nodes.agent("b", {"web": f"http://{web}"}),
        ):
            answered = 0
            with trio.fail_after(50):
                while answered < 4 * IDS:
                    answer = await nodes.get(node, service="web")
                    assert (answer.status, answer.reason) in [
                        (200, None),
                        (503, "device-draining"),
                        (503, "device-offline"),
                    ]
                    answered += answer.status == 200
