"""A regression is what moved further to the bad side than the noise of both files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.compare import compare, main


def result(*, direct=(100.0, 100.0, 100.0), micro=None, **metrics):
    """A file's content with one tunnel of ours, and the rounds of its metrics in one column."""
    count = len(next(iter(metrics.values()))) if metrics else 3
    ours = [{name: values[i] for name, values in metrics.items()} for i in range(count)]
    return {
        "peers": {
            "direct": {"ours": False},
            "tunnelmux-ws": {"ours": True},
            "frp": {"ours": False},
        },
        "samples": {
            "direct": {"keepalive": [{"rps": rate} for rate in direct]},
            "tunnelmux-ws": {"keepalive": ours},
            "frp": {"keepalive": [{"rps": 1.0}]},
        },
        "micro": micro or {},
    }


def only(old, new):
    (change,) = compare(old, new)
    return change


def test_a_cost_that_grew_beyond_the_noise_is_a_regression():
    change = only(result(cpu_s_per_10k=(0.9, 1.0, 1.1)), result(cpu_s_per_10k=(1.3, 1.3, 1.3)))
    assert change.worse == pytest.approx(0.3)
    assert change.noise == pytest.approx(0.1)
    assert change.is_regression


def test_what_stays_within_the_noise_of_both_is_none():
    change = only(result(cpu_s_per_10k=(0.8, 1.0, 1.2)), result(cpu_s_per_10k=(1.0, 1.25, 1.5)))
    assert not change.is_regression


def test_three_equal_rounds_still_have_some_noise():
    old = result(cpu_s_per_10k=(1.0, 1.0, 1.0))
    assert not only(old, result(cpu_s_per_10k=(1.04, 1.04, 1.04))).is_regression
    assert only(old, result(cpu_s_per_10k=(1.06, 1.06, 1.06))).is_regression


def test_one_sample_tells_less_than_three():
    old = result(cpu_s_per_10k=(1.0,), direct=(100.0,))
    assert not only(old, result(cpu_s_per_10k=(1.1,))).is_regression
    assert only(old, result(cpu_s_per_10k=(1.2,))).is_regression


def test_a_better_figure_is_never_a_regression():
    change = only(result(p99_ms=(9.0, 9.0, 9.0)), result(p99_ms=(1.0, 1.0, 1.0)))
    assert change.worse < 0
    assert not change.is_regression


def test_rates_are_shares_of_direct_so_a_slower_machine_is_no_regression():
    old = result(rps=(50.0, 50.0, 50.0))
    slower = result(rps=(25.0, 25.0, 25.0), direct=(50.0, 50.0, 50.0))
    assert only(old, slower).worse == pytest.approx(0.0)
    assert only(old, result(rps=(25.0, 25.0, 25.0))).is_regression


def test_a_peer_that_got_slower_is_not_our_regression():
    new = result(rps=(50.0, 50.0, 50.0))
    new["samples"]["frp"]["keepalive"] = [{"rps": 0.1}]
    assert not any("frp" in change.what for change in compare(result(rps=(50.0,) * 3), new))


def ssh_result(ours, master):
    def rounds(rates):
        return {"ssh-10": [{"commands_per_s": rate, "p50_ms": 5.0, "failed": 0} for rate in rates]}

    content = result()
    content["peers"] |= {"tunnelmux-ssh": {"ours": True}, "ssh-master": {"ours": False}}
    content["samples"] = {"tunnelmux-ssh": rounds(ours), "ssh-master": rounds(master)}
    return content


def test_commands_over_ssh_are_shares_of_ssh_itself():
    old = ssh_result((200.0,) * 3, (100.0,) * 3)
    half_as_fast_a_machine = ssh_result((100.0,) * 3, (50.0,) * 3)
    changes = compare(old, half_as_fast_a_machine)
    assert [change.what for change in changes] == [
        "tunnelmux-ssh ssh-10 commands_per_s",
        "tunnelmux-ssh ssh-10 p50_ms",
    ]
    assert not any(change.is_regression for change in changes)
    rate, _ = compare(old, ssh_result((100.0,) * 3, (100.0,) * 3))
    assert rate.is_regression


def test_a_rate_is_a_share_in_both_files_or_in_none():
    old, new = ssh_result((200.0,) * 3, (100.0,) * 3), ssh_result((200.0,) * 3, ())
    rate, _ = compare(old, new)
    assert (rate.old, rate.new) == (200.0, 200.0)


def test_micro_figures_are_judged_by_their_unit():
    def micro(unit, *samples):
        return {"engine: x": {"unit": unit, "samples": list(samples)}}

    ns = only(result(micro=micro("ns", 100, 101)), result(micro=micro("ns", 150, 150)))
    rate = only(result(micro=micro("MiB/s", 100, 101)), result(micro=micro("MiB/s", 150, 150)))
    assert ns.is_regression
    assert not rate.is_regression


@pytest.mark.parametrize(("cost", "status"), [(1.0, 0), (2.0, 1)])
def test_the_exit_status_says_whether_there_is_one(tmp_path: Path, capsys, cost, status):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(result(cpu_s_per_10k=(1.0, 1.0, 1.0))))
    new.write_text(json.dumps(result(cpu_s_per_10k=(cost, cost, cost))))
    assert main([str(old), str(new)]) == status
    assert f"{status} of 1 figures got worse" in capsys.readouterr().out


def test_files_that_cannot_be_compared_are_another_exit_status(tmp_path: Path):
    file = tmp_path / "x.json"
    file.write_text("[]")
    assert main([str(file), str(file)]) == 2
    assert main([]) == 2
    file.write_text(json.dumps(result()))
    assert main([str(file), str(file)]) == 2
