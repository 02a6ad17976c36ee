"""One stream over a link with a round trip, a rate and loss: does the window get in the way?

Two network namespaces are joined by a link of our own: packets are read from a TUN device in one,
held back, now and then dropped, and written to the TUN device of the other. That needs root and
/dev/net/tun, but not the netem module, which many kernels lack. Real TCP runs over it.

Measured is the rate at which one stream carries bytes for some seconds, end to end: plain TCP, our
session with growing windows and without, and hashicorp/yamux receiving, with its fixed window.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import trio

from tunnelmux.limits import INITIAL_WINDOW, Limits
from tunnelmux.mux import open_session

RATE = 12.5e6  # bytes per second each way: 100 Mbit/s
SECONDS = 10.0
CASES = ((0.0, 0.0), (0.05, 0.0), (0.1, 0.0), (0.15, 0.0), (0.05, 0.01))  # round trip s, loss
KINDS = ("tcp", "growing", "fixed", "hashicorp")
SOURCE, SINK = "10.77.0.1", "10.77.0.2"
PORT = 7700
QUEUE = 2_000_000  # bytes that wait for the rate in each direction, as a router's buffer

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
HERE = Path(__file__)


def run() -> Iterator[tuple[str, float, str]]:
    """Yield (what, MB/s, unit); nothing but a line saying why where it cannot run."""
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        print("link     left out: it needs root and /dev/net/tun")
        return
    peer = hashicorp_command()
    for rtt, loss in CASES:
        rates = {}
        with link(rtt, loss) as (source, sink):
            for kind in KINDS:
                if kind == "hashicorp" and peer is None:
                    continue
                rates[kind] = measure(kind, source, sink, peer)
        where = f"{rtt * 1000:.0f} ms, {loss:.0%} loss"
        for kind, rate in rates.items():
            yield f"{where}: {kind}", rate / 1e6, "MB/s"
        yield f"{where}: growing / tcp", rates["growing"] / rates["tcp"], "ratio"


def hashicorp_command() -> list[str] | None:
    """The Go peer of the interoperability tests, or None with a line saying why."""
    sys.path.insert(0, str(HERE.parents[2] / "tests"))
    try:
        from support.peers import IMPLEMENTATIONS

        return IMPLEMENTATIONS[0].command()
    except BaseException as exc:  # noqa: BLE001 - pytest's skip and failure are BaseExceptions
        print(f"link     without hashicorp/yamux: {exc}")
        return None


# -- the link -----------------------------------------------------------------------------------


@contextlib.contextmanager
def link(rtt: float, loss: float) -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a link; their names."""
    names = [f"tmx{os.getpid()}{side}" for side in "ab"]
    with contextlib.ExitStack() as stack:
        ends = []
        for name, address in zip(names, (SOURCE, SINK), strict=True):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            stack.callback(os.close, device)
            request = struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI)
            fcntl.ioctl(device, TUNSETIFF, request)
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "mtu", "1500", "up")
            ends.append(device)
        words = [str(word) for word in (*ends, rtt / 2, loss)]
        carrier = subprocess.Popen([sys.executable, HERE, "carry", *words], pass_fds=ends)
        stack.callback(carrier.wait)
        stack.callback(carrier.kill)
        yield names[0], names[1]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def carry(one: int, other: int, delay: float, loss: float) -> None:
    """Move packets between two TUN devices until killed."""
    dice = random.Random(1)
    waiting: dict[int, deque[tuple[float, bytes]]] = {one: deque(), other: deque()}
    free_at = {one: 0.0, other: 0.0}
    poll = select.poll()
    poll.register(one, select.POLLIN)
    poll.register(other, select.POLLIN)
    while True:
        dues = [queue[0][0] for queue in waiting.values() if queue]
        pause = max(0.0, min(dues) - time.monotonic()) * 1000 if dues else None
        for source, _ in poll.poll(pause):
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    packet = os.read(source, 2048)
                    now = time.monotonic()
                    late = max(free_at[source], now) - now
                    if dice.random() < loss or late * RATE > QUEUE:
                        continue
                    free_at[source] = now + late + len(packet) / RATE
                    waiting[source].append((free_at[source] + delay, packet))
        now = time.monotonic()
        for source, target in ((one, other), (other, one)):
            queue = waiting[source]
            while queue and queue[0][0] <= now:
                with contextlib.suppress(OSError):  # its namespace is going away
                    os.write(target, queue.popleft()[1])


# -- what runs over it --------------------------------------------------------------------------


def measure(kind: str, source: str, sink: str, peer: list[str] | None) -> float:
    """Bytes per second of one stream of *kind* from namespace *source* to *sink*."""
    sender = start(source, "send", kind)
    assert sender.stdout is not None
    sender.stdout.readline()  # it listens
    if kind == "hashicorp":
        assert peer is not None
        receiver = subprocess.Popen(
            ["ip", "netns", "exec", sink, *peer], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert receiver.stdin is not None
        receiver.stdin.write(f"1 dial tcp client {SOURCE}:{PORT}\n2 serve sink\n".encode())
        receiver.stdin.flush()
    else:
        receiver = start(sink, "receive", kind)
    try:
        return float(sender.stdout.readline())
    finally:
        for process in (sender, receiver):
            process.kill()
            process.communicate()


def start(namespace: str, role: str, kind: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, HERE, role, kind], stdout=subprocess.PIPE
    )


def limits(kind: str) -> Limits:
    return Limits(max_stream_window=INITIAL_WINDOW) if kind == "fixed" else Limits()


async def send(kind: str) -> None:
    """Wait for the receiver, send for SECONDS, print the rate when it has read to the end."""
    async with trio.open_nursery() as nursery:

        async def serve(transport: trio.SocketStream) -> None:
            if kind == "tcp":
                rate = await send_for(transport)
            else:
                async with open_session(transport, is_client=False, limits=limits(kind)) as session:
                    rate = await send_for(await session.open_stream())
            print(rate, flush=True)
            nursery.cancel_scope.cancel()

        await nursery.start(trio.serve_tcp, serve, PORT)
        print("listening", flush=True)


async def send_for(stream: trio.abc.HalfCloseableStream) -> float:
    chunk, sent, began = bytes(65_536), 0, time.monotonic()
    while time.monotonic() < began + SECONDS:
        await stream.send_all(chunk)
        sent += len(chunk)
    await stream.send_eof()
    await stream.receive_some(1)
    return sent / (time.monotonic() - began)


async def receive(kind: str) -> None:
    transport = await trio.open_tcp_stream(SOURCE, PORT)
    if kind == "tcp":
        await read_to_the_end(transport)
    else:
        async with open_session(transport, is_client=True, limits=limits(kind)) as session:
            await read_to_the_end(await session.accept_stream())


async def read_to_the_end(stream: trio.abc.HalfCloseableStream) -> None:
    while await stream.receive_some(65_536):
        pass
    await stream.send_eof()
    await stream.receive_some(1)


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    if role == "carry":
        carry(int(words[0]), int(words[1]), float(words[2]), float(words[3]))
    else:
        trio.run(send if role == "send" else receive, words[0])
