"""Live sessions with other implementations, and the record that docs/conformance.md is made of.

A plain run takes the short cases with each implementation; `--interop` (`make interop`) takes all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import NoReturn

import pytest

from support.conformance import RESULTS, Result, save
from support.peer_process import Link, linked
from support.peers import IMPLEMENTATIONS, ROLES, TRANSPORTS, Implementation

RECORD = pytest.StashKey[list[Result]]()
DEVIATIONS = pytest.StashKey[list[str]]()

Recorder = Callable[[str, str, str, str, str], None]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "case(number, title, peer=None): its row in docs/conformance.md"
    )
    config.addinivalue_line("markers", "whole_table: runs with --interop only")
    config.addinivalue_line("markers", "peer_options(language=options): given to the peer's listen")
    config.stash[RECORD] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each case runs with each implementation, in each role of ours, over each transport."""
    wanted = metafunc.fixturenames
    if "implementation" in wanted:
        metafunc.parametrize("implementation", IMPLEMENTATIONS, ids=lambda found: found.name)
    if "role" in wanted:
        metafunc.parametrize("role", ROLES)
    if "transport" in wanted:
        metafunc.parametrize("transport", TRANSPORTS)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(config.rootpath / "tests/interop")]
    for item in ours:
        if item.get_closest_marker("timeout") is None:
            # The first test of a peer may have to build it: only the test's own time counts.
            item.add_marker(pytest.mark.timeout(60, func_only=True))
    if config.getoption("--interop"):
        return
    left_out = [item for item in ours if item.get_closest_marker("whole_table")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(autouse=True)
def built_peer(request: pytest.FixtureRequest) -> None:
    """Build the peer in the test's set-up, which is what its time limit leaves out: pytest-trio
    counts asynchronous fixtures as part of the test, and a first Rust build takes minutes."""
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    if "implementation" in params:
        params["implementation"].command()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None] | pytest.TestReport:
    """Note each case's outcome; a test that records its own is left alone."""
    report: pytest.TestReport = yield
    marker = item.get_closest_marker("case")
    params = getattr(getattr(item, "callspec", None), "params", {})
    if marker is None:
        return report
    peer = (
        params["implementation"].name if "implementation" in params else marker.kwargs.get("peer")
    )
    if peer is None:
        return report
    if report.when == "call" or report.outcome != "passed":
        notes = item.stash.get(DEVIATIONS, [])
        outcome = "deviation" if report.passed and notes else report.outcome
        if report.skipped and not notes and isinstance(report.longrepr, tuple):
            notes = [report.longrepr[2].removeprefix("Skipped: ")]
        item.config.stash[RECORD].append(
            Result(
                case=marker.args[0],
                title=marker.args[1],
                implementation=peer,
                role=params.get("role", ""),
                transport=params.get("transport", "ws"),
                outcome=outcome,
                note="; ".join(notes),
            )
        )
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.stash[RECORD] and session.config.getoption("--interop"):
        save(session.config.stash[RECORD], RESULTS)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[float, str], Recorder]:
    """`record(number, title)` notes `(implementation, role, transport, outcome, note)`, for a test
    that runs many ways itself."""
    kept = request.config.stash[RECORD]

    def case(number: float, title: str) -> Recorder:
        return lambda *result: kept.append(Result(number, title, *result))

    return case


@pytest.fixture
def deviation(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`deviation("what the peer does instead")`: noted beside the result, once it was seen."""
    return partial(list.append, request.node.stash.setdefault(DEVIATIONS, []))


@pytest.fixture
def leave_out(deviation: Callable[[str], None]) -> Callable[[str], NoReturn]:
    """`leave_out("why")` skips; pytest-trio would lose the reason of a skip inside a nursery."""

    def skip(reason: str) -> NoReturn:
        deviation(reason)
        pytest.skip(reason)

    return skip


@pytest.fixture
async def link(
    implementation: Implementation, role: str, transport: str, request: pytest.FixtureRequest
) -> AsyncIterator[Link]:
    """A session with a fresh peer; what `peer_options` says for its language goes to it."""
    marker = request.node.get_closest_marker("peer_options")
    options = marker.kwargs.get(implementation.language, "") if marker else ""
    async with linked(implementation, role, transport, options=options) as made:
        yield made
