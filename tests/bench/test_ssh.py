"""Commands over SSH as a part of the benchmark."""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from importlib import metadata

import pytest
import trio
from bench.report import make_result, markdown
from bench.rounds import Outcome
from bench.ssh_clients import Commands

from bench import __main__ as program
from bench import ssh, ssh_clients

COLUMNS = ["ssh-1", "ssh-10"]


def measured(names, columns=COLUMNS, rounds=2):
    outcome = Outcome()
    there = ssh.measure_ssh(names, columns, rounds=rounds, seconds=0.1, outcome=outcome)
    return there, outcome


@pytest.mark.slow
def test_our_pool_and_openssh_against_a_real_sshd(debian_program, capsys):
    debian_program("sshd", "openssh-server")
    debian_program("ssh", "openssh-client")
    names = ["tunnelmux-ssh", "ssh-master"]
    there, outcome = measured(names)
    assert list(there) == names
    assert (outcome.skipped, outcome.failures) == ({}, [])
    for name in names:
        assert [len(outcome.samples[name][column]) for column in COLUMNS] == [2, 2]
        for sample in outcome.samples[name]["ssh-10"]:
            assert sample["commands_per_s"] > 0
            assert 0 < sample["p50_ms"] <= sample["p99_ms"]
            assert sample["failed"] == 0
    rounds = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()]
    assert rounds == [
        ["1/2", *names[:1]],
        ["1/2", *names[1:]],
        ["2/2", *names[:1]],
        ["2/2", names[1]],
    ]


def test_what_is_missing_is_named_and_the_others_go_on(monkeypatch, capsys):
    def missing(_name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(ssh.metadata, "version", missing)
    monkeypatch.setattr(ssh_clients, "find_program", lambda _name: None)
    there, outcome = measured(["paramiko"])
    assert there == {}
    assert outcome.skipped == {
        "paramiko": "it is not installed: pip install --group bench",
        "ssh": "sshd is not installed: apt-get install openssh-server",
    }
    assert "without paramiko: it is not installed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_client_that_fails_leaves_the_others_alone(monkeypatch, debian_program):
    debian_program("sshd", "openssh-server")

    def broken(_server):
        raise OSError("no such luck")

    monkeypatch.setitem(ssh_clients.CLIENTS, "tunnelmux-ssh-each", broken)
    there, outcome = measured(["tunnelmux-ssh-each", "tunnelmux-ssh"], ["ssh-1"], rounds=1)
    assert len(there) == 2
    assert outcome.failures == ["tunnelmux-ssh-each, ssh-1: no such luck"]
    assert [*outcome.samples] == ["tunnelmux-ssh"]


def test_sigterm_ends_the_run_in_order(monkeypatch):
    ended = []

    async def interrupted(*_arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep(10)
        finally:
            ended.append(trio.current_time())

    monkeypatch.setattr(ssh, "run_rounds", interrupted)
    with pytest.raises(SystemExit) as stopped:
        measured(["tunnelmux-ssh"])
    assert stopped.value.code == 143
    assert ended


def test_ctrl_c_comes_out_as_it_is(monkeypatch):
    async def interrupted(*_arguments):
        async with trio.open_nursery():
            raise KeyboardInterrupt

    monkeypatch.setattr(ssh, "run_rounds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(["tunnelmux-ssh"])


def test_a_rate_counts_what_ended_well():
    sample = ssh.sample_of(Commands([0.01, 0.02, 0.03], ["it broke"], 2.0))
    assert sample == {"commands_per_s": 1.5, "p50_ms": 20.0, "p99_ms": 30.0, "failed": 1}


def test_the_page_has_all_clients_side_by_side():
    def samples(*rates):
        return [{"commands_per_s": rate, "p50_ms": 1000 / rate} for rate in rates]

    traits = {"what": "a client", "version": "OpenSSH 9", "ours": False, "http": False}
    page = markdown(
        make_result(
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
            settings={"command": "python -m bench ssh", "rounds": 3, "seconds": 4.0},
            peers={name: {**traits, "encrypted": True, "multiplexes": False} for name in "ab"},
            samples={
                "a": {"ssh-1": samples(90, 100, 110), "ssh-100": samples(2000)},
                "b": {"ssh-1": samples(50)},
            },
            micro={},
            skipped={"paramiko": "not installed"},
            failures=[],
        )
    )
    for line in (
        "| a | a client | OpenSSH 9 |",
        "| client | 1 at once | p50 ms | 100 at once | p50 ms |",
        "| a | 100.0 (±10%) | 10.0 (±10%) | 2,000.0 (±0%) | 0.5 (±0%) |",
        "| b | 50.0 (±0%) | 20.0 (±0%) | - | - |",
        "- without paramiko: not installed",
    ):
        assert line in page
    assert "## Ratios" not in page


def arguments(*parts, **more):
    every = {"peers": program.peer_names(), "columns": program.column_names(), "rounds": 3}
    return Namespace(**{"parts": list(parts), **every, **more})


def test_a_part_runs_when_it_has_something_to_measure():
    assert program.parts_of(arguments()) == [*program.PARTS]
    assert program.is_whole(arguments())
    assert program.parts_of(arguments("ssh")) == ["ssh"]
    assert "ssh" not in program.parts_of(arguments(peers=["tunnelmux-ws"]))
    assert "ssh" not in program.parts_of(arguments(columns=["bulk", "agents"]))
    assert "tunnels" not in program.parts_of(arguments(peers=["paramiko"]))
    assert "tunnels" not in program.parts_of(arguments(columns=["ssh-10"]))


def test_the_list_names_clients_and_columns(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--list"])
    assert program.main() == 0
    shown = capsys.readouterr().out
    for name in ("tunnelmux-ws", "tunnelmux-ssh", "ssh-master", "paramiko", "ssh-100"):
        assert f"\n{name} " in shown
