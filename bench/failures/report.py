"""What a failure cost: figures from the requests, and the page that publishes them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.failures.scenarios import Scenario
from bench.failures.stage import DEVICES
from bench.failures.visitors import RETRY, THINK, TIMEOUT, VISITORS, Request
from bench.tree import IMAGES, ROOT

__all__ = ["GOALS", "PAGE", "PICTURE", "Outcome", "judge", "page"]

PAGE = ROOT / "docs" / "failures.md"
PICTURE = IMAGES / "failures.svg"
SOON = 5.0
"""Seconds after which no new request should fail."""


@dataclass(frozen=True)
class Outcome:
    """The figures of one failure. Seconds count from its begin."""

    scenario: Scenario
    requests: int
    noticed: float | None
    """When the rest of the installation noticed it, by its log."""
    in_flight: int
    """Requests that had begun before and got no answer, also where asking once more helped."""
    broken: int
    """Failed requests that began afterwards, to the proxy that could not answer."""
    new: int
    """All other failed requests that began afterwards."""
    late: int
    """Those of them that began more than SOON seconds afterwards."""
    until: float
    """When the last of `new` failed; 0 where none did."""
    again: float
    """When all devices answered again; infinite where one did not."""
    longest: float
    """The longest wait for an answer of 200."""
    wrong: int
    """Answers from another device than the one that was asked for."""
    problems: dict[str, int]
    """What the failed requests of `new` met."""
    seconds: list[tuple[int, int, int]]
    """Of each second: requests that were over, of these failed, and failed at the broken proxy."""
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The figures in one line, for the terminal."""
        parts = [
            f"{self.requests} requests",
            f"noticed {seconds(self.noticed)}",
            f"failed: {self.in_flight} in flight, {self.broken} at the broken one",
            f"{self.new} elsewhere, {self.late} of them late, the last at {seconds(self.until)}",
            f"all again {seconds(self.again)}",
            f"longest wait {self.longest:.1f} s",
            f"wrong device: {self.wrong}",
            *(f"{count} x {what}" for what, count in self.problems.items()),
            *self.notes,
        ]
        return "; ".join(parts)


def judge(
    scenario: Scenario,
    requests: Iterable[Request],
    began: float,
    *,
    noticed: float | None = None,
    notes: Sequence[str] = (),
) -> Outcome:
    """The outcome of a failure that began then."""
    seen = [request for request in requests if request.ended >= began]
    before = [request for request in seen if request.began < began]
    after = [request for request in seen if request.began >= began]
    elsewhere = [one for one in after if not scenario.broken or one.asked != scenario.broken]
    new = [request for request in elsewhere if request.problem]
    at_broken = sum(bool(one.problem) for one in after) - len(new)
    return Outcome(
        scenario=scenario,
        requests=len(seen),
        noticed=noticed,
        in_flight=sum(bool(request.problem or request.retried) for request in before),
        broken=at_broken,
        new=len(new),
        late=sum(request.began > began + SOON for request in new),
        until=max((request.ended - began for request in new), default=0.0),
        again=max(all_again(after, new, began), default=0.0),
        longest=max((x.ended - x.began for x in seen if not x.problem), default=0.0),
        wrong=sum(bool(request.wrong) for request in seen),
        problems=dict(Counter(request.problem for request in new).most_common()),
        seconds=by_second(scenario, seen, began),
        notes=list(notes),
    )


def all_again(requests: Sequence[Request], failed: Sequence[Request], began: float) -> list[float]:
    """For each device, after how long it answered for good: its first answer after the last of the
    failures that count."""
    last = {request.device: began for request in requests}
    for request in failed:
        last[request.device] = max(last[request.device], request.ended)
    first = dict.fromkeys(last, math.inf)
    for request in requests:
        if not request.problem and request.ended >= last[request.device]:
            first[request.device] = min(first[request.device], request.ended - began)
    return list(first.values())


def by_second(
    scenario: Scenario, requests: Sequence[Request], began: float
) -> list[tuple[int, int, int]]:
    found = [[0, 0, 0] for _ in range(math.ceil(scenario.watch))]
    for request in requests:
        counted = found[min(int(request.ended - began), len(found) - 1)]
        is_broken = bool(scenario.broken) and request.asked == scenario.broken
        counted[0] += 1
        counted[1] += bool(request.problem) and not is_broken
        counted[2] += bool(request.problem) and is_broken
    return [(total, failed, broken) for total, failed, broken in found]


def seconds(value: float | None) -> str:
    """A time as the page has it."""
    if not value:
        return "-"
    return "not within this time" if math.isinf(value) else f"{value:.1f} s"


GOALS: dict[str, tuple[str, Callable[[Outcome], bool]]] = {
    "5 s": (f"no new request fails after {SOON:g} s", lambda outcome: not outcome.late),
    "1.5 s": ("all devices answer within 1.5 s", lambda outcome: outcome.again <= 1.5),
    "none failed": ("no request fails", lambda outcome: not outcome.new + outcome.in_flight),
}
"""The goals by their keys: what is to be reached, and whether it was."""

INTRODUCTION = f"""\
# What a failure costs

This page is made by `make failures`, from a whole run. {VISITORS} visitors ask for {DEVICES}
devices, each one over a connection of its own that it keeps, every {THINK:g} s on average. Half of
them ask one proxy and half the other, where there are two.
As browsers do, a visitor whose kept connection has ended asks once more on a new one, at the next
proxy; it gives a request up after {TIMEOUT:g} s, and goes on with another proxy {RETRY:g} s later.
Devices dial a load balancer that leads to each proxy in turn, and knows nothing of their health.
Everything runs on one machine, so the figures tell what the programs do, and not what a network
adds.

![Failed requests of each second](images/failures.svg)

"""

MEANING = f"""\
What the columns count:

- *noticed*: seconds until the first line about it in the log of another part.
- *in flight*: requests that had begun before, and got no answer. One that changes something must
  not be sent again, so they count also where a second try was answered.
- *at the broken one*: requests that began afterwards and asked the proxy that is dead or hangs. A
  process that hangs takes connections and says nothing until it goes on: only its visitors can
  help themselves, by a time-out and another address.
- *elsewhere*: all other requests that began afterwards and failed. This is what counts for an
  operator, and until when. Where nothing is broken that visitors ask, these are all.
- *after {SOON:g} s*: those of them that began more than {SOON:g} s after the failure.
- *last*: when the last of them failed.
- *all answer*: from when on each of the {DEVICES} devices answered.
- *longest wait*: the longest time after which an answer of 200 came.
"""

COLUMNS = (
    "failure",
    "requests",
    "noticed",
    "in flight",
    "at the broken one",
    "elsewhere",
    f"after {SOON:g} s",
    "last",
    "all answer",
    "longest wait",
)

HOW = """\
*Killed* is SIGKILL: nothing can say goodbye. What *hangs* gets SIGSTOP, and SIGCONT 30 s later.
Proxies and `tunnelmux-api` are started again after one second where nothing else runs, as by
systemd; *restarted* is SIGTERM and a start when that is over, *upgraded* is `tunnelmux-proxy
upgrade`. Nodes that do not reach each other, or Redis, are in network namespaces, and every packet
between them is dropped. Linux has no namespace for the time of day: a node's clock jumps by
libfaketime, which it asks in the place of the kernel. Redis does not run with that; what a jump of
its clock does is tested in `tests/directory`. With PostgreSQL and `tunnelmux-api`, the registry is
where proxies know the devices from.
"""

SIMULATED = """
That no two nodes believe for longer than 6 s to have the newest session of a device is shown by
simulation, with loss, delay and cuts (`tests/directory/test_membership.py`)."""

MEASURED = (
    "Measured {date} at commit {commit}, on {cpus} cores of {cpu}, {kernel}, Python {python}; load "
    "average before it {load_average}."
)


def page(outcomes: Sequence[Outcome], where: Mapping[str, object]) -> str:
    """The text of docs/failures.md."""
    wrong = sum(outcome.wrong for outcome in outcomes)
    total = sum(outcome.requests for outcome in outcomes)
    return "\n".join(
        [
            INTRODUCTION + row(COLUMNS),
            row(["---"] * len(COLUMNS)),
            *(row(cells(outcome)) for outcome in outcomes),
            "",
            f"Answers from another device than the one that was asked for: {wrong} of {total:,}.",
            "",
            MEANING,
            "## Goals\n",
            *goals(outcomes),
            "",
            "## What was done, and what the failed requests met\n",
            HOW,
            *details(outcomes),
            "",
            MEASURED.format_map(where),
            "",
        ]
    )


def goals(outcomes: Sequence[Outcome]) -> list[str]:
    """Which of the goals were reached."""
    lines = [row(("failure", "goal", "reached")), row(["---"] * 3)]
    for outcome in outcomes:
        if outcome.scenario.goal:
            text, is_reached = GOALS[outcome.scenario.goal]
            reached = "yes" if is_reached(outcome) else "**no**"
            lines.append(row((outcome.scenario.title, text, reached)))
    wrong = any(outcome.wrong for outcome in outcomes)
    told = "**no**" if wrong else "yes"
    lines.append(row(("all", "no answer comes from another device", told)))
    return [*lines, SIMULATED]


def details(outcomes: Sequence[Outcome]) -> list[str]:
    lines = []
    for outcome in outcomes:
        met = [f"{count} times {what}" for what, count in outcome.problems.items()]
        if met or outcome.notes:
            lines.append(f"- {outcome.scenario.title}: {'; '.join([*met, *outcome.notes])}.")
    return lines


def cells(outcome: Outcome) -> list[str]:
    return [
        outcome.scenario.title,
        f"{outcome.requests:,}",
        seconds(outcome.noticed),
        f"{outcome.in_flight:,}",
        f"{outcome.broken:,}" if outcome.scenario.broken else "",
        f"{outcome.new:,}",
        f"{outcome.late:,}",
        seconds(outcome.until),
        seconds(outcome.again),
        f"{outcome.longest:.1f} s",
    ]


def row(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"
