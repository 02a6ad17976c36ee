"""events and watch: what happens, as it happens."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
from collections.abc import Callable
from functools import partial

import pytest

from support.following import collect, following
from support.installation import Installation
from support.shapes import of_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def wait_until_it_follows(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Following http://")


def come_and_go(
    installation: Installation,
    name: str,
    lines: queue.SimpleQueue[str],
    enough: Callable[[str], bool],
) -> None:
    """Have a device go and come until what was written is enough."""
    text = ""
    for _ in range(10):
        installation.here(partial(installation.restart_agent, name))
        with contextlib.suppress(queue.Empty):
            while not enough(text):
                text += lines.get(timeout=3)
        if enough(text):
            return
    raise AssertionError(text)


def test_events_come_as_lines_of_json(installation: Installation, way: str) -> None:
    name = f"comes-{way}"
    installation.here(partial(installation.add_device, name, {}))

    def enough(text: str) -> bool:
        events = of_lines("tunnelmux events", text)
        kinds = {event.kind for event in events if event.device == name}
        return {"device.lost", "device.connected"} <= kinds

    with following(installation, way, "events", "--json") as process:
        wait_until_it_follows(process)
        come_and_go(installation, name, collect(process), enough)


def test_events_come_as_lines_for_people(installation: Installation) -> None:
    name = "comes-and-goes"
    installation.here(partial(installation.add_device, name, {}))
    wanted = re.compile(rf"^\d\d:\d\d:\d\d  device\.lost +{name}", re.MULTILINE)
    with following(installation, "api", "events") as process:
        wait_until_it_follows(process)
        lines = collect(process)
        come_and_go(installation, name, lines, lambda text: wanted.search(text) is not None)


def test_watch_writes_the_list_anew(installation: Installation, way: str) -> None:
    name = f"watched-{way}"
    installation.here(partial(installation.add_device, name, {}))
    with following(installation, way, "watch", name, "--json") as process:
        lines = collect(process)
        (first,) = of_lines("tunnelmux watch", lines.get(timeout=60))
        assert [item.state for item in first] == ["online"]
        states: list[list[str]] = []
        for _ in range(10):
            installation.here(partial(installation.stop_agent, name))
            with contextlib.suppress(queue.Empty):
                while states[-1:] not in ([[]], [["offline"]]):
                    states.append([item["state"] for item in json.loads(lines.get(timeout=5))])
            if states[-1:] in ([[]], [["offline"]]):
                return
            installation.here(partial(installation.start_agent, name))
    raise AssertionError(states)
