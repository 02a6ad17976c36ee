"""What the README shows can be copied and run."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support.tree import ROOT

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
