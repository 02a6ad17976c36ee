"""What the package shows to the world, and what must not stand beside it."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import subprocess
import sys
import tomllib

import pytest

import tunnelmux
from support.tree import ROOT, SOURCE

PUBLIC = {"Limits", "Session", "Stream", "__version__", "connect", "errors", "serve"}

COMPILED = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in SOURCE.rglob("*.pyx")
)


def test_public_names_are_exactly_these() -> None:
    assert sorted(tunnelmux.__all__) == sorted(PUBLIC)
    assert all(hasattr(tunnelmux, name) for name in PUBLIC)


def test_version_is_the_installed_one() -> None:
    assert tunnelmux.__version__ == importlib.metadata.version("tunnelmux")


@pytest.mark.parametrize("name", COMPILED)
def test_module_is_compiled_and_described(name: str) -> None:
    module = importlib.import_module(f"tunnelmux.{name}")
    assert module.__file__ is not None
    assert module.__file__.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))
    assert (SOURCE / name.replace(".", "/")).with_suffix(".pyi").is_file()


def test_types_are_announced() -> None:
    assert (SOURCE / "py.typed").is_file()


def test_cmd_does_not_shadow_the_standard_module() -> None:
    assert list((ROOT / "cmd").rglob("__init__.py")) == []
    done = subprocess.run(
        [sys.executable, "-c", "import cmd, pdb; print(cmd.Cmd.__name__, pdb.Pdb.__name__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "Cmd Pdb\n"


@pytest.mark.slow
@pytest.mark.parametrize("program", ["tunnelmux", "tunnelmux-agent", "tunnelmux-proxy"])
def test_launcher_starts_its_program_and_passes_on_the_exit_status(program: str) -> None:
    def launch(argument: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, f"cmd/{program}", argument],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    shown = launch("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("Usage:")
    assert launch("--no-such-flag").returncode == 2


def test_every_program_has_a_folder_under_cmd_and_a_console_script() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    scripts = settings["project"]["scripts"]
    assert sorted(path.name for path in (ROOT / "cmd").iterdir()) == sorted(scripts)
    for program, target in scripts.items():
        launcher = (ROOT / "cmd" / program / "__main__.py").read_text("utf-8")
        module, function = target.split(":")
        assert f"from {module} import {function}" in launcher


@pytest.mark.parametrize(
    ("program", "config"),
    [
        ("tunnelmux-proxy", "proxy.toml"),
        ("tunnelmux-agent", "agent.toml"),
        ("tunnelmux-api", "api.toml"),
    ],
)
def test_systemd_unit_runs_the_daemon_hardened(program: str, config: str) -> None:
    unit = (ROOT / "cmd" / program / f"{program}.service").read_text("utf-8").splitlines()
    assert f"ExecStart=/opt/tunnelmux/bin/{program} --config /etc/tunnelmux/{config}" in unit
    assert (ROOT / "cmd" / program / config).is_file()
    assert {
        "DynamicUser=yes",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "Restart=always",
    } <= set(unit)
    # It hides /proc/stat, without which the proxy's metrics say nothing of the process.
    assert ("ProcSubset=pid" in unit) == (program == "tunnelmux-agent")
    assert ("ExecReload=/bin/kill -HUP $MAINPID" in unit) == (program != "tunnelmux-api")
