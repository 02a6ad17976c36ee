"""Build the compiled modules; everything else is in pyproject.toml.

Four variables of the environment change the build (CONTRIBUTING.md shows their use):

- TUNNELMUX_ANNOTATE=1 writes build/cython/**/*.html, where yellow lines are calls into Python;
- TUNNELMUX_SANITIZE=1 compiles with the address and undefined-behaviour sanitizers;
- TUNNELMUX_FUZZ=1 has every branch counted for libFuzzer: with CC=clang, for gcc cannot;
- TUNNELMUX_SKIP_COMPILE=1 compiles nothing: for an editable install, whose own build would be
  thrown away, before `build_ext --inplace`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py


def asked_for(variable: str) -> bool:
    return os.environ.get(variable, "") not in {"", "0"}


def module_name(source: Path) -> str:
    return ".".join(source.relative_to("src").with_suffix("").parts)


if asked_for("TUNNELMUX_SANITIZE"):
    compile_args = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    link_args = ["-fsanitize=address,undefined"]
elif asked_for("TUNNELMUX_FUZZ"):
    # What -fsanitize=fuzzer-no-link stands for, apart from the depth of the stack: that one needs
    # a thread-local variable of libFuzzer's, which a Python extension module cannot give.
    coverage = "inline-8bit-counters,pc-table,trace-cmp,indirect-calls"
    compile_args = ["-O1", "-g", f"-fsanitize-coverage={coverage}"]
    link_args = []
else:
    compile_args = ["-O3"]
    link_args = []

# The pump stands on epoll; elsewhere Trio's streams carry the bytes.
only_on_linux = {
    f"tunnelmux.pump.{n}"
    for n in (
        *("epoll", "pump_socket", "sockets", "passing", "tunnel", "relay", "legs", "http_relay"),
    )
}

extensions = [
    Extension(
        module_name(path),
        [path.as_posix()],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for path in sorted(Path("src/tunnelmux").rglob("*.pyx"))
    if not asked_for("TUNNELMUX_SKIP_COMPILE")
    and (sys.platform == "linux" or module_name(path) not in only_on_linux)
]


class BuildPackage(build_py):
    """A wheel has what the console serves from elsewhere, wherever npm can fetch it."""

    def run(self) -> None:
        if not asked_for("TUNNELMUX_SKIP_COMPILE"):
            subprocess.run([sys.executable, ".ci/vendor"], check=False)  # it says what is missing
        super().run()


setup(
    cmdclass={"build_py": BuildPackage},
    ext_modules=cythonize(
        extensions,
        annotate=asked_for("TUNNELMUX_ANNOTATE"),
        build_dir="build/cython",
        include_path=["src"],
        compiler_directives={"language_level": 3, "binding": True, "embedsignature": True},
    ),
)
