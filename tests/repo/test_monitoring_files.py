"""The alert rules and the dashboard in docs/monitoring ask for metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.tree import ROOT, SOURCE

FOLDER = ROOT / "docs" / "monitoring"
ALERTS = (FOLDER / "alerts.yml").read_text("utf-8")
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text("utf-8"))

MADE = re.compile(
    r"(Counter|CounterMetricFamily|Histogram|HistogramMetricFamily|_histogram|GaugeMetricFamily)\(\s*"
    r'"(tunnelmux_[a-z_]+)"|"(tunnelmux_[a-z_]+)": \(|\(\s*"(tunnelmux_[a-z_]+)"'
)
Program = Callable[[str, str], str]


def served_names() -> set[str]:
    """Every name that a scraper can find, with the endings that its kind has."""
    names = set()
    for path in sorted(SOURCE.rglob("*.py")):
        for kind, name, gauge, told in MADE.findall(path.read_text("utf-8")):
            if kind.startswith("Counter"):
                names.add(f"{name}_total")
            elif "istogram" in kind:
                names |= {f"{name}{end}" for end in ("_bucket", "_sum", "_count")}
            elif told:  # a counter of the agent's, or a gauge
                names |= {told, f"{told}_total"}
            else:
                names.add(name or gauge)
    return names


def expressions() -> Iterator[str]:
    """The dashboard's, as Prometheus gets them."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"].replace("$proxy", ".*").replace("$agent", ".*")


def named(text: str) -> set[str]:
    return set(re.findall(r"\btunnelmux_[a-z_]+", text))


def test_each_metric_of_the_dashboard_and_of_the_alerts_exists() -> None:
    served = served_names()
    assert {"tunnelmux_sessions", "tunnelmux_http_requests_total"} <= served
    variables = json.dumps(DASHBOARD["templating"])
    wanted = named("\n".join([ALERTS, variables, *expressions()]))
    assert len(wanted) > 20
    assert wanted - served == set()


def test_the_dashboard_shows_visitors_tunnels_the_pump_and_agents() -> None:
    shown = named("\n".join(expressions()))
    for part in ("http_request_seconds", "tunnels_refused", "pump_batch", "agent_session_up"):
        assert any(part in name for name in shown), part
    panels = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(panels) == len(set(panels))
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24


@pytest.mark.slow  # it starts a program
def test_promtool_takes_the_rules_and_every_expression(
    tmp_path: Path, debian_program: Program
) -> None:
    promtool = debian_program("promtool", "prometheus")
    rules = [
        {"record": f"panel_{number}", "expr": expression}
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "dashboard.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    result = subprocess.run(
        [promtool, "check", "rules", FOLDER / "alerts.yml", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


TRIED = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'tunnelmux_sessions{{instance="p"}}', values: '100x60 50x20'}}
      - {{series: 'tunnelmux_agent_session_up{{instance="a"}}', values: '1x60 0x20'}}
    alert_rule_test:
      - {{eval_time: 60m, alertname: TunnelmuxDevicesAway}}
      - eval_time: 75m
        alertname: TunnelmuxDevicesAway
        exp_alerts:
          - exp_labels: {{severity: warning, instance: p}}
            exp_annotations:
              summary: More than a tenth of the devices of the last day are away.
      - {{eval_time: 63m, alertname: TunnelmuxAgentWithoutSession}}
      - eval_time: 75m
        alertname: TunnelmuxAgentWithoutSession
        exp_alerts:
          - exp_labels: {{severity: warning, instance: a}}
            exp_annotations:
              summary: The agent a has no session with its proxy; its /healthz says why.
"""


@pytest.mark.slow  # it starts a program
def test_alerts_fire_when_devices_are_away_and_not_before(
    tmp_path: Path, debian_program: Program
) -> None:
    promtool = debian_program("promtool", "prometheus")
    file = tmp_path / "tests.yml"
    file.write_text(TRIED.format(rules=FOLDER / "alerts.yml"))
    result = subprocess.run(
        [promtool, "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
