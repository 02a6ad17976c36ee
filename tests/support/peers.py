"""Programs in other languages that speak yamux, built with their registries' ordinary clients.

Each folder of tests/peers holds one program and what its package manager needs; the language's
builder here makes a command of it. What is built stays in build/peers until its source changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from support.programs import require_program
from support.tree import ROOT

__all__ = [
    "IMPLEMENTATIONS",
    "ROLES",
    "TRANSPORTS",
    "WAYS",
    "Implementation",
    "Way",
    "build_program",
    "versions",
]

SOURCES = ROOT / "tests" / "peers"
BUILDS = ROOT / "build" / "peers"

BUILD_TIMEOUT = 900.0
"""Seconds one build may take: a cold Rust build on a small machine takes two minutes."""

KEPT = 3600.0
"""Seconds a build of older source is kept after its last use."""


@dataclass(frozen=True)
class Implementation:
    """A yamux that is not ours. `name` is its column in docs/conformance.md."""

    name: str
    language: str
    package: str
    program: str = "peer"
    arguments: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """What starts the peer; builds it first where that was not done yet."""
        return [*build_program(self.language, self.program), *self.arguments]


IMPLEMENTATIONS = (
    Implementation(
        "hashicorp",
        "go",
        "github.com/hashicorp/yamux",
        arguments=("-implementation", "hashicorp"),
    ),
    Implementation(
        "go-libp2p",
        "go",
        "github.com/libp2p/go-yamux/v5",
        arguments=("-implementation", "libp2p"),
    ),
    Implementation("rust", "rust", "yamux"),
    Implementation("py-libp2p", "python", "libp2p"),
    Implementation("js-libp2p", "javascript", "@chainsafe/libp2p-yamux"),
)


ROLES = ("client", "server")
"""Of ours: the client dials."""

TRANSPORTS = ("tcp", "ws")

Way = tuple[Implementation, str, str]

WAYS: list[Way] = list(itertools.product(IMPLEMENTATIONS, ROLES, TRANSPORTS))


class BuildFailure(Exception):
    """A builder's command failed; the message holds the end of what it printed."""


def run(*command: str | Path, cwd: Path, **environment: str) -> None:
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildFailure(f"{command[0]} took longer than {BUILD_TIMEOUT:.0f} s") from None
    if done.returncode:
        raise BuildFailure(f"{command[0]} failed: {done.stdout.decode(errors='replace')[-2000:]}")


def build_go(source: Path, made: Path) -> None:
    go = require_program("go", "golang-go")
    # Debian's Go stays with its own version unless told that it may fetch the one of go.mod.
    toolchain = os.environ.get("GOTOOLCHAIN", "auto")
    run(go, "build", "-o", f"{made}{os.sep}", "./...", cwd=source, GOTOOLCHAIN=toolchain)


def build_rust(source: Path, made: Path) -> None:
    cargo = require_program("cargo", "cargo")
    # The target folder outlives one build: a changed peer then compiles only itself.
    target = BUILDS / "rust-target"
    copy = made / "source"  # cargo leaves a lock file beside what it builds
    shutil.copytree(source, copy)
    run(cargo, "build", "--release", "--target-dir", target, cwd=copy)
    shutil.copy2(target / "release" / "peer", made / "peer")


def build_python(source: Path, made: Path) -> None:
    run(sys.executable, "-m", "venv", made / "venv", cwd=source)
    python = made / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-r", "requirements.txt", cwd=source)
    for path in source.glob("*.py"):
        shutil.copy2(path, made)


def build_javascript(source: Path, made: Path) -> None:
    require_program("node", "nodejs")
    npm = require_program("npm", "npm")
    for name in ("package.json", "package-lock.json", "peer.js"):
        shutil.copy2(source / name, made)
    run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=made)


def build_socketio(source: Path, made: Path) -> None:
    require_program("node", "nodejs")
    npm = require_program("npm", "npm")
    for path in source.iterdir():
        if path.is_file():
            shutil.copy2(path, made)
    run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=made)


@dataclass(frozen=True)
class Language:
    build: Callable[[Path, Path], None]
    command: Callable[[Path, str], list[str]]
    depends_on: str = ""
    """Anything outside the source folder that a build is bound to."""


LANGUAGES = {
    "go": Language(build_go, lambda made, program: [str(made / program)]),
    "rust": Language(build_rust, lambda made, program: [str(made / program)]),
    "python": Language(
        build_python,
        lambda made, program: [str(made / "venv/bin/python"), str(made / f"{program}.py")],
        depends_on=sys.version,
    ),
    "javascript": Language(
        build_javascript,
        lambda made, program: [require_program("node", "nodejs"), str(made / f"{program}.js")],
    ),
    # No yamux: a main server and relay agents, for tests/socket_io.
    "socketio": Language(
        build_socketio,
        lambda made, program: [require_program("node", "nodejs"), str(made / f"{program}.js")],
    ),
    "socketio_python4": Language(
        build_python,
        lambda made, program: [str(made / "venv/bin/python"), str(made / f"{program}.py")],
        depends_on=sys.version,
    ),
    # An OpenID provider, for tests/api.
    "oidc": Language(
        build_socketio,
        lambda made, program: [require_program("node", "nodejs"), str(made / f"{program}.mjs")],
    ),
    # What looks at pages as people with disabilities meet them, for tests/console.
    "axe": Language(
        build_socketio,
        lambda made, program: [str(made / "node_modules" / "axe-core" / f"{program}.min.js")],
    ),
    "socketio_go": Language(build_go, lambda made, program: [str(made / program)]),
}


@contextmanager
def locked(language: str) -> Iterator[None]:
    """One build of a language at a time, also among test runs that share a checkout."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / f"{language}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fingerprint(language: str) -> str:
    digest = hashlib.sha256(LANGUAGES[language].depends_on.encode())
    for path in sorted((SOURCES / language).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(SOURCES)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _built(language: str) -> Path | str:
    """The folder of a finished build, or why there is none."""
    made = BUILDS / f"{language}-{fingerprint(language)}"
    with locked(language):
        finished = made / "finished"
        if finished.is_file():
            os.utime(made)
            return made
        shutil.rmtree(made, ignore_errors=True)  # a build that was killed
        for old in BUILDS.glob(f"{language}-????????????????"):
            if old.stat().st_mtime < time.time() - KEPT:  # else another run may be using it
                shutil.rmtree(old)
        made.mkdir()
        try:
            LANGUAGES[language].build(SOURCES / language, made)
        except BuildFailure as exc:
            shutil.rmtree(made)
            return str(exc)
        except BaseException:
            shutil.rmtree(made)
            raise
        finished.touch()
        return made


def build_program(language: str, program: str) -> list[str]:
    """The command that starts *program* of tests/peers/*language*.

    Where it cannot be built the test is skipped with the reason, and fails where CI=true.
    """
    made = _built(language)
    if isinstance(made, Path):
        return LANGUAGES[language].command(made, program)
    reason = f"the {language} peer cannot be built: {made}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def versions() -> dict[str, str]:
    """The version of each implementation, as its package file pins it."""
    go = (SOURCES / "go/go.mod").read_text("utf-8").split()
    cargo = tomllib.loads((SOURCES / "rust/Cargo.toml").read_text("utf-8"))
    lines = (SOURCES / "python/requirements.txt").read_text("utf-8").splitlines()
    python = dict(line.split("==") for line in lines if "==" in line)
    npm = (SOURCES / "javascript/package.json").read_text("utf-8")
    javascript = npm.split('"@chainsafe/libp2p-yamux": "')[1].split('"')[0]
    return {
        "hashicorp": go[go.index("github.com/hashicorp/yamux") + 1],
        "go-libp2p": go[go.index("github.com/libp2p/go-yamux/v5") + 1],
        "rust": cargo["dependencies"]["yamux"].removeprefix("="),
        "py-libp2p": python["libp2p"],
        "js-libp2p": javascript,
    }
