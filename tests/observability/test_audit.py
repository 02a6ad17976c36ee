"""The audit: one line per command, in files that rotate, and never lost with a full disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from support.own_thread import replace_here
from tunnelmux.errors import ConfigError
from tunnelmux.limits import AuditLimits
from tunnelmux.observability import AuditLog, AuditRecord, configure_logs
from tunnelmux.observability.audit import FileSink, RefusalSummary
from tunnelmux.observability.audit_file import LineFile

NOW = datetime(2026, 11, 22, 6, 0, 0, 250_000, tzinfo=UTC)


def record(number: int = 1, **more: Any) -> AuditRecord:
    content: dict[str, Any] = {
        "time": NOW,
        "command_id": f"cmd_{number}",
        "asked_by": "alice",
        "device": "dev1",
        "host": "127.0.0.1",
        "user": "root",
        "command": "uptime",
        "start": NOW,
        "duration": 0.25,
        "exit_code": 0,
        "stdout_bytes": 12,
        "stderr_bytes": 0,
        **more,
    }
    return AuditRecord(**content)


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


def open_log(
    file: Path, *, clock: Clock | None = None, free: int = 10**12, **limits: Any
) -> AuditLog:
    """A log into this file, whose old ones may go at once unless something else is said."""
    held = AuditLimits(**{"max_bytes": 10_000, "keep": 1, "keep_for": 0.0, **limits})
    clock = clock or Clock()
    kept = LineFile(file, held, clock=clock, free=lambda _: free)
    return AuditLog([FileSink(kept)], held, clock=clock)


def line_length(folder: Path, one: AuditRecord) -> int:
    file = folder / "measured"
    log = open_log(file)
    log.record(one)
    log.close()
    size = file.stat().st_size
    file.unlink()
    return size


def numbers(path: Path) -> list[int]:
    """Which commands the lines of a file are of."""
    lines = path.read_text("utf-8").splitlines()
    return [int(json.loads(line)["command_id"].removeprefix("cmd_")) for line in lines]


def test_a_line_has_these_keys_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    open_log(file).record(record(reason="timeout"))
    assert json.loads(file.read_bytes()) == {
        "time": "2026-11-22T06:00:00.250000Z",
        "command_id": "cmd_1",
        "asked_by": "alice",
        "device": "dev1",
        "host": "127.0.0.1",
        "user": "root",
        "command": "uptime",
        "start": "2026-11-22T06:00:00.250000Z",
        "duration": 0.25,
        "exit_code": 0,
        "stdout_bytes": 12,
        "stderr_bytes": 0,
        "reason": "timeout",
        "command_bytes": 6,
        "command_sha256": hashlib.sha256(b"uptime").hexdigest(),
    }


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    before = os.umask(0)
    try:
        open_log(file).record(record())
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_files_rotate_by_size_and_a_bounded_number_stays(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    line = line_length(tmp_path, record(10))
    log = open_log(file, max_bytes=line * 3, keep=2)
    for number in range(10, 22):
        log.record(record(number))
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "audit.jsonl",
        "audit.jsonl.1",
        "audit.jsonl.2",
    ]
    assert numbers(file) == [19, 20, 21]
    assert numbers(tmp_path / "audit.jsonl.1") == [16, 17, 18]
    assert numbers(tmp_path / "audit.jsonl.2") == [13, 14, 15]


def test_a_lock_that_another_process_keeps_stops_nothing(tmp_path: Path) -> None:
    """The whole program stood still until that process was over."""
    file = tmp_path / "audit.jsonl"
    log = open_log(file, max_bytes=1500)
    log.record(record(0))
    with capture_logs() as logs:
        with file.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            for number in range(1, 30):
                log.record(record(number))
        assert [line["event"] for line in logs] == ["audit not rotated"]
    assert len(file.read_text().splitlines()) == 30
    log.record(record(30))
    assert len(file.read_text().splitlines()) == 1
    log.close()


def test_a_line_larger_than_a_file_gets_one_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    log = open_log(file, max_bytes=4096, keep=3)
    log.record(record(1))
    log.record(record(2, command="\x00" * 800))
    log.record(record(3))
    assert [numbers(tmp_path / name) for name in ("audit.jsonl.2", "audit.jsonl.1")] == [[1], [2]]
    assert numbers(file) == [3]


def test_it_goes_on_in_the_same_file_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    line = line_length(tmp_path, record(1))
    for number in range(1, 5):
        log = open_log(file, max_bytes=line * 3, keep=2)
        log.record(record(number))
        log.close()
    assert numbers(file) == [4]
    assert numbers(tmp_path / "audit.jsonl.1") == [1, 2, 3]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    log = open_log(file)
    log.record(record(1))
    file.rename(tmp_path / "taken.jsonl")
    log.record(record(2))
    assert numbers(tmp_path / "taken.jsonl") == [1]
    assert numbers(file) == [2]


def test_what_a_command_holds_cannot_forge_a_line(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    log = open_log(file)
    command = 'a\n{"command_id":"cmd_9"}\r\u2028\x00\x1b[2J'
    log.record(record(1, command=command))
    log.record(record(2, command="lone \udcff"))
    first, second = (json.loads(line) for line in file.read_bytes().split(b"\n")[:-1])
    assert first["command"] == command
    assert second["command"] == "lone ?"


def test_a_folder_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.file: .*cannot be written \(No such file"):
        open_log(tmp_path / "no" / "audit.jsonl")


def test_without_a_file_the_log_has_it(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    AuditLog.open(None, AuditLimits()).record(record(7, reason="lost"))
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["component"]) == ("command", "audit")
    assert (line["command_id"], line["asked_by"], line["reason"]) == ("cmd_7", "alice", "lost")


def test_a_record_that_cannot_be_written_is_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logs("info", "json")
    file = tmp_path / "audit.jsonl"
    log = open_log(file)
    write = os.write
    with monkeypatch.context() as full:
        replace_here(full, os, "write", lambda to, data: write(to, bytes(data)[:20]))
        log.record(record(1))
    assert log.failures == 1
    problem, fallback = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert problem["event"] == "audit record not written"
    assert "only 20 of" in problem["cause"]
    assert (fallback["event"], fallback["command_id"]) == ("command", "cmd_1")
    # The half of a line that is there does not spoil the next.
    log.record(record(2))
    assert json.loads(file.read_bytes().splitlines()[1])["command_id"] == "cmd_2"


def test_another_sink_gets_every_record() -> None:
    class Table:
        def __init__(self) -> None:
            self.rows: list[AuditRecord | RefusalSummary] = []
            self.is_closed = False

        def write(self, record: AuditRecord | RefusalSummary) -> None:
            self.rows.append(record)

        def close(self) -> None:
            self.is_closed = True

    first, second = Table(), Table()
    log = AuditLog([first])
    log.record(record(1))
    log.take_over(AuditLog([second]))
    log.record(record(2))
    assert ([row.command_id for row in first.rows], first.is_closed) == (["cmd_1"], True)
    assert [row.command_id for row in second.rows] == ["cmd_2"]


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    sink = FileSink(LineFile(tmp_path / "audit.jsonl", AuditLimits(max_bytes=4096, keep=2)))
    for number in range(40):
        sink.write(record(number))
    sink.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_of_a_long_command_the_beginning_its_length_and_its_digest_are_kept(
    tmp_path: Path,
) -> None:
    file = tmp_path / "audit.jsonl"
    log = open_log(file, max_bytes=10_000_000)
    command = "x" * 4095 + "ä" * 500_000
    log.record(record(1, command=command))
    log.record(record(2, command="ä" * 2048))
    first, second = map(json.loads, file.read_text("utf-8").splitlines())
    assert first["command"] == "x" * 4095
    assert first["command_bytes"] == 1_004_095
    assert first["command_sha256"] == hashlib.sha256(command.encode()).hexdigest()
    assert second["command"] == "ä" * 2048


def test_refusals_do_not_wash_the_records_of_commands_away(tmp_path: Path) -> None:
    """A forbidden command of a megabyte, as fast as somebody can ask for it."""
    file, clock = tmp_path / "audit.jsonl", Clock()
    log = open_log(file, clock=clock, max_bytes=100_000, keep=2, keep_for=3600.0)
    log.record(record(1))
    for minute in range(3):
        for number in range(1000):
            refused = record(
                number, command="x" * 1_000_000, reason="busy" if number % 2 else "forbidden"
            )
            log.record(refused, is_refusal=True)
        clock.now += 60
        if minute == 1:
            log.record(record(2))
    log.tell_refusals()
    log.tell_refusals(now=True)
    files = sorted(tmp_path.iterdir(), reverse=True)
    lines = [json.loads(line) for one in files for line in one.read_text("utf-8").splitlines()]
    run = [line["command_id"] for line in lines if line.get("reason", "-") is None]
    assert run == ["cmd_1", "cmd_2"]
    refused = [line for line in lines if line.get("reason")]
    summed_up = [line for line in lines if "refusals_not_recorded" in line]
    assert len(refused) <= 180
    assert [line["refusals_not_recorded"] for line in summed_up] == [940] * 3
    assert summed_up[0]["reasons"] == {"busy": 470, "forbidden": 470}


def test_a_refusal_that_was_counted_is_told_with_the_next_record_or_at_the_end(
    tmp_path: Path,
) -> None:
    file, clock = tmp_path / "audit.jsonl", Clock()
    log = open_log(file, clock=clock, refusals_per_minute=1)
    for _ in range(3):
        log.record(record(1, reason="forbidden"), is_refusal=True)
    log.tell_refusals()
    assert len(file.read_bytes().splitlines()) == 1
    clock.now += 60
    log.record(record(2))
    _, summary, last = map(json.loads, file.read_bytes().splitlines())
    assert (summary["refusals_not_recorded"], last["command_id"]) == (2, "cmd_2")
    for _ in range(3):
        log.record(record(3, reason="forbidden"), is_refusal=True)
    log.close()
    assert json.loads(file.read_bytes().splitlines()[-1])["reasons"] == {"forbidden": 2}


def test_refusals_of_one_tenant_leave_room_for_those_of_others(tmp_path: Path) -> None:
    file, clock = tmp_path / "audit.jsonl", Clock()
    log = open_log(file, clock=clock, refusals_per_minute=4)
    for _ in range(2):
        for _ in range(10):
            log.record(record(1, reason="forbidden"), is_refusal=True, tenant="evil")
        for tenant in ("good", ""):
            log.record(record(2, reason="forbidden"), is_refusal=True, tenant=tenant)
        clock.now += 60
    log.close()
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [line.get("command_id") for line in lines] == [*["cmd_1"] * 3, "cmd_2", None] * 2
    assert [line["refusals_not_recorded"] for line in lines if "reasons" in line] == [8, 8]


def test_made_up_reasons_are_not_counted_apart_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    log = open_log(file, refusals_per_minute=1)
    for number in range(1000):
        log.record(record(1, reason=f"r{number}"), is_refusal=True)
    log.close()
    reasons = json.loads(file.read_bytes().splitlines()[-1])["reasons"]
    assert len(reasons) == 33
    assert sum(reasons.values()) == 999


def test_what_is_young_stays_however_much_is_written(tmp_path: Path) -> None:
    file, clock = tmp_path / "audit.jsonl", Clock()
    line = line_length(tmp_path, record(100))
    log = open_log(file, clock=clock, max_bytes=line * 2, keep=2, keep_for=3600.0)
    for number in range(100, 120):
        log.record(record(number))
        os.utime(file, (clock.now, clock.now))
        clock.now += 60
    kept = sorted(n for one in tmp_path.iterdir() for n in numbers(one))
    assert kept == list(range(100, 120))
    # An hour later, the first ones may go; those under `keep` stay whatever their age.
    clock.now += 3600 - 10 * 60
    log.record(record(120))
    kept = sorted(n for one in tmp_path.iterdir() for n in numbers(one))
    assert kept == list(range(110, 121))


def test_a_disk_that_is_nearly_full_ends_that_and_the_log_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logs("info", "json")
    file = tmp_path / "audit.jsonl"
    line = line_length(tmp_path, record(10))
    log = open_log(
        file, max_bytes=line, keep=2, keep_for=3600.0, free=1_000_000, min_free=1_000_001
    )
    for number in range(10, 15):
        log.record(record(number))
    assert sorted(n for one in tmp_path.iterdir() for n in numbers(one)) == [12, 13, 14]
    said = [json.loads(text) for text in capfd.readouterr().err.splitlines()]
    assert [entry["event"] for entry in said] == ["audit records removed early"] * 2
    assert "only 1000000 bytes are free" in said[0]["cause"]
    assert said[0]["file"].endswith("audit.jsonl.3")
