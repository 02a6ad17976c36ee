"""docs/operations.md names all that operators look up in it, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from support.tree import ROOT, SOURCE
from tunnelmux.http.refusal import REASONS

PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")

DAEMONS = [
    path
    for folder in (
        *("agent", "api", "backend", "cli", "directory", "gateway", "observability", "proxy"),
        "ssh",
    )
    for path in sorted((SOURCE / folder).rglob("*.py"))
]

LOGGING = [*DAEMONS, *sorted((SOURCE / "registry").rglob("*.py"))]

LEVELS = {"info", "warning", "error", "exception"}

TOLD_TOGETHER = re.compile(r"unhandled error|stream failed")
"""Bugs: the page says what to do about all of them."""


def calls() -> Iterator[ast.Call]:
    for path in LOGGING:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield node


def texts(call: ast.Call) -> list[str]:
    return [
        value.value
        for value in call.args
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]


def logged_events() -> set[str]:
    """Every event that is written out where it is logged, from level info up."""
    events = set()
    for call in calls():
        match call.func, texts(call):
            case ast.Attribute(ast.Name("_log" | "log"), level), [event, *_] if level in LEVELS:
                events.add(event)
            case ast.Name("frequent_line"), [_, event, *_]:
                events.add(event)
    return events


def metrics() -> set[str]:
    sources = "\n".join(path.read_text("utf-8") for path in DAEMONS)
    return set(re.findall(r'"(tunnelmux_[a-z_]+)"', sources))


def test_every_reason_is_explained() -> None:
    assert [reason for reason in REASONS if f"`{reason}`" not in PAGE] == []


def test_every_metric_is_explained() -> None:
    found = metrics()
    assert len(found) > 10
    assert sorted(name for name in found if f"`{name}" not in PAGE) == []


def test_every_metric_of_the_page_exists() -> None:
    named = set(re.findall(r"\btunnelmux_[a-z_]+", PAGE))
    assert named - metrics() == {f"{name}_total" for name in metrics()} & named


def test_every_event_is_explained() -> None:
    found = logged_events()
    assert len(found) > 30
    missing = {event for event in found if f"`{event}`" not in PAGE}
    assert {event for event in missing if TOLD_TOGETHER.search(event) is None} == set()
