"""exec as a person who is signed in: by tunnelmux-api, a real proxy, agents and sshd."""

from __future__ import annotations

import base64
import getpass
import os
import select
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from support.installation import COMMAND, Installation
from support.shapes import Exit, of_lines
from support.tenants import TEST, person

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def here(installation: Installation) -> Iterator[Installation]:
    """The same, with two devices that run commands."""
    for name in ("exec1", "exec2"):
        installation.here(partial(installation.add_device, name, {}))
        installation.configurations[name] += (
            '[exec]\nenabled = true\nhosts = ["*"]\nusers = ["*"]\ncommands = ["*"]\n'
        )
        installation.here(partial(installation.restart_agent, name))
    yield installation
    for name in ("exec1", "exec2"):
        installation.here(partial(installation.stop_agent, name))


def words(here: Installation) -> list[str]:
    """How the SSH server is reached and logged in at."""
    port = here.ssh.rpartition(":")[2]
    return ["--port", port, "--user", getpass.getuser(), "-i", str(here.folder / "user_key")]


def test_one_device_gives_its_bytes_and_its_status(here: Installation, way: str) -> None:
    env = here.way(way)
    done = here.run("exec", "exec1", *words(here), "--", "printf 'a\\0b'; exit 7", env=env)
    assert (done.stdout, done.stderr, done.returncode) == (b"a\0b", b"", 7)
    done = here.run(
        *("exec", "exec1", *words(here), "--stdin", "--", "tr a-z A-Z"), env=env, send=b"typed"
    )
    assert (done.stdout, done.returncode) == (b"TYPED", 0), done.stderr


def test_a_program_gets_the_same_lines_of_json(here: Installation, way: str) -> None:
    done = here.run("exec", "exec1", *words(here), "--json", "--", "echo x", env=here.way(way))
    assert (done.stderr, done.returncode) == (b"", 0)
    started, output, end = of_lines("tunnelmux exec", done.stdout)
    assert started.device == output.device == end.device == "exec1"
    assert base64.b64decode(output.data) == b"x\n"
    assert (end.exit_code, end.stdout_bytes) == (0, 2)


def test_many_are_told_apart_and_those_that_are_away_fail(here: Installation) -> None:
    done = here.run("exec", "exec*", "dev3", *words(here), "--", "echo x")
    assert sorted(done.stdout.splitlines()) == [b"exec1 | x", b"exec2 | x"]
    assert done.returncode == 255
    text = done.stderr.decode()
    assert "unreachable: the device is not connected" in text
    assert text.endswith("2 of 3 succeeded.\n")


def test_a_failure_ends_it_everywhere_where_that_was_asked_for(here: Installation) -> None:
    done = here.run(
        *("exec", "exec*", *words(here), "--abort-on-error", "--concurrency", "1"),
        *("--json", "--", "exit 9"),
    )
    ends = [line for line in of_lines("tunnelmux exec", done.stdout) if isinstance(line, Exit)]
    assert sorted(line.reason or "failed" for line in ends) == ["failed", "skipped"]
    assert done.returncode == 9


def test_what_was_not_run_is_255_and_says_why(here: Installation) -> None:
    done = here.run("exec", "nobody", "--", "true")
    assert (done.stdout, done.returncode) == (b"", 255)
    assert b"tunnelmux exec: error: No device is called nobody" in done.stderr
    done = here.run("exec", "dev1", *words(here), "--", "true")
    assert done.returncode == 126
    assert b"tunnelmux exec: dev1: " in done.stderr
    # Nobody is signed in, and nothing listens where a proxy of this machine would.
    env = here.environment(TUNNELMUX_SERVER=here.api.base, TUNNELMUX_TOKEN="wrong")
    done = here.run("exec", "dev1", "--", "true", env=env)
    assert done.returncode == 255
    assert b"your sign-in at" in done.stderr


def test_a_command_ends_with_the_token_that_began_it(here: Installation) -> None:
    """Also on the device, which is this machine."""
    carl = here.here(partial(person, here.api, "carl", "operator"))
    own = here.api.running.api.registry.tenant(carl.tenant_id, TEST).access_tokens
    asked = ["exec", "exec1", *words(here), "--timeout", "600", "--", "echo $$; exec sleep 600"]
    with subprocess.Popen(
        [*COMMAND, *asked],
        env=here.environment(carl),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=here.folder,
    ) as process:
        assert process.stdout is not None
        watched = os.pidfd_open(int(process.stdout.readline()))
        try:
            [token] = here.here(partial(own.page, user_id=carl.user_id)).items
            here.here(partial(own.revoke, token.id))
            _, problem = process.communicate(timeout=30)
            ended, _, _ = select.select([watched], [], [], 30)
        finally:
            os.close(watched)
    assert process.returncode not in {0, None}
    assert problem.startswith(b"tunnelmux exec: error: the answer of http://"), problem.decode()
    assert b"was lost" in problem and problem.count(b"\n") == 1
    assert ended == [watched]
