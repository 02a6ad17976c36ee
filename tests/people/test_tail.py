"""tail: requests as they come, by both ways, over the device's reconnects."""

from __future__ import annotations

import queue
import re
import urllib.error
import urllib.request
from functools import partial

import pytest

from support.following import collect, following
from support.installation import Installation
from support.shapes import of_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def visit(installation: Installation, path: str, device: str = "dev2") -> None:
    """A request through the ingress of somebody who proves nothing: it gets 401, and is seen."""
    request = urllib.request.Request(
        f"http://{installation.visitors}{path}", headers={"Host": f"{device}.localhost"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        opener.open(request, timeout=30)


def test_requests_come_as_lines_of_json_over_a_reconnect(
    installation: Installation, way: str
) -> None:
    with following(installation, way, "tail", "dev2", "--path", "/seen*", "--json") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Watching requests to dev2 at http://")
        lines = collect(process)
        visit(installation, "/other")
        visit(installation, "/seen/1?token=hidden")
        first = lines.get(timeout=60)
        installation.here(partial(installation.restart_agent, "dev2"))
        visit(installation, "/seen/2")
        second = lines.get(timeout=60)
        with pytest.raises(queue.Empty):
            lines.get_nowait()
    found = of_lines("tunnelmux tail", first + second)
    assert [(one.device, one.method, one.path) for one in found] == [
        ("dev2", "GET", "/seen/1"),
        ("dev2", "GET", "/seen/2"),
    ]
    assert all(one.way == "http" and one.status == 401 for one in found)
    assert {one.reason for one in found} == {"access-unproven"}


def test_a_person_reads_a_line_for_each_request(installation: Installation, way: str) -> None:
    with following(installation, way, "tail", "dev1", "--status", "4xx") as process:
        assert process.stderr is not None
        process.stderr.readline()
        lines = collect(process)
        visit(installation, "/page", "dev1")
        line = lines.get(timeout=60)
    pattern = (
        r"\d\d:\d\d:\d\d  http  GET      401  +\d+ ms  +0 B  +0 B  -  127\.0\.0\.1:\d+"
        r"  /page  \(This service requires you to identify yourself: .*\)\n"
    )
    assert re.fullmatch(pattern, line), line


def test_a_request_through_the_api_has_a_way_of_its_own(installation: Installation) -> None:
    with following(installation, "api", "tail", "dev1", "--path", "/by-*", "--json") as process:
        assert process.stderr is not None
        process.stderr.readline()
        lines = collect(process)
        installation.run("curl", "dev1/web/by-api?token=hidden")
        (seen,) = of_lines("tunnelmux tail", lines.get(timeout=60))
    assert (seen.way, seen.service, seen.method, seen.path) == ("api", "web", "GET", "/by-api")
    assert (seen.status, seen.reason) == (404, "")  # the service's own answer


def test_a_request_through_the_api_fails_as_the_device_says(installation: Installation) -> None:
    with following(installation, "api", "tail", "dev1", "--path", "/by-*", "--json") as process:
        assert process.stderr is not None
        process.stderr.readline()
        lines = collect(process)
        installation.run("curl", "dev1/closed/by-api")
        (seen,) = of_lines("tunnelmux tail", lines.get(timeout=60))
    assert (seen.way, seen.service, seen.path) == ("api", "closed", "/by-api")
    assert (seen.status, seen.reason) == (404, "unknown-service")  # it takes no HTTP


def test_what_cannot_be_is_said(installation: Installation) -> None:
    done = installation.run("tail", "dev1", "--status", "abc")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b'status must be 404, 5xx or a list of such, not "abc"' in done.stderr
    done = installation.run("tail", "dev99")
    assert done.returncode == 4
    assert b'no device is called "dev99"' in done.stderr
