"""Every input that a fuzzer once found worth keeping, without the fuzzer."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

CORPUS = Path(__file__).with_name("corpus")
TARGETS = sorted(folder.name for folder in CORPUS.iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_every_kept_input_is_accepted_or_refused_as_promised(target: str) -> None:
    one_input = importlib.import_module(f"fuzz.{target}").one_input
    files = sorted((CORPUS / target).iterdir())
    assert files
    for file in files:
        try:
            one_input(file.read_bytes())
        except Exception as error:
            error.add_note(f"with the input {file.relative_to(CORPUS)}")
            raise


def test_every_target_has_a_corpus() -> None:
    modules = {path.stem for path in CORPUS.parent.glob("*.py")}
    assert modules - {"__main__", "one", "test_corpus"} == set(TARGETS)
