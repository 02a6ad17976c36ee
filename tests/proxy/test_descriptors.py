"""Visitors of one address where a process may open few files and sockets."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from support.crowds import dial_from
from support.http_rig import Peer
from support.proxies import proxy_config, running

LOWERED = "limits are lowered"
REQUEST = b"GET / HTTP/1.1\r\nHost: dev1.localhost\r\n\r\n"


async def test_idle_visitors_of_one_address_leave_descriptors_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With all descriptors taken, no new connection is accepted, so that no idle one gave way."""
    monkeypatch.setattr("tunnelmux.proxy.descriptors.files_allowed", lambda: 64)
    with capture_logs() as logs, trio.fail_after(30):
        async with running(proxy_config()) as proxy:
            address = proxy.http_address
            assert address is not None
            visitors = []
            for number in range(60):
                visitors.append(Peer(await dial_from(f"127.0.0.{2 + number // 40}", address)))
                await visitors[-1].send(REQUEST)
                assert (await visitors[-1].read_head()).startswith(b"HTTP/1.1 503 ")
            assert proxy._http.visitor_count <= 32
            for visitor in visitors:
                await trio.aclose_forcefully(visitor.stream)
    (line,) = [line for line in logs if line["event"] == LOWERED]
    assert (line["files"], line["max_visitors"], line["max_visitors_per_address"]) == (64, 32, 16)


async def test_with_descriptors_for_all_limits_none_is_lowered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunnelmux.proxy.descriptors.files_allowed", lambda: 65_536)
    with capture_logs() as logs:
        async with running(proxy_config()):
            pass
    assert not [line for line in logs if line["event"] == LOWERED]
