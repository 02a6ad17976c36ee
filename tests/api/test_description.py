"""The API against its own description, called by schemathesis as a signed-in person."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from support.apis import live_api
from support.tenants import person

SETTINGS = """
[checks]
# A device that is not connected is an answer and no fault of the server's.
not_a_server_error.expected-statuses = ["2xx", "4xx", "502", "503", "504"]
# It leaves the good token in while it tries a wrong cookie; test_route_table.py looks at every
# route without, instead.
ignored_auth.enabled = false

# What a host name or credentials may look like is more than a schema says.
[[operations]]
include-path = "/api/exec"
checks.positive_data_acceptance.enabled = false

# This one never ends.
[[operations]]
include-path = "/api/events"
enabled = false

# These would end the caller's own rights.
[[operations]]
include-path = ["/api/members/{user_id}", "/api/access-tokens/{token_id}"]
enabled = false
"""


async def test_it_is_open_to_all_and_says_who_may_call_what(tmp_path: Path) -> None:
    async with live_api(tmp_path) as api:
        description = (await api.call("GET", "/api/openapi.json")).json()
        assert description["openapi"].startswith("3.1")
        add = description["paths"]["/api/devices"]["post"]
        assert (add["x-role"], add["x-scope"]) == ("operator", "devices:write")
        assert add["security"] == [{"cookie": []}, {"token": []}]
        exchange = description["paths"]["/api/pairing/exchange"]["post"]
        assert exchange["security"] == []
        assert "/api/auth/callback" not in description["paths"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["--phases=examples,fuzzing,stateful", "--max-examples=2"], id="short"),
        # Also each value at and beyond its bounds, which test_bad_input.py sends in its own way.
        pytest.param(["--max-examples=20"], marks=pytest.mark.long, id="long"),
    ],
)
@pytest.mark.skipif(sys.version_info >= (3, 15), reason="schemathesis has no wheels for it yet")
@pytest.mark.timeout(300)
async def test_it_does_what_its_description_says(tmp_path: Path, how: list[str]) -> None:
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(SETTINGS)
    async with live_api(tmp_path) as api:
        owner = await person(api, "owner")
        with trio.fail_after(280):
            done = await trio.run_process(
                [
                    Path(sys.executable).with_name("schemathesis"),
                    f"--config-file={settings}",
                    "run",
                    f"{api.base}/api/openapi.json",
                    f"--header=Authorization: Bearer {owner.token}",
                    *how,
                    "--generation-deterministic",
                    "--request-timeout=20",
                    "--no-color",
                ],
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
                cwd=tmp_path,
            )
    assert done.returncode == 0, done.stdout.decode()[-12000:]
