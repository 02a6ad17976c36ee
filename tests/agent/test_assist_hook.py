"""A program of the device that answers requests for leases in a person's place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tunnelmux.agent.assist.offers import LeaseOffer
from tunnelmux.agent.assist.service import AssistService
from tunnelmux.config import AgentConfig, Device, ProxyEndpoint, Secret, ServiceConfig
from tunnelmux.config.assist import AssistConfig

LEASE = "01890000-0000-7000-8000-000000000001"

HOOK = """\
import os, sys
names = ("LEASE", "WHO", "REASON", "SERVICES", "SECONDS")
with open(sys.argv[1], "w") as told:
    print(*(os.environ["TUNNELMUX_" + name] for name in names), sep="|", file=told)
sys.exit(int(sys.argv[2]))
"""


def config_with(folder: Path, hook: list[str]) -> AgentConfig:
    return AgentConfig(
        device=Device(name="cam1", state_dir=folder / "state"),
        proxy=ProxyEndpoint(url="ws://127.0.0.1:1/tunnel/connect", token=Secret("t")),
        services=[ServiceConfig(name="ssh", target="tcp://127.0.0.1:22", lease_only=True)],
        assist=AssistConfig(mode="ask", hook=hook, ask_timeout=600.0),
    )


async def asked(config: AgentConfig, until: str) -> list[dict[str, Any]]:
    """The device's events after a request, once there is one of type `until`."""
    service = AssistService(config)
    with service.opened():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run)
            await trio.testing.wait_all_tasks_blocked()
            offer = LeaseOffer(
                id=LEASE,
                who="Ada",
                reason="printer jams; $(rm -r /)",
                services=("ssh",),
                rights=("shell",),
                seconds=3600,
            )
            assert service.desk.offer(offer).state == "asked"
            with trio.fail_after(50):
                while True:
                    found = [event for _, event in service.desk.events_after(0)]
                    if any(event["type"] == until for event in found):
                        break
                    await service.desk.wait_after(service.desk.last_event)
            nursery.cancel_scope.cancel()
    return found


@pytest.mark.parametrize(("status", "given"), [(0, True), (1, False), (127, False)])
async def test_its_exit_status_is_the_answer(tmp_path: Path, status: int, given: bool) -> None:
    told = tmp_path / "told"
    hook = [sys.executable, "-c", HOOK, str(told), str(status)]
    (answer,) = [e for e in await asked(config_with(tmp_path, hook), "answer") if "given" in e]
    assert answer["given"] is given
    assert told.read_text() == f"{LEASE}|Ada|printer jams; $(rm -r /)|ssh|3600\n"


@pytest.mark.parametrize("hook", ["exit 2", ""])
async def test_one_that_says_nothing_or_is_not_there_leaves_the_request_to_a_person(
    tmp_path: Path, hook: str
) -> None:
    words = ["/bin/sh", "-c", f"echo > {tmp_path}/ran; {hook}"] if hook else ["/no/such/program"]
    service = AssistService(config_with(tmp_path, words))
    with service.opened():
        async with trio.open_nursery() as nursery:
            service._nursery = nursery
            service.desk.offer(
                LeaseOffer(
                    id=LEASE,
                    who="Ada",
                    reason="",
                    services=("ssh",),
                    rights=("shell",),
                    seconds=3600,
                )
            )
        # The hook is over, and the question is still there.
        assert (tmp_path / "ran").exists() == bool(hook)
        (shown,) = service.desk.status()["leases"]
        assert shown["state"] == "asked"
        assert service.desk.answer(LEASE, True, by="me") is None
