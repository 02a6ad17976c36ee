"""What people are told stands whole in the log: nothing in it looks like a secret."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from support.tree import ROOT, SOURCE
from tunnelmux.observability.logs import without_secrets

SHOWN_ELSEWHERE = {
    "src/tunnelmux/agent/rotation.py",  # in an answer to a proxy
    "src/tunnelmux/api/gate.py",  # WWW-Authenticate
    "src/tunnelmux/cli/sign_in.py",  # an example of --help
    "src/tunnelmux/proxy/internal/access.py",  # in an answer of the internal API
    "src/tunnelmux/proxy/internal/answers.py",  # in its description
}


def texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """Sentences that are no docstrings."""
    about = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in about and " " in node.value:
            yield node


@pytest.mark.slow  # it reads the whole source
def test_no_sentence_for_people_is_taken_for_a_secret() -> None:
    """ "its token: stop one of the two" came out as "its token: *** one of the two"."""
    cut = [
        f"{path}:{text.lineno}: {without_secrets(text.value)}"
        for path in sorted(SOURCE.rglob("*.py"))
        if str(path.relative_to(ROOT)) not in SHOWN_ELSEWHERE
        for text in texts(ast.parse(path.read_text("utf-8")))
        if without_secrets(text.value) != text.value
    ]
    assert cut == []
