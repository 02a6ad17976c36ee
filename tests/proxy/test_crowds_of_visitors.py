"""Visitors from many addresses at once: they keep no other out, and do not fill the log."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from support.ingress import running_site
from tunnelmux.limits import IngressLimits

ASKS = b"GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n"


async def test_many_addresses_that_hold_connections_keep_no_other_out() -> None:
    """All that come at one moment get in, while addresses have more connections than theirs."""
    async with running_site(limits=IngressLimits(max_visitors=20)) as site:
        for number in range(20):
            idle = site.visit(f"192.0.2.{number % 5}:{number}")
            await idle.send(ASKS)
            assert (await idle.read_head()).startswith(b"HTTP/1.1 404 ")
        for address in range(10):
            good = site.visit(f"203.0.113.{address}:1")
            await good.send(ASKS)
            assert (await good.read_head()).startswith(b"HTTP/1.1 404 ")
        stranger = site.visit("192.0.2.1:99")  # of those who have the most themselves
        await stranger.send(ASKS)
        assert (await stranger.read_head()).startswith(b"HTTP/1.1 404 ")
        assert site.http.visitor_count <= 21


async def test_half_heads_of_many_addresses_keep_no_other_out() -> None:
    async with running_site(limits=IngressLimits(max_visitors=20)) as site:
        half = [site.visit(f"192.0.2.{number % 5}:{number}") for number in range(20)]
        for stranger in half:
            await stranger.send(b"GET / HTTP/1.1\r\n")
        await trio.testing.wait_all_tasks_blocked()
        good = site.visit("203.0.113.1:1")
        await good.send(ASKS)
        assert (await good.read_head()).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("listener", ["http", "tcp"])
async def test_strangers_from_many_addresses_do_not_fill_the_log(listener: str) -> None:
    """Their refusals are counted, and some of them written."""
    with capture_logs() as lines:
        async with running_site() as site:
            for number in range(320):
                remote = f"192.0.{number % 250}.1:{number}"
                if listener == "tcp":
                    peer = site.dial(device="dev3", remote=remote)
                    with pytest.raises(trio.BrokenResourceError):
                        await peer.read_all()
                else:
                    peer = site.visit(remote)
                    await peer.send(ASKS)
                    assert (await peer.read_head()).startswith(b"HTTP/1.1 404 ")
    assert len(lines) <= 302
    assert lines[-1]["event"] == "lines left out"
