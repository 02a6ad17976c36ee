"""Bodies far larger than what the daemons may hold of them, compared bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from support.origin import Origin, numbered_blocks, reply
from support.tunnels import Tunnel
from tunnelmux.config import Address

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MIB = 1 << 20
MOST_MEMORY = 80 * MIB


def digest_of(size: int) -> str:
    digest = hashlib.sha256()
    for block in numbered_blocks(size):
        digest.update(block)
    return digest.hexdigest()


async def test_1_gib_download(
    tunnel: Tunnel,
    origin: Origin,
    web: Address,
    debian_program: Callable[[str, str], str],
) -> None:
    size = 1024 * MIB

    async def large(peer, head):
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for block in numbered_blocks(size):
            await peer.send(block)

    origin.pages[b"/large"] = large
    curl = debian_program("curl", "curl")
    sha256sum = debian_program("sha256sum", "coreutils")
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    started = trio.current_time()
    where = f"dev1.localhost:{tunnel.at_http.port}"
    pipe = '"$0" -sSf --noproxy "*" --resolve "$2:127.0.0.1" "http://$2/large" | "$1" -b'
    result = await trio.run_process(
        ["/bin/sh", "-c", pipe, curl, sha256sum, where], capture_stdout=True
    )
    seconds = trio.current_time() - started
    assert result.stdout.split()[0].decode() == await trio.to_thread.run_sync(digest_of, size)
    line = await tunnel.proxy.logged("request", path="/large")
    assert line["bytes_out"] == size
    report_and_check(tunnel, "download", size, seconds)


async def test_256_mib_upload(
    tunnel: Tunnel, origin: Origin, web: Address, run, tmp_path: Path
) -> None:
    size = 256 * MIB

    async def take(peer, head):
        assert b"Expect: 100-continue\r\n" in head
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        digest = hashlib.sha256()
        for _ in range(size // 65_536):
            digest.update(await peer.read_exactly(65_536))
        await peer.send(reply(digest.hexdigest().encode()))

    origin.pages[b"/take"] = take
    file = tmp_path / "upload"
    with file.open("wb") as sink:
        for block in numbered_blocks(size):
            sink.write(block)
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    started = trio.current_time()
    result = await run(
        *("curl", "curl", "-sSf", "--noproxy", "*", "-H", "Tunnelmux-Device: dev1"),
        *("-H", "Expect: 100-continue", "--expect100-timeout", "60"),
        *("-T", str(file), f"http://{tunnel.at_http}/take"),
        timeout=120,
    )
    seconds = trio.current_time() - started
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == await trio.to_thread.run_sync(digest_of, size)
    report_and_check(tunnel, "upload", size, seconds)


def report_and_check(tunnel: Tunnel, what: str, size: int, seconds: float) -> None:
    """Say how fast it was and hold every daemon to the bound of memory."""
    peaks = {daemon.name: daemon.peak_memory for daemon in (tunnel.proxy, tunnel.agents["dev1"])}
    shown = ", ".join(f"{name} {peak / MIB:.1f} MiB" for name, peak in peaks.items())
    print(f"{what}: {size / MIB / seconds:.0f} MiB/s in {seconds:.1f} s, at most {shown}")  # noqa: T201
    assert max(peaks.values()) < MOST_MEMORY, shown
