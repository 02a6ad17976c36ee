"""The API against its own description, called by schemathesis with what should work and not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from support.site import SECRET, running_site
from tunnelmux.commands import CommandRequest
from tunnelmux.config import Secret
from tunnelmux.proxy.internal.bodies import ExecRequest
from tunnelmux.proxy.internal.openapi import describe

SETTINGS = """
[checks]
# A tunnel that is not there is an answer and no fault of the server's.
not_a_server_error.expected-statuses = ["2xx", "4xx", "502", "504"]

# These two become something other than HTTP, and these never end.
[[operations]]
include-path = [
    "/internal/forward/raw", "/internal/forward/ws", "/internal/events", "/internal/requests",
]
enabled = false

# One ends another by the same id or for the same service, which is taken for a loss of the first.
[[operations]]
include-name = "POST /internal/inspections"
enabled = false
"""


def test_a_command_is_described_by_the_struct_that_reads_it() -> None:
    described = describe([])["components"]["schemas"]["ExecRequest"]["properties"]
    whole = CommandRequest(
        command_id="1", server_id=1, host="h", username="u", command="c", password=Secret("x"),
        private_key=Secret("x"), passphrase=Secret("x"), certificate="x", stdin=b"x",
    )  # fmt: skip
    of_call = {"devices", "concurrency", "abortOnError", "askedBy"}
    assert set(described) == whole.to_json().keys() | of_call
    assert set(described) == {field.encode_name for field in msgspec.structs.fields(ExecRequest)}


@pytest.mark.slow
@pytest.mark.parametrize("most", [5, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.skipif(sys.version_info >= (3, 15), reason="schemathesis has no wheels for it yet")
@pytest.mark.timeout(300)
async def test_it_does_what_its_description_says(tmp_path: Path, most: int) -> None:
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(SETTINGS)
    async with running_site() as site:
        with trio.fail_after(240):
            done = await trio.run_process(
                [
                    Path(sys.executable).with_name("schemathesis"),
                    f"--config-file={settings}",
                    "run",
                    f"{site.url}/openapi.json",
                    f"--header=Authorization: Bearer {SECRET}",
                    "--checks=all",
                    f"--max-examples={most}",
                    "--generation-deterministic",
                    "--request-timeout=20",
                    "--no-color",
                ],
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
                cwd=tmp_path,
            )
    assert done.returncode == 0, done.stdout.decode()[-8000:]
    assert b"Tested: 17" in done.stdout
