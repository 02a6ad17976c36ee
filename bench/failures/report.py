"""What a failure cost: figures from the requests, and the page that publishes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.failures.scenarios import Scenario
from bench.failures.stage import DEVICES
from bench.failures.visitors import THINK, TIMEOUT, VISITORS, Request
from bench.tree import ROOT

__all__ = ["PAGE", "Outcome", "judge", "write_page"]

PAGE = ROOT / "docs" / "failures.md"
SOON = 5.0
"""Seconds after which no new request should fail."""


@dataclass(frozen=True)
class Outcome:
    """The figures of one failure. Seconds count from its begin."""

    scenario: Scenario
    requests: int
    in_flight: int
    """Requests that had begun before and got no answer, also where asking once more helped."""
    new: int
    """Failed requests that began afterwards."""
    late: int
    """Those of them that began more than SOON seconds afterwards."""
    until: float
    """When the last request failed; 0 where none did."""
    longest: float
    """The longest wait for an answer of 200."""
    wrong: int
    """Answers from another device than the one that was asked for."""
    problems: dict[str, int]

    def line(self) -> str:
        """The figures in one line, for the terminal."""
        problems = ", ".join(f"{count} x {what}" for what, count in self.problems.items())
        return (
            f"{self.requests} requests, failed: {self.in_flight} in flight, {self.new} new, "
            f"{self.late} late; last at {self.until:.1f} s; longest wait {self.longest:.1f} s; "
            f"wrong device: {self.wrong}{'; ' + problems if problems else ''}"
        )


def judge(scenario: Scenario, requests: Iterable[Request], began: float) -> Outcome:
    """The outcome of a failure that began then."""
    seen = [request for request in requests if request.ended >= began]
    failed = [request for request in seen if request.problem]
    before = [request for request in seen if request.began < began]
    new = [request for request in failed if request.began >= began]
    return Outcome(
        scenario=scenario,
        requests=len(seen),
        in_flight=sum(bool(request.problem or request.retried) for request in before),
        new=len(new),
        late=sum(request.began > began + SOON for request in new),
        until=max((request.ended - began for request in failed), default=0.0),
        longest=max((x.ended - x.began for x in seen if not x.problem), default=0.0),
        wrong=sum(bool(request.wrong) for request in seen),
        problems=dict(Counter(request.problem for request in failed).most_common()),
    )


INTRODUCTION = f"""\
# What a failure costs

This page is made by `make failures`, from a whole run. {VISITORS} visitors ask for {DEVICES}
devices, each one over a connection of its own that it keeps, every {THINK:g} s on average. As
browsers do, a visitor whose kept connection has ended asks once more on a new one, at the next
proxy; it gives a request up after {TIMEOUT:g} s. Devices dial a load balancer that leads to each
proxy in turn. Everything runs on one machine, so the figures tell what the programs do, and not
what a network adds.

A request that is *in flight* at a process that dies gets no answer, and one that changes something
must not be sent again. What counts for an operator is whether *new* requests fail, and until when.

"""

COLUMNS = (
    "failure",
    "requests",
    "in flight, lost",
    "new, failed",
    f"of these after {SOON:g} s",
    "last one failed at",
    "longest wait for a 200",
)


def write_page(outcomes: Sequence[Outcome], where: Mapping[str, object]) -> None:
    """Write docs/failures.md."""
    lines = [row(COLUMNS), row(["---"] * len(COLUMNS))]
    lines += [row(cells(outcome)) for outcome in outcomes]
    wrong = sum(outcome.wrong for outcome in outcomes)
    total = sum(outcome.requests for outcome in outcomes)
    lines += [
        "",
        f"Answers from another device than the one that was asked for: {wrong} of {total:,}.",
        "",
        "What the failed requests met:",
        "",
    ]
    for outcome in outcomes:
        if outcome.problems:
            met = ", ".join(f"{count} times {what}" for what, count in outcome.problems.items())
            lines.append(f"- {outcome.scenario.title}: {met}.")
    lines += [
        "",
        MEASURED.format_map(where),
        "",
        NOT_MEASURED,
    ]
    PAGE.write_text(INTRODUCTION + "\n".join(lines), "utf-8")


MEASURED = (
    "Measured {date} at commit {commit}, on {cpus} cores of {cpu}, {kernel}, Python {python}."
)

NOT_MEASURED = """\
Not measured here: a partition between two nodes or between a node and Redis, clocks that jump, and
PostgreSQL or `tunnelmux-api` going away. Tests show for a moment what happens then: proxies go on
with what they know of the registry, and nodes with the ways that they know.
"""


def cells(outcome: Outcome) -> list[str]:
    return [
        outcome.scenario.title,
        f"{outcome.requests:,}",
        str(outcome.in_flight),
        str(outcome.new),
        str(outcome.late),
        f"{outcome.until:.1f} s" if outcome.until else "-",
        f"{outcome.longest:.1f} s",
    ]


def row(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"
