"""A run as JSON, as Markdown and as charts."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench.charts import make_charts, write_charts
from bench.machine import cpu_model
from bench.report import make_result, markdown, write

TRAITS = {
    "what": "a tunnel",
    "version": "1.0",
    "encrypted": False,
    "multiplexes": True,
    "tunnel": True,
}


@pytest.fixture
def result():
    def requests(rate, cost=None):
        cpu = {} if cost is None else {"cpu_s_per_10k": cost}
        return {"keepalive": [{"rps": rate * factor, "p99_ms": 2.0, **cpu} for factor in (1, 2, 3)]}

    return make_result(
        machine={
            "date": "2026-11-22T05:00:00Z",
            "commit": "abc1234",
            "kernel": "Linux 6",
            "cpu": "A processor",
            "cpus": 2,
            "memory_gib": 4.0,
            "python": "3.11.7",
            "load_average": [0.1, 0.2, 0.3],
        },
        settings={"command": "python -m bench", "rounds": 3, "seconds": 4.0},
        peers={
            "direct": {**TRAITS, "ours": False, "visitors": "bytes", "tunnel": False},
            "tunnelmux-ws": {**TRAITS, "ours": True, "visitors": "bytes"},
            "frp <1>": {**TRAITS, "ours": False, "visitors": "bytes"},
            "frp-http": {**TRAITS, "ours": False, "visitors": "http"},
        },
        samples={
            "direct": requests(1000.0),
            "tunnelmux-ws": requests(500.0, 0.25),
            "frp <1>": requests(200.0, 0.9),
            "frp-http": requests(50.0, 5.0),
        },
        micro={"frame: encode": {"median": 20.0, "spread": 0.1, "unit": "ns", "samples": [20.0]}},
        skipped={"piko": "no Go"},
        failures=["chisel, bulk: cut"],
    )


def test_every_sample_and_its_median_is_in_the_file(result, tmp_path: Path):
    path = write(result, tmp_path, whole=True)
    assert path.name == "2026-11-22-abc1234.json"
    read = json.loads(path.read_text("utf-8"))
    assert [sample["rps"] for sample in read["samples"]["direct"]["keepalive"]] == [1e3, 2e3, 3e3]
    assert read["medians"]["direct"]["keepalive"]["rps"] == {"median": 2000.0, "spread": 0.5}
    assert read["ratios"]["tcp_keepalive_rps_vs_best_peer"]["value"] == pytest.approx(2.5)
    assert "tcp_connect_rps_vs_openssh" in read["ratios_not_taken"]


def test_a_partial_run_does_not_take_a_whole_ones_name(result, tmp_path: Path):
    path = write(result, tmp_path, whole=False)
    assert path.name == "2026-11-22T050000-abc1234.json"


def test_the_page_says_where_when_and_what_is_missing(result):
    page = markdown(result)
    for text in (
        "commit abc1234",
        "A processor, 2 CPUs",
        "load average at the start 0.1, 0.2, 0.3",
        "| tunnelmux-ws | 1,000 (±50%) | 0.500 | 0.25 (±0%) | - | 2.00 (±0%) |",
        "| tcp_keepalive_rps_vs_best_peer | 2.5 (2.5 to 2.5) | - | frp <1> | watched |",
        "not taken: tunnelmux-ws has no rps in column connect",
        "- without piko: no Go",
        "- failed: chisel, bulk: cut",
    ):
        assert text in page
    assert "Resident memory" not in page


def test_charts_are_well_formed_and_sorted_best_first(result, tmp_path: Path):
    requests, cost = make_charts(result)
    assert [bar.name for bar in requests.groups[0][1]] == ["tunnelmux-ws", "frp <1>"]
    assert [bar.label for bar in requests.groups[0][1]] == ["50%", "20%"]
    assert [bar.label for bar in cost.groups[0][1]] == ["0.25", "0.90"]
    assert [bar.name for bar in cost.groups[1][1]] == ["frp-http"]
    paths = write_charts(result, tmp_path)
    assert [path.name for path in paths] == ["bench-requests.svg", "bench-cpu.svg"]
    for path in paths:
        ElementTree.parse(path)


def test_nothing_measured_draws_nothing(result, tmp_path: Path):
    assert write_charts({**result, "medians": {}}, tmp_path) == []


def test_the_processor_is_named_on_both_architectures():
    assert cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n") == "Some CPU @ 2 GHz"
    assert cpu_model("processor\t: 0\nBogoMIPS\t: 50\nModel\t\t: Some Pi\n") == "Some Pi"
