"""Processor time and memory as /proc tells them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from bench.processes import (
    TICK,
    Started,
    StartFailure,
    cpu_seconds,
    descendants,
    free_ports,
    parse_resident_kib,
    parse_stat,
    resident_kib,
)

STAT = (
    "4242 (a (strange) name) S 17 4242 4242 0 -1 4194304 1 2 3 4 "
    "150 50 20 5 20 0 1 0 987654 1000 200 18446744073709551615 0 0 0"
)


def test_a_name_with_spaces_and_parentheses_moves_no_field():
    stat = parse_stat(STAT)
    assert stat.parent == 17
    assert stat.began == 987654


def test_time_is_own_and_collected_children_user_and_system():
    assert parse_stat(STAT).seconds == pytest.approx((150 + 50 + 20 + 5) * TICK)


def test_resident_memory_is_the_line_in_kib():
    assert parse_resident_kib("Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t  812 kB\n") == 812


def test_a_process_without_memory_has_none():
    assert parse_resident_kib("Name:\tx\nState:\tZ (zombie)\n") == 0


def test_descendants_are_found_however_deep_and_others_are_not():
    parents = {2: 1, 3: 2, 4: 3, 5: 1, 6: 5}
    assert descendants([2], parents) == {2, 3, 4}
    assert descendants([2, 6], parents) == {2, 3, 4, 6}
    assert descendants([99], parents) == {99}


def test_this_process_has_used_some_of_both():
    assert cpu_seconds([os.getpid()]) > 0
    assert resident_kib([os.getpid()]) > 1000


def test_ports_are_different_and_below_those_of_outgoing_connections():
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert max(ports) < 32_768


def test_processes_end_with_the_block(tmp_path: Path):
    with Started(tmp_path) as started:
        command = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"]
        pid = started.start("sleeper", command)
        started.wait_for_log("sleeper", "up")
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_program_that_ends_at_once_is_reported_with_what_it_wrote(tmp_path: Path):
    with Started(tmp_path) as started:
        started.start("bad", [sys.executable, "-c", "raise SystemExit('no such option')"])
        with pytest.raises(StartFailure, match="bad ended with 1: no such option"):
            started.wait_until("miracle", lambda: False)
