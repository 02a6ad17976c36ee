"""The benchmark of the gateway: what it says of samples, and which run counts as a whole."""

from __future__ import annotations

import pytest
from bench.rounds import Outcome

from bench import gateway

DESCRIBED = {
    "date": "2026-11-28T10:00:00Z",
    "commit": "abc1234",
    "kernel": "Linux 6",
    "cpu": "a processor",
    "cpus": 2,
    "memory_gib": 4.0,
    "python": "3.11.7",
    "load_average": [0.1, 0.2, 0.3],
}


def outcome():
    found = Outcome()
    for theirs, ours in ((2.0, 8.0), (4.0, 8.0), (2.0, 6.0)):
        found.add("openssh-jump", "file", {"mb_per_s": 100.0, "cpu_s_per_gb": theirs})
        found.add("recorded", "file", {"mb_per_s": 50.0, "cpu_s_per_gb": ours})
    return found


def test_a_ratio_is_of_medians_and_says_its_range():
    ratio = gateway.take_ratios(outcome().samples)["recorded_file_cpu_s_per_gb_vs_openssh-jump"]
    assert ratio["value"] == 4.0
    assert ratio["range"] == [2.0, 4.0]


def test_a_result_is_written_as_tables(monkeypatch, tmp_path):
    monkeypatch.setattr(gateway, "openssh", lambda: "OpenSSH_9")
    monkeypatch.setattr(gateway, "PARTIAL_RESULTS", tmp_path)
    found = outcome()
    found.failures.append("sealed, file: it ended")
    arguments = gateway.parse_arguments(["--rounds", "3", "--columns", "file"])
    path = gateway.save(gateway.make_result(arguments, DESCRIBED, found), whole=arguments.is_whole)
    assert path.name == "2026-11-28T100000-abc1234-gateway.json"
    text = path.with_suffix(".md").read_text()
    assert "| recorded | 50.0 (±0%) | 8.00 (±12%) | - |" in text
    assert "| recorded_file_cpu_s_per_gb_vs_openssh-jump | file | 4.00 | 2.00 to 4.00 |" in text
    assert "- sealed, file: it ended" in text


def test_every_ratio_has_a_name_of_its_own_and_is_about_ways_and_columns_that_there_are():
    assert len({name for name, *_ in gateway.RATIOS}) == len(gateway.RATIOS)
    ways = {way.name for way in gateway.WAYS}
    for _, ours, rival, column, metric in gateway.RATIOS:
        assert {ours, rival} <= ways
        assert metric in {name for _, name, _ in gateway.COLUMNS[column][2]}


def test_only_a_whole_run_is_one_to_keep(capsys):
    assert gateway.parse_arguments([]).is_whole
    assert not gateway.parse_arguments(["--rounds", "2"]).is_whole
    assert not gateway.parse_arguments(["--ways", "sealed"]).is_whole
    with pytest.raises(SystemExit):
        gateway.parse_arguments(["--columns", "speed"])
    assert "there is no speed" in capsys.readouterr().err
