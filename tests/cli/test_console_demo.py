"""`tunnelmux demo --console`: a whole installation in one command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from support.shapes import of_whole
from tunnelmux.cli.main import tunnelmux

DEMO = (
    sys.executable,
    "-c",
    "from tunnelmux.cli.main import main; main()",
    "demo",
    "--console",
    "--any-ports",
)
PATIENCE = 280

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def folder() -> Iterator[Path]:
    """One with a short name, since there are sockets in it: pytest's are too long for these."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.slow
def test_once_walks_the_main_path_and_ends_with_status_0(folder: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--once", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    told = of_whole("tunnelmux demo --console", done.stdout)
    assert [(check.name, check.passed) for check in told.checks] == [
        ("sign in", True),
        ("a call for help", True),
        ("pair a device", True),
        ("a page, signed in", True),
        ("a command", True),
        ("a terminal", True),
        ("approve a lease", True),
        ("end a session", True),
    ]
    assert list(folder.iterdir()) == []  # nothing is left of it


@pytest.mark.slow
def test_it_stays_says_where_to_look_and_ends_by_a_signal(folder: Path) -> None:
    with subprocess.Popen(
        DEMO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as process:
        assert process.stdout is not None
        shown = []
        for line in process.stdout:
            shown.append(line)
            if "until Ctrl-C" in line:
                break
        url = shown[-1].split()[2]
        text = "".join(shown)
        assert 'Type "owner" as the sub' in text, text
        assert "All 5 checks passed." in text
        with urllib.request.urlopen(f"{url}api/ready", timeout=60) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert rest == "\nStopped.\n"
    assert (process.returncode, errors) == (0, "")
    assert list(folder.iterdir()) == []


def test_without_its_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelmux.cli.demo.command._LIBRARIES", ("no_such_library",))
    result = CliRunner().invoke(tunnelmux, ["demo", "--console"], standalone_mode=False)
    assert 'no_such_library is not installed: in a clone of tunnelmux, run pip install ".[' in str(
        result.exception
    )
