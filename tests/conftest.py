"""What every test may ask for."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog
import trio

from support.browser import BrowserPage, browser_page
from support.daemons import DaemonSet
from support.programs import require_program

# No deadline: on a busy machine an example takes longer than 200 ms now and then. The same examples
# each time, from no one's memory: a run that fails by chance says nothing about the commit. What
# is drawn anew each time are the targets of `make fuzz`.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


def pytest_configure() -> None:
    """Let SIGINT do what it does at a terminal. A script's background job begins with it ignored,
    and so would the programs that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--interop",
        action="store_true",
        help="run every case with every other yamux implementation (some minutes)",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="run the tests that show the same as others, for longer (a few minutes)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `--long` asks for."""
    if config.getoption("--long"):
        return
    long = {item for item in items if item.get_closest_marker("long")}
    config.hook.pytest_deselected(items=list(long))
    items[:] = [item for item in items if item not in long]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that should have the slow mark."""
    long = [
        report
        for report in terminalreporter.getreports("passed")
        if report.when == "call" and report.duration > 1 and "slow" not in report.keywords
    ]
    if long:
        terminalreporter.section("over a second, without the slow mark", "-")
    for report in sorted(long, key=lambda report: -report.duration):
        terminalreporter.write_line(f"{report.duration:6.2f} s  {report.nodeid}")


@pytest.fixture
async def daemons(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DaemonSet]:
    """Starts processes; at the end none of them has shown a secret or a traceback."""
    async with trio.open_nursery() as nursery:
        started = DaemonSet(tmp_path, nursery, tmp_path_factory.getbasetemp() / "bytecode")
        try:
            yield started
        finally:
            await started.finish()
    started.check()


@pytest.fixture
def chromium() -> str:
    """The path of Chromium, or a skip that says what to install."""
    return require_program("chromium", "chromium")


@pytest.fixture
async def page(chromium: str, tmp_path: Path) -> AsyncIterator[BrowserPage]:
    """A tab of Chromium, which knows of nothing yet."""
    async with browser_page(chromium, tmp_path / "profile") as tab:
        yield tab


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """What sets up the log of its process, as commands do, does so for one test only."""
    yield
    structlog.reset_defaults()
    root = logging.getLogger()
    root.handlers = [
        handler for handler in root.handlers if not type(handler).__module__.startswith("tunnelmux")
    ]


@pytest.fixture
def debian_program() -> Callable[[str, str], str]:
    """`debian_program("sshd", "openssh-server")` is the path of sshd, or a skip that says why."""
    return require_program
