"""inspect: a person looks at requests, compares two, copies one and sends it again."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

import pytest

from support.installation import Installation
from support.shapes import of_whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def visit(installation: Installation, device: str, path: str) -> None:
    """A visitor who proves nothing gets 401, and is seen."""
    request = urllib.request.Request(
        f"http://{installation.visitors}{path}",
        headers={"Host": f"web--{device}.localhost", "Cookie": "sid=secret"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        opener.open(request, timeout=30)


def test_from_start_to_stop(installation: Installation, way: str) -> None:
    env, name = installation.way(way), "dev1"

    def run(*words: str, status: int = 0) -> str:
        done = installation.run("inspect", *words, env=env)
        assert done.returncode == status, done
        return (done.stdout or done.stderr).decode()

    assert 'no service "none"; it has web' in run("start", name, "none", status=4)
    assert f"tunnelmux inspect start {name} SERVICE begins it" in run("ls", name, status=4)
    begun = run("start", name, "web", "--bodies", "--json")
    assert of_whole("tunnelmux inspect start", begun).device == name
    visit(installation, name, "/a?token=hidden")
    visit(installation, name, "/b")
    rows = run("ls", name).splitlines()
    assert rows[0].split()[:5] == ["REQUEST", "TIME", "METHOD", "STATUS", "TOOK"]
    assert [row.split()[-1] for row in rows[1:]] == ["/b", "/a?token=***"]
    second, first = (row.split()[0] for row in rows[1:])
    assert [row.split()[0] for row in run("ls", name, "--path", "/a").splitlines()[1:]] == [first]
    shown = run("show", name, first)
    assert "GET /a?token=***\n" in shown
    assert "Cookie: sid=***\n" in shown
    assert "\n401\n" in shown
    found = of_whole("tunnelmux inspect show", run("show", name, first, "--json"))
    listed = of_whole("tunnelmux inspect ls", run("ls", name, "--json"))
    assert [one.id.rpartition("-")[2] for one in listed] == [second, first]
    assert (found.status, found.id.rpartition("-")[2]) == (401, first)
    assert run("show", name, found.id) == shown
    different = run("compare", name, first, second, status=1)
    assert "\n-GET /a?token=***\n+GET /b\n" in different
    assert "They say the same." in run("compare", name, first, first)
    assert run("curl", name, first).endswith(f"'http://web--{name}.localhost/a?token=***'\n")
    again = run("replay", name, second)
    assert re.search(rf"^Again +\w+-{second}$", again, re.MULTILINE)
    assert "\n404\n" in again  # the service's own
    assert again.endswith("\nno such page\n")
    again = run("replay", name, second, "--json")
    assert of_whole("tunnelmux inspect replay", again).status == 404
    assert 'no request "999999" is kept of dev1' in run("show", name, "999999", status=4)
    assert "echo is not among web" in run("stop", name, "echo", status=4)
    assert run("stop", name) == f"web of {name} is not inspected any more.\n"
    assert f"nothing of {name} is inspected now" in run("show", name, first, status=4)
