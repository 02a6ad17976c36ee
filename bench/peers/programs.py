"""Peers' programs: those on PATH first, then what Go's and Rust's ordinary clients build."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from bench.peers.tunnel import Unavailable
from bench.tree import BUILDS, HERE

GO_SOURCES = HERE / "peers" / "go"
"""One folder per Go module: our own, and those that pin the version of somebody else's."""

BUILD_TIMEOUT = 900.0
"""Seconds one build may take: a cold Rust build on two cores takes two minutes."""


def find_program(name: str) -> str | None:
    """On PATH, or where Debian keeps daemons."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


GO_CACHE = BUILDS / "go-cache"
"""What Go compiled, so that a build leaves nothing else behind and a second one is quick."""


def build_go(folder: str, packages: tuple[str, ...]) -> Path:
    """The folder with the programs of *packages*, built in the module peers/go/*folder*."""
    source = GO_SOURCES / folder
    go = require_toolchain("go", "golang-go")
    made = BUILDS / f"{folder}-{fingerprint(source)}"

    def build() -> None:
        copy = made / "source"  # a build may not touch go.mod, but nothing else holds it to that
        shutil.copytree(source, copy)
        run([go, "build", "-mod=mod", "-o", f"{made}{os.sep}", *packages], copy)

    return _build_once(made, build)


def install_go(package: str, version: str) -> Path:
    """The folder with the program of `go install package@version`."""
    go = require_toolchain("go", "golang-go")
    made = BUILDS / f"{package.rpartition('/')[2]}-{version}"
    return _build_once(
        made, lambda: run([go, "install", f"{package}@{version}"], made, GOBIN=str(made))
    )


def install_cargo(crate: str, version: str) -> Path:
    """The folder with the programs of `cargo install crate`."""
    cargo = require_toolchain("cargo", "cargo")
    made = BUILDS / f"{crate}-{version}"

    def build() -> None:
        command = [cargo, "install", "--quiet", "--root", str(made), "--version", version, crate]
        try:
            run([*command, "--locked"], made)
        except Unavailable:  # an old lock file may not suit a new compiler
            run(command, made)

    return _build_once(made, build) / "bin"


def pinned_version(folder: str, module: str) -> str:
    """The version that peers/go/*folder* asks for."""
    text = (GO_SOURCES / folder / "go.mod").read_text("utf-8")
    match = re.search(rf"{re.escape(module)} (v\S+)", text)
    return match[1] if match else "unknown"


def reported_version(*command: str) -> str:
    """The first line a program prints about itself."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


def require_toolchain(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"it is built with {name}: apt-get install {package}")
    return found


def fingerprint(source: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(source.iterdir()):
        digest.update(f"{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def run(command: list[str], folder: Path, **environment: str) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "GOCACHE": str(GO_CACHE), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"building it took longer than {BUILD_TIMEOUT:.0f} s") from None
    if done.returncode:
        lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
        telling = [line for line in lines if "error" in line.lower()] or lines[-1:]
        # A registry's address says nothing that helps, and does not belong into a result.
        reason = re.sub(r"\S*https?://\S+:? ?", "", " ".join(telling[-2:]))
        raise Unavailable(f"{Path(command[0]).name} {command[1]} failed: {reason[:300]}")


def _build_once(made: Path, build: Callable[[], None]) -> Path:
    """Build into *made* unless that was done, or did not work, before."""
    finished, failed = made / "finished", made.with_name(f"{made.name}.failed")
    if finished.is_file():
        return made
    if failed.is_file():
        again = f"remove build/{BUILDS.name}/{failed.name} to try again"
        raise Unavailable(f"{failed.read_text('utf-8')} (then; {again})")
    shutil.rmtree(made, ignore_errors=True)  # a build that was interrupted
    made.mkdir(parents=True)
    print(f"building {made.name}", flush=True)
    try:
        build()
    except Unavailable as exc:
        shutil.rmtree(made)
        failed.write_text(str(exc))
        raise
    except BaseException:
        shutil.rmtree(made)
        raise
    finished.touch()
    return made
