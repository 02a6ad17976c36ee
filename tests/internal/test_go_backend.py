"""A back end in Go that knows only the contract, and a running proxy with an agent behind it."""

from __future__ import annotations

import pytest
import trio

from support.peers import build_program
from support.site import SECRET, running_site


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first run builds it
async def test_it_drives_all_six_routes() -> None:
    command = await trio.to_thread.run_sync(build_program, "go", "backend")
    async with running_site() as site:
        with trio.fail_after(60):
            done = await trio.run_process(
                [*command, site.url, SECRET, await site.token()],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    assert done.stderr == b""
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [
        "ok sessions",
        "ok session",
        "ok forward/http",
        "ok forward/raw upgraded",
        "ok forward/raw dialled",
        "ok forward/ws",
        "ok close",
    ]
