"""login, logout, whoami: a terminal that a person signs in through a browser."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from support.confirming import decide, signed_in_browser
from support.installation import COMMAND, Installation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextmanager
def login(installation: Installation, home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A login that waits, and the page that it names."""
    env = {**installation.environment(), "HOME": str(home)}
    with subprocess.Popen(
        [*COMMAND, "login", installation.api.base, "--no-browser"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said.startswith(f"Open {installation.api.base}/terminal?code=")
            yield process, said.split()[1]
        finally:
            process.kill()


def test_a_person_confirms_the_code_and_the_terminal_goes_on(
    installation: Installation, tmp_path: Path
) -> None:
    env = {**installation.environment(), "HOME": str(tmp_path)}
    with login(installation, tmp_path) as (process, page):
        said = installation.here(partial(decide, installation, page, "approve"))
        assert "Signed in" in said
        out, _ = process.communicate(timeout=50)
        assert process.returncode == 0
    assert "You are alice@example.com, operator of default" in out
    file = tmp_path / ".config" / "tunnelmux" / "login.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    account = installation.json("whoami", env=env)
    assert account == {
        "server": installation.api.base,
        "way": "api",
        "name": account["name"],
        "email": "alice@example.com",
        "tenant": "default",
        "role": "operator",
    }
    token = json.loads(file.read_text())["token"]
    done = installation.run("logout", env=env)
    assert (done.returncode, file.exists()) == (0, False)
    answer = installation.here(partial(installation.api.call, "GET", "/api/auth/me", token))
    assert answer.status_code == 401


def test_a_person_denies_it(installation: Installation, tmp_path: Path) -> None:
    with login(installation, tmp_path) as (process, page):
        said = installation.here(partial(decide, installation, page, "deny"))
        assert "Denied" in said
        _, problem = process.communicate(timeout=50)
    assert process.returncode == 3
    assert "the sign-in was denied in the browser" in problem
    assert not (tmp_path / ".config").exists()


def test_the_page_is_for_signed_in_browsers_of_this_site_only(installation: Installation) -> None:
    async def look() -> None:
        api = installation.api
        stranger = await api.client.get(f"{api.base}/terminal?code=BCDF-GHJK")
        assert stranger.status_code == 303
        assert stranger.headers["location"] == (
            "/api/auth/login?return_to=%2Fterminal%3Fcode%3DBCDF-GHJK"
        )
        form = {"code": "BCDF-GHJK", "decision": "approve"}
        program = await api.call("POST", "/terminal", installation.owner.token, data=form)
        assert program.status_code == 403
        browser = await signed_in_browser(installation, "bob")
        foreign = await browser.request(
            "POST", f"{api.base}/terminal", data=form, headers={"sec-fetch-site": "cross-site"}
        )
        assert not isinstance(foreign, str)
        assert foreign.json()["code"] == "cross_origin"
        unknown = await browser.get(f"{api.base}/terminal?code=BCDF-GHJK")
        assert unknown.status_code == 409
        assert "No terminal shows this code" in unknown.text
        empty = await browser.get(f"{api.base}/terminal")
        assert re.search('<input name="code"', empty.text)

    installation.here(look)


def test_who_is_not_signed_in_is_told_how(installation: Installation, tmp_path: Path) -> None:
    env = {**installation.environment(), "HOME": str(tmp_path)}
    done = installation.run("whoami", env={**env, "TUNNELMUX_API_URL": "http://127.0.0.1:1"})
    assert (done.returncode, b"127.0.0.1:1" in done.stderr) == (1, True)
    done = installation.run("login", env=env)
    assert done.returncode == 2
    assert b"tunnelmux login https://" in done.stderr
    env |= {"TUNNELMUX_SERVER": installation.api.base, "TUNNELMUX_TOKEN": "tma_wrong"}
    done = installation.run("whoami", env=env)
    assert done.returncode == 3
    assert b"tunnelmux login http://127.0.0.1:" in done.stderr
    env["TUNNELMUX_TOKEN"] = installation.owner.token
    assert installation.json("whoami", env=env)["role"] == "owner"


def test_a_file_that_others_may_read_is_not_used(
    installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / ".config" / "tunnelmux" / "login.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"server": installation.api.base, "token": "tma_x"}))
    file.chmod(0o644)
    done = installation.run("whoami", env={**installation.environment(), "HOME": str(tmp_path)})
    assert done.returncode == 2
    assert b"chmod 600" in done.stderr
    assert b"tma_x" not in done.stderr
