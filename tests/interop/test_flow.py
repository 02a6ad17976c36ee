"""Case 113: writes far larger than a window."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from support.exchanges import send_pattern
from support.peer_process import Link, pattern_digest

BULK = 16 * 1024 * 1024


@pytest.mark.whole_table
@pytest.mark.slow
@pytest.mark.peer_options(go=f"window={BULK}")
@pytest.mark.case(113, "16 MiB written in one call, into a 16 MiB window where the peer has one")
async def test_sixteen_mib_in_one_call(link: Link) -> None:
    async with trio.open_nursery() as nursery:
        await link.call("open a")
        nursery.start_soon(partial(link.call, f"write a {BULK} chunk={BULK}", timeout=50))
        with trio.fail_after(50):
            stream = await link.session.accept_stream()
            read = 0
            while read < BULK:
                read += len(await stream.receive_some())

        nursery.start_soon(partial(send_pattern, stream, BULK, chunk=BULK))
        reply = await link.call(f"read a {BULK}", timeout=50)
        assert reply["sha256"] == pattern_digest(BULK)
    assert read == BULK
