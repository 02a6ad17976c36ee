"""Output of a command that waits for its reader, in memory."""

from __future__ import annotations

from typing import Any

from tunnelmux.commands import CommandRequest, Exited, Output, SshUse, Started, StreamName
from tunnelmux.ssh.run import UNREAD, Run

STREAMS: tuple[StreamName, StreamName] = ("stdout", "stderr")


def new_run() -> Run:
    bridge: Any = None
    request = CommandRequest(
        command_id="c1", host="127.0.0.1", username="u", command="x", timeout=60
    )
    return Run(bridge, request, 1 << 20, lambda: SshUse(pooled=0, kept_for=0))


async def test_one_byte_of_either_stream_in_turn_makes_few_events() -> None:
    run = new_run()
    sent = {stream: bytearray() for stream in STREAMS}
    for number in range(UNREAD):
        stream, data = STREAMS[number % 2], bytes([number % 251])
        assert run.deliver(stream, data) == (number < UNREAD - 1)
        sent[stream] += data
    run.finish(Exited(0))
    run.deliver("stdout", b"what comes after the end")
    events = [event async for event in run]
    assert isinstance(events[0], Started) and isinstance(events[-1], Exited)
    outputs = [event for event in events if isinstance(event, Output)]
    assert len(outputs) == len(events) - 2 < 300
    for stream in STREAMS:
        assert b"".join(one.data for one in outputs if one.stream == stream) == sent[stream]
    # The first of them are in their order.
    assert [one.stream for one in outputs[:100]] == [STREAMS[at % 2] for at in range(100)]
