"""How results become the table, and that the committed table is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.conformance import Result, cell, render, save
from support.peers import IMPLEMENTATIONS
from support.tree import ROOT


def result(outcome: str, note: str = "", name: str = "rust") -> Result:
    return Result(110, "open and close", name, "client", "tcp", outcome, note)


@pytest.mark.parametrize(
    ("outcomes", "text"),
    [
        (["passed", "passed"], "pass 2/2"),
        (["passed", "failed"], "FAIL 1/2"),
        (["failed", "skipped"], "FAIL 0/1"),
        (["passed", "skipped"], "pass 1/1"),
        (["skipped", "skipped"], "skip"),
        ([], "not run"),
    ],
)
def test_a_cell_sums_up_its_runs(outcomes: list[str], text: str) -> None:
    assert cell([result(outcome) for outcome in outcomes], {}) == text


def test_a_deviation_counts_as_passed_and_gets_a_letter_once() -> None:
    notes: dict[str, str] = {}
    assert cell([result("deviation", "is lazy"), result("deviation", "is lazy")], notes) == (
        "pass 2/2 a"
    )
    assert cell([result("passed"), result("deviation", "is late")], notes) == "pass 2/2 b"
    assert notes == {"rust: is lazy": "a", "rust: is late": "b"}


def test_the_page_has_a_column_for_each_peer_and_a_row_for_each_case(tmp_path: Path) -> None:
    results = [result("passed", name=found.name) for found in IMPLEMENTATIONS[:-1]]
    other = Result(201, "reaches a service", "Go relay", "", "ws", "passed")
    save([*results, result("deviation", "is lazy"), other], tmp_path / "results.json")
    page = render(tmp_path / "results.json")
    assert "| 110 open and close | pass 1/1 | pass 1/1 | pass 2/2 a | pass 1/1 | not run |" in page
    assert "- **a**: rust: is lazy" in page
    assert "| Go relay | reaches a service | pass 1/1 |" in page
    assert all(f"**{found.name}**: {found.package} " in page for found in IMPLEMENTATIONS)


def test_the_committed_table_has_every_peer_and_no_failure() -> None:
    page = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    assert "FAIL" not in page
    assert "not run" not in page
    assert all(f" {found.name} |" in page for found in IMPLEMENTATIONS)
