"""Wheels, built where npm is there and where it is not, each installed into an environment of its
own: the console works, and has terminals and a player or says how to get them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

LOOK = """
import json, logging, tempfile, trio
from pathlib import Path
from tunnelmux.api.quickstart import OWNER
from tunnelmux.cli.demo.console_cast import ACCOUNT
from tunnelmux.cli.demo.console_stage import ConsolePorts, running_console
from tunnelmux.cli.demo.console_visitor import visiting
from tunnelmux.observability import configure_logs

async def main(folder):
    async with running_console(lambda said: None, folder, preferred=ConsolePorts()) as stage:
        async with visiting(stage.url) as visitor:
            await visitor.sign_in(OWNER)
            [camera] = (await visitor.api("GET", "/api/devices?name=camera"))["items"]
            await visitor.type_in_terminal(camera["id"], ACCOUNT, "uptime")
            [recording] = (await visitor.api("GET", "/api/recordings"))["items"]
            pages = {"overview": "/", "terminal": f"/devices/{camera['id']}/terminal?account=demo",
                     "player": f"/recordings/{recording['id']}"}
            shown = {name: (await visitor.get(path)).text for name, path in pages.items()}
            print(json.dumps(shown))

configure_logs("error")
with tempfile.TemporaryDirectory() as folder:
    trio.run(main, Path(folder))
"""


def run(*command: str | Path, cwd: Path, path: str | None = None) -> str:
    """What the command prints; with `path` as its PATH."""
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, whose wheels take the modules that are compiled here already."""
    copy = tmp_path_factory.mktemp("wheels") / "copy"
    made = (".git", ".venv", "build", "dist", "*.egg-info", "*cache*", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*made, "*.so"))
    shutil.rmtree(copy / "src" / "tunnelmux" / "console" / "vendor", ignore_errors=True)
    compiled = copy / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    tomorrow = time.time() + 86_400  # newer than the C that is made from their sources
    for module in (ROOT / "src").rglob("*.so"):
        target = compiled / module.relative_to(ROOT / "src")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, target)
        os.utime(target, (tomorrow, tomorrow))
    return copy


def build(tree: Path, folder: Path, path: str | None = None) -> Path:
    words = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w")
    run(sys.executable, *words, folder, ".", cwd=tree, path=path)
    [wheel] = folder.glob("tunnelmux-*.whl")
    return wheel


def pages_of(wheel: Path, folder: Path) -> dict[str, str]:
    """The pages of a console that was installed from this wheel and nothing else."""
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[quickstart]", cwd=folder)
    short = Path(environment, "look.py")
    short.write_text(LOOK)
    pages: dict[str, str] = json.loads(run(python, short, cwd=folder))
    assert "<h1>Overview</h1>" in pages["overview"]
    return pages


def without_npm(folder: Path) -> str:
    """A PATH with all the programs of the real one but npm."""
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            if program.name != "npm":
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program)
    return str(folder)


def vendored(wheel: Path) -> set[str]:
    names = zipfile.ZipFile(wheel).namelist()
    return {Path(name).name for name in names if "/console/vendor/" in name}


def test_wheels_with_and_without_npm(
    tree: Path, tmp_path: Path, debian_program: Callable[[str, str], str]
) -> None:
    debian_program("npm", "npm")
    wheel = build(tree, tmp_path / "without", without_npm(tmp_path / "programs"))
    assert vendored(wheel) == set()
    pages = pages_of(wheel, tmp_path / "without")
    for name in ("terminal", "player"):
        assert "make vendor" in pages[name], name
        assert "tm-" + name not in pages[name], name
    wheel = build(tree, tmp_path / "with")
    pinned = json.loads((ROOT / "src/tunnelmux/console/vendor.json").read_text())["packages"]
    scripts = {Path(file).name for one in pinned for file in one["files"]}
    assert {name for name in scripts if name.endswith((".mjs", ".css"))} <= vendored(wheel)
    assert len([name for name in vendored(wheel) if name.endswith(".LICENSE")]) == len(pinned)
    pages = pages_of(wheel, tmp_path / "with")
    for name in ("terminal", "player"):
        assert "make vendor" not in pages[name], name
        assert "<tm-" + name in pages[name], name
