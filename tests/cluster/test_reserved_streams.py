"""What visitors of one node leave of the streams of a device on another."""

from __future__ import annotations

import pytest
import trio

from support.http_rig import Peer
from support.nodes import running_nodes
from support.origin import Origin, serving
from support.redis_server import run_redis
from tunnelmux.config import LimitsConfig
from tunnelmux.errors import SessionError
from tunnelmux.limits import IngressLimits, Limits
from tunnelmux.proxy.cluster.hops import ThereHandle
from tunnelmux.sessions import LocalHandle

UPLOAD = b"POST /wait HTTP/1.1\r\nHost: web--dev1.localhost\r\nContent-Length: 9\r\n\r\nabc"
LIMITS = LimitsConfig(session=Limits(max_streams=16), ingress=IngressLimits(reserved_streams=2))


@pytest.fixture
async def waiting() -> Origin:
    async def wait(_peer: Peer, _head: bytes) -> None:
        await trio.sleep_forever()

    origin = Origin()
    origin.pages[b"/wait"] = wait
    return origin


@pytest.mark.slow
async def test_unfinished_uploads_over_a_hop_leave_streams_for_all_but_visitors(
    waiting: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    with run_redis() as redis:
        async with (
            serving(waiting.handle) as web,
            running_nodes(redis, limits=LIMITS) as nodes,
            nodes.agent("b", {"web": f"http://{web}"}),
        ):
            assert (await nodes.get("a", service="web")).status == 200
            there, own = nodes["a"].store, nodes["b"].store.own_device("dev1")
            assert isinstance(own, LocalHandle)
            visitors = []
            address = nodes["a"].http_address
            assert address is not None
            with trio.fail_after(30):
                while own.session.stream_count:  # noqa: ASYNC110  that of the first visitor
                    await trio.sleep(0.01)
                for number in range(1, 15):
                    visitors.append(Peer(await trio.open_tcp_stream(address.host, address.port)))
                    await visitors[-1].send(UPLOAD)
                    while own.session.stream_count < number:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                answer = await nodes.get("a", service="web")
                assert (answer.status, answer.reason) == (503, "device-busy")
                handle = await there.find_device("dev1")
                assert isinstance(handle, ThereHandle)
                with pytest.raises(SessionError, match="no stream left for visitors"):
                    await handle.open_stream()
                kept = await handle.open_reserved_stream()
                assert own.session.stream_count == 15
                await trio.aclose_forcefully(kept)
            for visitor in visitors:
                await trio.aclose_forcefully(visitor.stream)
