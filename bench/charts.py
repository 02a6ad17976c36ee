"""The README's two charts, as SVG that brings its own background in light and in dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT, TOP = 760, 190, 70, 74
ROW, BAR, GAP = 24, 15, 20
"""Pixels: a row's height, its bar's, and what parts two groups."""

STYLE = """\
text { font: 13px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.quiet { fill: #59636e; font-size: 12px }
.strong { font-weight: 600 }
.card { fill: #ffffff; stroke: #d1d9e0 }
.theirs { fill: #9aa7b4 }
.ours { fill: #0a7d5a }
.line { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .quiet { fill: #9198a1 }
  .card { fill: #0d1117; stroke: #3d444d }
  .theirs { fill: #57606a }
  .ours { fill: #2fbf8f }
  .line { stroke: #3d444d }
}"""


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    label: str
    ours: bool


@dataclass(frozen=True)
class Chart:
    file: str
    title: str
    subtitle: str
    groups: Sequence[tuple[str, Sequence[Bar]]]


def draw(chart: Chart) -> str:
    """The SVG text. Bars start at zero; each group has a scale of its own, and says so."""
    y = TOP
    parts = []
    for title, bars in chart.groups:
        most = max(bar.value for bar in bars)
        scale = (WIDTH - LEFT - RIGHT) / most
        parts.append(f'<text class="quiet" x="20" y="{y + 12}">{escape(title)}</text>')
        y += ROW
        for bar in bars:
            parts += draw_bar(bar, y, scale)
            y += ROW
        y += GAP
    height = y - GAP + 16
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-label="{escape(chart.title)}">\n'
        f"<style>\n{STYLE}\n</style>\n"
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n'
        f'<text class="title" x="20" y="30">{escape(chart.title)}</text>\n'
        f'<text class="quiet" x="20" y="50">{escape(chart.subtitle)}</text>\n'
        f'<line class="line" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{height - 14}"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def draw_bar(bar: Bar, y: int, scale: float) -> list[str]:
    name, owner = ("strong", "ours") if bar.ours else ("", "theirs")
    width = max(1.0, bar.value * scale)
    middle = y + ROW // 2 + 4
    top, end = y + (ROW - BAR) // 2, LEFT + width + 7
    shape = f'x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2"'
    before = f'x="{LEFT - 10}" y="{middle}" text-anchor="end"'
    return [
        f'<text class="{name}" {before}>{escape(bar.name)}</text>',
        f'<rect class="{owner}" {shape}/>',
        f'<text class="{name}" x="{end:.1f}" y="{middle}">{escape(bar.label)}</text>',
    ]


def make_charts(result: dict[str, Any]) -> list[Chart]:
    """Keep-alive requests relative to direct, and what they cost."""
    day, commit = result["machine"]["date"][:10], result["machine"]["commit"]
    load = "50 kept connections, 100-byte bodies"
    return [
        Chart(
            "bench-requests.svg",
            "HTTP requests per second, as a share of the server without a tunnel",
            f"{load}; longer is better · {day}, {commit}",
            groups(result, "rps", relative=True, form=".0%"),
        ),
        Chart(
            "bench-cpu.svg",
            "CPU-seconds for 10,000 HTTP requests, both ends of the tunnel",
            f"{load}; shorter is better · {day}, {commit}",
            groups(result, "cpu_s_per_10k", relative=False, form=".2f"),
        ),
    ]


def groups(
    result: dict[str, Any], metric: str, *, relative: bool, form: str
) -> list[tuple[str, list[Bar]]]:
    """By what visitors speak, each group with its best at the top."""
    direct = figure_of(result, "direct", metric) if relative else 1.0
    made: list[tuple[str, list[Bar]]] = []
    titles = {
        "bytes": "tunnels of bytes",
        "http": "tunnels that read HTTP (own scale)",
        "https": "visitors over HTTPS (own scale)",
        "nginx": "behind nginx with TLS (own scale)",
    }
    for visitors, title in titles.items():
        bars = []
        for name, traits in result["peers"].items():
            value = figure_of(result, name, metric)
            if traits["tunnel"] and traits["visitors"] == visitors and value and direct:
                label = format(value / direct, form)
                bars.append(Bar(name, value / direct, label, traits["ours"]))
        bars.sort(key=lambda bar: bar.value, reverse=relative)
        if bars:
            made.append((title, bars))
    return made


def figure_of(result: dict[str, Any], name: str, metric: str) -> float | None:
    figure = result["medians"].get(name, {}).get("keepalive", {}).get(metric)
    return figure["median"] if figure else None


def write_charts(result: dict[str, Any], folder: Path) -> list[Path]:
    """Both files; none where there is nothing to draw."""
    paths = []
    for chart in make_charts(result):
        if chart.groups:
            path = folder / chart.file
            path.write_text(draw(chart), "utf-8")
            paths.append(path)
    return paths
