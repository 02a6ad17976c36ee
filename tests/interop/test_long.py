"""Cases 112 and 114: minutes of silence and slow readers, with every peer at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from support.exchanges import read_to_end, send_pattern
from support.peer_process import Link, PeerError, linked, pattern_digest
from support.peers import WAYS, Way

Recorder = Callable[[str, str, str, str, str], None]
Case = Callable[[Link], Awaitable[str]]

MIB = 1024 * 1024


async def run_everywhere(case: Case, note: Recorder, failures: list[str]) -> None:
    """Run *case* with every peer in every role and transport at once; it answers the deviation."""

    async def run_one(way: Way) -> None:
        implementation, role, transport = way
        outcome, text = "passed", ""
        try:
            async with linked(implementation, role, transport) as link:
                text = await case(link)
            outcome = "deviation" if text else "passed"
        except pytest.skip.Exception as exc:
            outcome, text = "skipped", str(exc)
        except (Exception, pytest.fail.Exception) as exc:  # must not hide how the others fare
            outcome, text = "failed", repr(exc)
            failures.append(f"{implementation.name}-{role}-{transport}: {exc!r}")
        note(implementation.name, role, transport, outcome, text)

    async with trio.open_nursery() as nursery:
        for way in WAYS:
            nursery.start_soon(run_one, way)


@pytest.mark.whole_table
@pytest.mark.slow
@pytest.mark.timeout(240, func_only=True)
async def test_silence_and_slow_readers(record: Callable[[float, str], Recorder]) -> None:
    """Both cases at the same time as well: they wait, and use next to no processor."""
    silence = record(112, "90 s of silence on streams nobody wrote to, accepted and not")
    slow = record(114, "readers on both sides that let the sender wait for 30 s")
    failures: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_everywhere, stay_silent, silence, failures)
        await trio.sleep(20)  # forty processes that start at once would be slow themselves
        nursery.start_soon(run_everywhere, read_slowly, slow, failures)
    assert failures == []


async def stay_silent(link: Link) -> str:
    for name in ("accepted", "waiting"):
        await link.call(f"open {name}")
        if link.name == "rust":
            await link.call(f"write {name} 1")  # announces the stream
    accepted = await link.session.accept_stream()
    ours = await link.session.open_stream()
    await link.call("accept ours")
    await trio.sleep(90)  # hashicorp ends a session 75 s after an open that nobody acknowledged
    assert not link.session.is_closed
    await link.session.ping()
    waiting = await link.session.accept_stream()
    for name, stream in (("accepted", accepted), ("waiting", waiting), ("ours", ours)):
        await send_pattern(stream, 1000)
        assert (await link.call(f"read {name} 1000"))["sha256"] == pattern_digest(1000)
    return ""


async def read_slowly(link: Link) -> str:
    deviations: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_the_peer_wait, link, deviations)
        nursery.start_soon(wait_for_the_peer, link)
        with trio.move_on_after(30):
            while True:  # nobody else is held up meanwhile
                with trio.fail_after(20):
                    await link.session.ping()
                await trio.sleep(1)
    return "; ".join(deviations)


async def let_the_peer_wait(link: Link, deviations: list[str]) -> None:
    await link.call("open slow")

    async def write() -> None:
        try:
            await link.call(f"write slow {MIB}", timeout=60)
            assert link.name != "py-libp2p"
            # A write may be over when all is in the peer's own buffer, long before we read it.
            await link.call("finish slow", timeout=60)
        except PeerError as exc:
            assert link.name == "py-libp2p", exc
            assert "window update" in str(exc)
            deviations.append("a send that waits 5 s for credit fails")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        stream = await link.session.accept_stream()
        await trio.sleep(30)
        if deviations:
            return
        with trio.fail_after(20):
            assert await read_to_end(stream) == (MIB, pattern_digest(MIB))


async def wait_for_the_peer(link: Link) -> None:
    stream = await link.session.open_stream()
    await link.call("accept ours")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_pattern, stream, 600_000)
        reply = await link.call("read ours 600000 rate=20000", timeout=80)
    assert reply["sha256"] == pattern_digest(600_000)
