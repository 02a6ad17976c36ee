"""The source distribution has all that its tests need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support.tree import ROOT, SOURCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

START = [
    "tests/repo/test_layers.py",
    "tests/repo/test_package.py",
    "tests/config/test_samples.py",
    "tests/mux/test_frame.py",
]
"""What is run: what reads the tree, what reads samples, and what needs the compiled modules."""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that an sdist of this one holds."""
    folder = tmp_path_factory.mktemp("sdist")
    # From a copy: building leaves files behind, and another test may look at the tree meanwhile.
    copy = folder / "copy"
    made = (".git", ".venv", "build", "dist", "*.egg-info", "*cache*", ".hypothesis", "*.so")
    left_out = shutil.ignore_patterns(*made)
    shutil.copytree(ROOT, copy, ignore=left_out)
    code = f"import setuptools.build_meta as b; print(b.build_sdist({str(folder)!r}))"
    # The compiled modules are sources only: making C of them takes ten seconds.
    made_of = run(sys.executable, "-c", code, cwd=copy, TUNNELMUX_SKIP_COMPILE="1")
    name = made_of.splitlines()[-1]
    with tarfile.open(folder / name) as archive:
        archive.extractall(folder, filter="data")
    return folder / name.removesuffix(".tar.gz")


def test_every_file_of_the_repository_is_in_it(unpacked: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no repository")
    files = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    there = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*")}
    assert [file for file in files if file and file not in there] == []
    strays = {".so", ".c", ".pyc"} & {path.suffix for path in unpacked.rglob("*")}
    assert strays == set()


def test_its_tests_run_from_it(unpacked: Path) -> None:
    for module in SOURCE.rglob("*.so"):  # compiling them anew takes minutes
        shutil.copy2(module, unpacked / "src" / "tunnelmux" / module.relative_to(SOURCE))
    environment = {"PYTHONPATH": str(unpacked / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import tunnelmux; print(tunnelmux.__file__)"
    where = run(sys.executable, "-c", code, cwd=unpacked, **environment)
    assert where.startswith(str(unpacked))
    pytest_with = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run(*pytest_with, "-m", "not slow", *START, cwd=unpacked, **environment)
