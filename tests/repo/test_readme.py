"""What the README and the pages of docs/ show can be copied and run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.tree import ROOT
from support.typed_commands import unknown_in

README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.slow  # it starts a Python
def test_the_example_of_the_library_runs_by_itself(tmp_path):
    section = README.partition("## As a library")[2]
    [program, *_] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    # It needs no proxy and takes no device's place.
    assert "token" not in program
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (result.stderr, result.stdout) == ("", "b'hello'\n")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^|[;&|(]|\$ )\s*(tunnelmux(?:-[a-z]+)?) ([^\n]*)")


def typed_lines(text: str) -> Iterator[str]:
    """The lines of a page that stand in blocks for a shell."""
    language = None
    for line in text.splitlines():
        if line.startswith("```"):
            language = line[3:] if language is None else None
        elif language in {"sh", ""} or (language is None and line.startswith("    ")):
            yield line


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The programs of ours that are called there, and their words."""
    for line in typed_lines(text):
        for name, rest in COMMAND.findall(line):
            lexer = shlex.shlex(rest, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = []
            for word in lexer:
                if word == "--" or re.fullmatch(r"[;&|()<>]+", word):
                    break  # what follows is another program's
                words.append(word)
            yield name, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_and_each_option_that_is_shown_exists(page: Path) -> None:
    for name, words in commands(page.read_text("utf-8")):
        assert unknown_in(name, words) is None, (name, words)


def test_the_words_of_commands_are_found() -> None:
    """Else the test above would look at nothing."""
    found = list(commands(README))
    assert len(found) > 15
    assert ("tunnelmux-proxy", ["check", "--config", "proxy.toml"]) in found
    assert ("tunnelmux", ["ssh", "dev1"]) in found
    assert unknown_in("tunnelmux", ["ls", "--nonsense"]) == "--nonsense"
    assert unknown_in("tunnelmux", ["nonsense"]) == "nonsense"
    assert unknown_in("tunnelmux-proxy", ["check", "--nonsense", "x"]) == "--nonsense"


@pytest.mark.slow  # it starts three programs
def test_the_files_of_the_readme_are_sound_as_they_stand(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    named = {next(iter(tomllib.loads(block))): block for block in blocks}
    for secret in ("dev1.token", "internal.secret"):
        (tmp_path / secret).write_text("0123456789abcdef" * 4)
    keys = [sys.executable, str(ROOT / "cmd" / "tunnelmux-api"), "keys", "new"]
    (tmp_path / "session-keys").write_bytes(subprocess.run(keys, stdout=-1, check=True).stdout)
    for secret in ("dev1.token", "internal.secret", "session-keys"):
        (tmp_path / secret).chmod(0o600)
    for program, table in (("proxy", "tunnel"), ("agent", "proxy"), ("api", "api")):
        (tmp_path / f"{program}.toml").write_text(named[table])
        launcher = str(ROOT / "cmd" / f"tunnelmux-{program}")
        done = subprocess.run(
            [sys.executable, launcher, "check", "--config", f"{program}.toml"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("# OK")
