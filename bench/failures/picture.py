"""The picture of docs/failures.md: a line for each failure, with what failed in each second."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.charts import STYLE
from bench.failures.report import Outcome

__all__ = ["draw"]

WIDTH, LEFT, RIGHT, TOP = 900, 392, 24, 92
ROW, BAR = 30, 22
"""Pixels: the height of a failure's line, and of a second in which every request failed."""

MORE_STYLE = """\
.bad { fill: #cf222e }
.asked { fill: #d4a72c }
.good { fill: #d8efe5 }
@media (prefers-color-scheme: dark) {
  .bad { fill: #f85149 }
  .asked { fill: #bb8009 }
  .good { fill: #123a2c }
}"""

TITLE = "Requests that failed, second by second"
LEGEND = (
    ("good", "answered"),
    ("bad", "failed"),
    ("asked", "failed at the proxy that was dead or hung"),
)
STEP = 10


def draw(outcomes: Sequence[Outcome], when: str) -> str:
    """The SVG text."""
    longest = max(len(outcome.seconds) for outcome in outcomes)
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = TOP + ROW * len(outcomes) + 34
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-label="{TITLE}">'
        ),
        f"<style>\n{STYLE}\n{MORE_STYLE}\n</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<text class="title" x="20" y="30">{TITLE}</text>',
        f'<text class="quiet" x="20" y="50">200 visitors, 20 devices · {escape(when)}</text>',
        *legend(),
    ]
    for number, outcome in enumerate(outcomes):
        parts += line(outcome, TOP + ROW * number, scale)
    foot = TOP + ROW * len(outcomes)
    for second in range(0, longest + 1, STEP):
        x = LEFT + second * scale
        parts.append(f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{foot}"/>')
        where = f'x="{x:.1f}" y="{foot + 18}" text-anchor="middle"'
        parts.append(f'<text class="quiet" {where}>{second} s</text>')
    return "\n".join([*parts, "</svg>", ""])


def legend() -> list[str]:
    parts, x = [], 20
    for kind, text in LEGEND:
        parts.append(f'<rect class="{kind}" x="{x}" y="63" width="12" height="12" rx="2"/>')
        parts.append(f'<text class="quiet" x="{x + 18}" y="73">{text}</text>')
        x += 44 + 7 * len(text)
    return parts


def line(outcome: Outcome, top: int, scale: float) -> list[str]:
    base = top + BAR
    title, width = escape(outcome.scenario.title), len(outcome.seconds) * scale
    parts = [
        f'<text x="{LEFT - 10}" y="{base - 6}" text-anchor="end">{title}</text>',
        f'<rect class="good" x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR}"/>',
    ]
    for second, (total, failed, broken) in enumerate(outcome.seconds):
        y = float(base)
        for kind, count in (("bad", failed), ("asked", broken)):
            if count:
                # One failed request of a hundred is seen too.
                tall = max(1.5, BAR * count / total)
                y -= tall
                parts.append(
                    f'<rect class="{kind}" x="{LEFT + second * scale:.1f}" y="{max(y, top):.1f}" '
                    f'width="{scale:.1f}" height="{min(tall, BAR):.1f}"/>'
                )
    return parts
