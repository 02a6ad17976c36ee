"""What `--help` says: each command has an example that calls it, and each example can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from support.typed_commands import COMMANDS, PROGRAMS, unknown_in


def calls_in(epilog: str) -> Iterator[list[str]]:
    """The words of each call of our programs in the examples."""
    examples = epilog.partition("Example")[2].partition("\b")[0]
    for line in examples.replace("\\\n      ", "").splitlines():
        if not re.match(r"  \S", line):
            continue  # what the line above it does
        lexer = shlex.shlex(line.replace("$(", "("), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        call: list[str] = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[;&|()<>]+", word) or word == "--":
                if call[:1] and call[0] in PROGRAMS:
                    yield call
                call = []
            elif call or word in PROGRAMS:
                call.append(word)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_example_that_can_be_typed(name: str) -> None:
    epilog = COMMANDS[name].epilog or ""
    assert re.search(r"^Examples?:$", epilog, re.MULTILINE), "it has no example"
    calls = list(calls_in(epilog))
    assert any(" ".join(call).startswith(name) for call in calls), "no example calls it"
    for program, *words in calls:
        assert unknown_in(program, words) is None, (program, words)


def test_calls_are_found_in_examples() -> None:
    """Else the test above would look at nothing."""
    text = "\b\nExamples:\n  (umask 077; tunnelmux-api keys new > f)\n      Not tunnelmux ls.\n"
    assert list(calls_in(text)) == [["tunnelmux-api", "keys", "new"]]
    text = "\b\nExample:\n  tunnelmux ls --json | jq -r '.[].name'\n\b\nSo tunnelmux ls.\n"
    assert list(calls_in(text)) == [["tunnelmux", "ls", "--json"]]
