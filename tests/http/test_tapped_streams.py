"""A stream whose bytes are read along ends as it would without."""

from __future__ import annotations

import pytest
import trio

from support.sessions import session_pair
from tunnelmux.http import ResponseHead
from tunnelmux.http.tap import TappedStream


class Counting:
    def __init__(self) -> None:
        self.seen = b""

    def asked(self, data: bytes) -> None:
        self.seen += b">" + data

    def began(self, head: ResponseHead) -> None:
        raise NotImplementedError

    def answered(self, data: bytes) -> None:
        self.seen += b"<" + data


@pytest.mark.parametrize("forced", [False, True])
async def test_a_close_is_an_end_and_a_forced_one_a_reset(forced: bool) -> None:
    async with session_pair() as (client, server):
        tap = Counting()
        stream = TappedStream(await client.open_stream(), tap)
        await stream.send_all(b"half")
        theirs = await server.accept_stream()
        assert await theirs.receive_some() == b"half"
        if forced:
            await trio.aclose_forcefully(stream)
            with pytest.raises(trio.BrokenResourceError):
                await theirs.receive_some()
        else:
            await stream.aclose()
            assert await theirs.receive_some() == b""
        assert tap.seen == b">half"
