"""GET /internal/traffic: who moves the most."""

from __future__ import annotations

import pytest

from support.internal import running_bench


async def test_the_busiest_devices_come_first_and_the_rest_is_added_up() -> None:
    async with (
        running_bench() as bench,
        bench.agent("dev1") as quiet,
        bench.agent("dev2") as busy,
        bench.agent("dev3"),
    ):
        for agent, size in ((quiet, 1000), (busy, 50_000)):
            stream = await agent.session.open_stream()
            await stream.send_all(b"x" * size)
            await agent.session.ping()  # what was sent before it has arrived
        content = (await bench.ask("GET", "/internal/traffic?top=2")).json
        first, second = content["devices"]
        assert [first["device"], second["device"]] == ["dev2", "dev1"]
        assert first["bytesFromDevice"] > 50_000
        assert 1000 < second["bytesFromDevice"] < 50_000
        assert (first["streams"], first["visits"]) == (1, 0)
        assert first["connectedAt"].endswith("Z")
        assert content["rest"]["devices"] == 1
        assert content["rest"]["bytesFromDevice"] < 1000
        everything = (await bench.ask("GET", "/internal/traffic")).json
        assert len(everything["devices"]) == 3
        assert everything["rest"] == {"devices": 0, "bytesToDevice": 0, "bytesFromDevice": 0}


@pytest.mark.parametrize("top", ["0", "-1", "1001", "x", ""])
async def test_a_number_that_is_none(top: str) -> None:
    async with running_bench() as bench:
        answer = await bench.ask("GET", f"/internal/traffic?top={top}")
        assert (answer.status, answer.json["error"]["code"]) == (400, "INVALID_REQUEST")
