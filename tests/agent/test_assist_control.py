"""What a person's terminal sends to the running agent."""

from __future__ import annotations

import trio

from support.counted_bytes import CountedBytes, Work
from tunnelmux.agent.assist.control import _read_line
from tunnelmux.agent.assist.orders import MAX_ORDER


class Pieces(trio.abc.ReceiveStream):
    """A stream of these bytes, one at a time."""

    def __init__(self, data: bytes, work: Work) -> None:
        self._data = iter(data)
        self._work = work

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        byte = next(self._data, None)
        return b"" if byte is None else CountedBytes(bytes([byte]), self._work)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_an_order_in_single_bytes_is_looked_at_once() -> None:
    work = Work()
    order = b'{"do": "' + b"x" * 8000 + b'"}'
    assert await _read_line(Pieces(order + b"\nmore", work)) == order
    assert work.bytes <= 2 * len(order)


async def test_an_order_without_an_end_is_cut() -> None:
    assert len(await _read_line(Pieces(b"x" * 100_000, Work()))) == MAX_ORDER + 1
    assert await _read_line(Pieces(b"watch", Work())) == b"watch"
