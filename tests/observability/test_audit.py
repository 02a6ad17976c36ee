"""The audit: one line per command, in files that rotate, and never lost with a full disk."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tunnelmux.errors import ConfigError
from tunnelmux.observability import AuditLog, AuditRecord, configure_logs
from tunnelmux.observability.audit import FileSink

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


def numbers(path: Path) -> list[int]:
    """Which commands the lines of a file are of."""
    lines = path.read_text("utf-8").splitlines()
    return [int(json.loads(line)["command_id"].removeprefix("cmd_")) for line in lines]


def test_a_line_has_these_keys_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    AuditLog.open(file, max_bytes=10_000, keep=1).record(record(reason="timeout"))
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
    }


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    before = os.umask(0)
    try:
        AuditLog.open(file, max_bytes=10_000, keep=1).record(record())
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_files_rotate_by_size_and_a_bounded_number_stays(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    line = len(msgspec.json.encode(record(10))) + 1
    log = AuditLog.open(file, max_bytes=line * 3, keep=2)
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


def test_a_line_larger_than_a_file_gets_one_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    log = AuditLog.open(file, max_bytes=4096, keep=3)
    log.record(record(1))
    log.record(record(2, command="x" * 5000))
    log.record(record(3))
    assert [numbers(tmp_path / name) for name in ("audit.jsonl.2", "audit.jsonl.1")] == [[1], [2]]
    assert numbers(file) == [3]


def test_it_goes_on_in_the_same_file_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    line = len(msgspec.json.encode(record(1))) + 1
    for number in range(1, 5):
        log = AuditLog.open(file, max_bytes=line * 3, keep=2)
        log.record(record(number))
        log.close()
    assert numbers(file) == [4]
    assert numbers(tmp_path / "audit.jsonl.1") == [1, 2, 3]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    log = AuditLog.open(file, max_bytes=10_000, keep=1)
    log.record(record(1))
    file.rename(tmp_path / "taken.jsonl")
    log.record(record(2))
    assert numbers(tmp_path / "taken.jsonl") == [1]
    assert numbers(file) == [2]


def test_what_a_command_holds_cannot_forge_a_line(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    log = AuditLog.open(file, max_bytes=10_000, keep=1)
    command = 'a\n{"command_id":"cmd_9"}\r\u2028\x00\x1b[2J'
    log.record(record(1, command=command))
    log.record(record(2, command="lone \udcff"))
    first, second = (json.loads(line) for line in file.read_bytes().split(b"\n")[:-1])
    assert first["command"] == command
    assert second["command"] == "lone ?"


def test_a_folder_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.file: .*cannot be written \(No such file"):
        AuditLog.open(tmp_path / "no" / "audit.jsonl", max_bytes=10_000, keep=1)


def test_without_a_file_the_log_has_it(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    AuditLog.open(None, max_bytes=10_000, keep=1).record(record(7, reason="lost"))
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["component"]) == ("command", "audit")
    assert (line["command_id"], line["asked_by"], line["reason"]) == ("cmd_7", "alice", "lost")


def test_a_record_that_cannot_be_written_is_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logs("info", "json")
    file = tmp_path / "audit.jsonl"
    log = AuditLog.open(file, max_bytes=10_000, keep=1)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:20]))
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
            self.rows: list[AuditRecord] = []
            self.is_closed = False

        def write(self, record: AuditRecord) -> None:
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
    sink = FileSink(tmp_path / "audit.jsonl", max_bytes=4096, keep=2)
    for number in range(40):
        sink.write(record(number))
    sink.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
