"""Hostile peers of a real proxy: each attack has its stated outcome, costs little memory, and the
session of another device does not notice.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio

from support.attacker import attack
from support.http_rig import Peer
from support.tunnels import Tunnel
from support.wire import (
    ACK,
    DATA,
    FIN,
    INITIAL_WINDOW,
    RST,
    SYN,
    WINDOW_UPDATE,
    Frame,
    data,
    go_away,
    pack,
    ping,
    pong,
    reset,
    update,
)
from tunnelmux import Stream
from tunnelmux.config import Address
from tunnelmux.mux import open_session
from tunnelmux.transports import connect_websocket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MOST_MEMORY = 8 << 20
"""Bytes that the whole proxy may grow by under any of these attacks. Refusing 20,000 streams takes
it 4 MiB, twelve withheld bodies 1.5, the others 0.3."""
PATIENCE = 20.0
"""Seconds for what takes well under one on an idle machine."""


async def start(tunnel: Tunnel, web: Address, *, devices: int = 2, more: str = "") -> None:
    names = [f"dev{number}" for number in range(1, devices + 1)]
    await tunnel.start_proxy(devices=names, more=more)
    await tunnel.start_agent({"web": f"http://{web}"})
    await tunnel.still_works()


def memory_from_here(tunnel: Tunnel) -> int:
    """The proxy's peak of resident memory, begun anew with what is resident now (proc(5))."""
    Path(f"/proc/{tunnel.proxy.pid}/clear_refs").write_text("5")
    return tunnel.proxy.peak_memory


# -- what breaks the protocol ends the session that it came on -------------------------------

MUCH = 2**32 - 1
RULE_BREAKERS: dict[str, tuple[bytes, str]] = {
    "version 1": (b"\x01" + bytes(11), "version 1"),
    "type 4": (b"\x00\x04" + bytes(10), "type 4"),
    "id 0": (update(0, flags=SYN).pack(), "id 0"),
    "wrong parity": (update(2, flags=SYN).pack(), "stream 2, an id of this side"),
    "duplicate SYN": (pack(update(1, flags=SYN), update(1, flags=SYN)), "opened twice"),
    "window overflow": (
        pack(update(1, flags=SYN), data(1, bytes(50_000)), Frame(DATA, 0, 1, INITIAL_WINDOW)),
        "whose window has 212144 left",
    ),
    "4 GiB announced": (pack(update(1, flags=SYN), Frame(DATA, 0, 1, MUCH)), "4294967295 bytes"),
    "DATA|SYN over the window": (Frame(DATA, SYN, 1, INITIAL_WINDOW + 1).pack(), "262145 bytes"),
    "DATA|SYN of 4 GiB": (Frame(DATA, SYN, 1, MUCH).pack(), "4294967295 bytes"),
    "credit over 4 GiB": (pack(update(1, flags=SYN), update(1, MUCH)), "grew past 2**32 - 1"),
    "credit over 4 GiB with SYN": (update(1, MUCH, SYN).pack(), "grew past 2**32 - 1"),
    "SYN flood in one breath": (
        pack(*(update(i, flags=SYN) for i in range(1, 10_001, 2))),
        "opened 1024 streams over the limit",
    ),
    "strays": (update(7, 1).pack() * 65_537, "65537 frames in a row for streams"),
}


async def test_who_breaks_the_protocol_loses_its_own_session_and_is_told(
    tunnel: Tunnel, web: Address
) -> None:
    await start(tunnel, web)
    before = memory_from_here(tunnel)
    for name, (raw, said) in RULE_BREAKERS.items():
        since = len(tunnel.proxy.events)
        with trio.fail_after(PATIENCE):
            async with attack(tunnel, "dev2") as attacker:
                await attacker.say(raw)
                await attacker.is_over.wait()
            ended = await tunnel.proxy.logged("session ended", since=since, device="dev2")
        assert said in str(ended["reason"]), name
        assert ended["level"] == "warning", name
        assert attacker.go_away_codes == [1], name
        await tunnel.still_works()
    assert tunnel.proxy.peak_memory - before < MOST_MEMORY


async def test_a_flood_of_pings_over_the_limit_ends_the_session(
    tunnel: Tunnel, web: Address
) -> None:
    await start(tunnel, web, more="[limits]\nmax_pings_per_second = 30000")
    before = memory_from_here(tunnel)
    with trio.fail_after(PATIENCE):
        async with attack(tunnel, "dev2") as attacker:
            while await attacker.say(*map(ping, range(5_000))):
                pass
            await attacker.is_over.wait()
        ended = await tunnel.proxy.logged("session ended", device="dev2")
    assert "more than 30000 pings in one second" in str(ended["reason"])
    await tunnel.still_works()
    assert tunnel.proxy.peak_memory - before < MOST_MEMORY


# -- what is only a nuisance is borne ---------------------------------------------------------


async def test_twenty_thousand_pings_are_no_more_than_pings(tunnel: Tunnel, web: Address) -> None:
    await start(tunnel, web)
    before = memory_from_here(tunnel)
    with trio.fail_after(PATIENCE):
        async with attack(tunnel, "dev2") as attacker:
            await attacker.say(*map(ping, range(20_000)))
            await attacker.still_lives()
            answers = [frame for frame in attacker.told if frame.flags == ACK]
            assert len(set(answers)) == len(answers), "an answer twice"
            assert {frame.length for frame in answers} <= {*range(20_000), 0x11FE}
            await tunnel.still_works()
    assert tunnel.proxy.peak_memory - before < MOST_MEMORY


async def test_floods_of_streams_are_refused_and_forgotten(tunnel: Tunnel, web: Address) -> None:
    """Opened and left (nothing is offered to agents: a reset each), or opened and reset at once."""
    await start(tunnel, web)
    before = memory_from_here(tunnel)
    first = 1
    with trio.fail_after(2 * PATIENCE):
        async with attack(tunnel, "dev2") as attacker:
            for _ in range(40):
                ids = range(first, first + 1_000, 2)
                first = ids.stop
                await attacker.say(*(update(i, flags=SYN) for i in ids))
                await attacker.heard(*map(reset, ids))
            resets = [frame.stream_id for frame in attacker.told if frame.flags == RST]
            assert sorted(resets) == list(range(1, first, 2)), "one reset for each of 20,000"
            churn = range(first, first + 40_000, 2)
            await attacker.say(*(frame for i in churn for frame in (update(i, 0, SYN), reset(i))))
            await attacker.say(*(Frame(DATA, SYN | FIN, i + 40_000, 0) for i in churn[:100]))
            await attacker.still_lives()
            await tunnel.still_works()
    assert tunnel.proxy.peak_memory - before < MOST_MEMORY


async def test_a_storm_of_go_aways_ends_nothing_that_is_under_way(
    tunnel: Tunnel, web: Address
) -> None:
    await start(tunnel, web)
    before = memory_from_here(tunnel)
    with trio.fail_after(PATIENCE):
        async with attack(tunnel, "dev2") as attacker:
            visitor = Peer(await tunnel.visit())
            await visitor.send(b"GET / HTTP/1.1\r\nHost: dev2.localhost\r\n\r\n")
            while not attacker.told:
                await trio.testing.wait_all_tasks_blocked(0.01)
            stream_id = attacker.told[0].stream_id
            await attacker.say(update(stream_id, flags=ACK), go_away().pack() * 20_000)
            await attacker.still_lives()
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstorm"
            await attacker.say(data(stream_id, answer), go_away().pack() * 100)
            await attacker.say(update(stream_id, flags=FIN))
            head = await visitor.read_head()
            assert head.startswith(b"HTTP/1.1 200 ")
            await visitor.stream.aclose()
            await attacker.is_over.wait()
        ended = await tunnel.proxy.logged("session ended", device="dev2")
    assert ended["level"] == "info"
    assert attacker.go_away_codes == [0]
    await tunnel.still_works()
    assert tunnel.proxy.peak_memory - before < MOST_MEMORY


async def test_bodies_that_never_come_are_waited_for_no_longer_than_for_a_dead_peer(
    tunnel: Tunnel, web: Address
) -> None:
    """Twelve devices announce a whole window, send most of it and fall silent."""
    limits = "[limits]\nkeepalive_interval = 1.5\nkeepalive_timeout = 1.5"
    await start(tunnel, web, devices=13, more=limits)
    before = memory_from_here(tunnel)

    async def withhold(device: str) -> None:
        async with attack(tunnel, device) as attacker:
            await attacker.say(Frame(DATA, SYN, 1, INITIAL_WINDOW), bytes(INITIAL_WINDOW - 1))
            await attacker.is_over.wait()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in range(2, 14):
                nursery.start_soon(withhold, f"dev{number}")
            await tunnel.still_works()
        for number in range(2, 14):
            ended = await tunnel.proxy.logged("session ended", device=f"dev{number}")
            assert "silent" in str(ended["reason"])
    await tunnel.still_works()
    assert tunnel.proxy.peak_memory - before < MOST_MEMORY


async def test_bytes_may_come_in_any_pieces(tunnel: Tunnel, web: Address) -> None:
    """One byte to a message, and a message ending at every byte of a header: all is understood."""
    await start(tunnel, web)
    before = memory_from_here(tunnel)
    with trio.fail_after(PATIENCE):
        async with attack(tunnel, "dev2") as attacker:
            wanted = []
            for number in range(1, 60, 2):
                await attacker.say(
                    ping(number), data(number, b"hello", SYN), Frame(WINDOW_UPDATE, FIN, number, 0),
                    cut=1,
                )  # fmt: skip
                wanted += [pong(number), reset(number)]
            for cut in range(1, 24):
                number = 1_001 + 2 * cut
                raw = pack(ping(number), update(number, flags=SYN))
                await attacker.say(raw[:cut])
                await attacker.say(raw[cut:])
                wanted += [pong(number), reset(number)]
            await attacker.heard(*wanted)
            await attacker.still_lives()
            await tunnel.still_works()
    assert len([frame for frame in attacker.told if frame.flags == RST]) == len(wanted) // 2
    assert tunnel.proxy.peak_memory - before < MOST_MEMORY


# -- commands ---------------------------------------------------------------------------------

ENDLESS: dict[str, bytes] = {
    "a line": b"x" * 1_000_000,
    "started": b'{"event":"started","commandId":"c1","at":1.0,"x":"%s"}\n' % (b"y" * 1_000_000),
    "truncated": b'{"event":"truncated","stream":"stdout","limit":1}\n' * 20_000,
    "no event": b'{"event":"odd"}\n' * 60_000,
    "output": b'{"event":"stdout","data":"%s"}\n' % (b"AAAA" * 5_000) * 50,
}
ALL_OF_IT = 150 << 20
"""Bytes that the device has to say; it once had the proxy keep them all."""


@pytest.mark.parametrize("what", ENDLESS)
async def test_a_device_whose_answer_to_a_command_never_ends_costs_little_memory(
    tunnel: Tunnel, web: Address, what: str
) -> None:
    limit = 2 << 20
    more = f'[internal]\nlisten = "127.0.0.1:0"\n[limits]\nmax_exec_answer = {limit}'
    await start(tunnel, web, more=more)
    internal = await tunnel.proxy.listening("internal.listen")
    content = b'{"devices":"dev2","commandId":"c1","host":"h","username":"u","password":"p",'
    content += b'"command":"yes","timeout":60000}'
    call = b"POST /internal/exec HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
    call += b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)
    url = f"ws://{tunnel.at_tunnel}/tunnel/connect"
    headers = [(b"Authorization", b"Bearer " + tunnel.token("dev2").encode("ascii"))]
    async with (
        connect_websocket(url, headers=headers) as websocket,
        open_session(websocket, is_client=True) as session,
    ):
        await tunnel.proxy.logged("session started", device="dev2")
        before = memory_from_here(tunnel)
        with trio.fail_after(90):
            async with await tunnel.visit(internal) as caller, trio.open_nursery() as nursery:
                await caller.send_all(call)
                nursery.start_soon(answer_for_ever, await session.accept_stream(), ENDLESS[what])
                answer = b"".join([data async for data in caller])
                nursery.cancel_scope.cancel()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert len(answer) < limit + 10_000
        grown = tunnel.proxy.peak_memory - before
    await tunnel.still_works()
    assert grown < 6 * limit + MOST_MEMORY


async def answer_for_ever(stream: Stream, piece: bytes) -> None:
    """Take a command and answer with *piece*, again and again, until there is enough or no more is
    taken."""
    await stream.receive_some()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"
    end = b'\n{"event":"exited","exitCode":0}\n'
    with suppress(trio.BrokenResourceError):
        await stream.send_all(head + ENDLESS["started"].replace(b"y", b""))
        for _ in range(ALL_OF_IT // len(piece)):
            await stream.send_all(piece)
        await stream.send_all(end)
        await stream.send_eof()
