"""python tests/fuzz/one.py TARGET [FOLDER ...] [-libfuzzer_option=...]: atheris runs one target.

The compiled modules that are imported must be those of `make fuzz`, built so that libFuzzer sees
their branches; Python modules are instrumented by atheris when they are imported.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

INSTRUMENTED = ["tunnelmux.http", "tunnelmux.transports", "h11", "wsproto"]


def main() -> None:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # libFuzzer lives in one of atheris's extension modules. Loaded for all to see, it counts the
    # branches of our compiled modules too: they were compiled to call it.
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_GLOBAL | os.RTLD_NOW)
    core = importlib.import_module("atheris.core_with_libfuzzer")
    sys.modules["atheris.core_without_libfuzzer"] = core  # else atheris would load a second one
    sys.setdlopenflags(flags)
    import atheris

    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module(f"fuzz.{name}")
    atheris.Setup(sys.argv, target.one_input)
    atheris.Fuzz()


main()
