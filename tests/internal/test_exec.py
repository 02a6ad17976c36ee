"""POST /internal/exec, with agents that answer from memory."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from support.exec_agent import exec_agents
from support.internal import SECRET, Bench, Caller, running_bench
from tunnelmux.commands import CommandRequest, Exited, Output
from tunnelmux.limits import InternalLimits
from tunnelmux.proxy.internal.exec import _Document

COMMAND = {"host": "127.0.0.1", "username": "root", "command": "echo hello"}
JSON = f"Authorization: Bearer {SECRET}\r\nAccept: application/json\r\n"


async def read_lines(caller: Caller) -> list[dict[str, Any]]:
    """A whole answer of events."""
    head = await caller.read_head()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    assert b"Content-Type: application/x-ndjson\r\n" in head
    content = b""
    while chunk := await caller.read_chunk():
        content += chunk
    return [json.loads(line) for line in content.splitlines()]


async def send_exec(bench: Bench, devices: object, capacity: int | None = None, **more: Any):
    caller = await bench.caller(capacity)
    body = json.dumps({**COMMAND, "devices": devices, **more}).encode()
    await caller.send(
        b"POST /internal/exec HTTP/1.1\r\nHost: 127.0.0.1:3801\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
        % (SECRET.encode(), len(body), body)
    )
    return caller


async def run_exec(bench: Bench, devices: object, **more: Any) -> list[dict[str, Any]]:
    return await read_lines(await send_exec(bench, devices, **more))


async def test_one_device_streams_its_events() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1") as agents:
        lines = await run_exec(bench, "dev1", commandId="cmd_1", password="hunter2", timeout=5000)
        [request] = agents["dev1"].requests
    assert lines == [
        {"event": "begin", "commandId": "cmd_1", "devices": ["dev1"]},
        {"device": "dev1", "event": "started", "commandId": "cmd_1", "at": 1_700_000_000.5},
        {
            "device": "dev1",
            "event": "stdout",
            "data": base64.b64encode(b"hello from dev1\n").decode(),
        },
        {
            "device": "dev1",
            "commandId": "cmd_1",
            "event": "exit",
            "exitCode": 0,
            "duration": 0.25,
            "stdoutBytes": 16,
            "stderrBytes": 0,
        },
        {"event": "end", "succeeded": 1, "failed": 0},
    ]
    assert request == {
        "commandId": "cmd_1",
        "host": "127.0.0.1",
        "port": 22,
        "username": "root",
        "password": "hunter2",
        "command": "echo hello",
        "timeout": 5000,
    }


async def test_one_document_has_the_result_that_back_ends_know() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1", "dev2"):
        content = {**COMMAND, "devices": ["dev2", "dev1"], "commandId": "c", "command": "exit 3"}
        reply = await bench.ask("POST", "/internal/exec", content, headers=JSON)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    document = reply.json
    assert (document["commandId"], document["succeeded"], document["failed"]) == ("c", 0, 2)
    results = sorted(document["results"], key=lambda result: result["device"])
    assert results[0] == {
        "device": "dev1",
        "commandId": "c.dev1",
        "duration": 0.5,
        "result": {"stdout": "", "stderr": "no luck\n", "exitCode": 3},
    }
    assert results[1]["device"] == "dev2"


async def test_bytes_are_exact_in_the_stream_and_replaced_in_the_document() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        lines = await run_exec(bench, "dev1", command="bytes 00ff410a")
        content = {**COMMAND, "devices": "dev1", "command": "bytes 00ff410a"}
        reply = await bench.ask("POST", "/internal/exec", content, headers=JSON)
    [data] = [line["data"] for line in lines if line["event"] == "stdout"]
    assert base64.b64decode(data) == b"\x00\xffA\n"
    [result] = [entry["result"] for entry in reply.json["results"]]
    assert result["stdout"] == "\x00\ufffdA\n"
    assert result["encoding"] == "utf-8, invalid bytes replaced"


async def test_a_whole_number_may_have_a_point() -> None:
    """As JSON Schema has it, and as JavaScript writes none: 22.0 is 22."""
    async with running_bench() as bench, exec_agents(bench, "dev1") as agents:
        await run_exec(bench, "dev1", port=2222.0, concurrency=6.0)
    assert agents["dev1"].requests[0]["port"] == 2222


@pytest.mark.parametrize(
    ("selectors", "chosen"),
    [
        ("all", ["cam-1", "cam-2", "dev1", "dev2", "dev3"]),
        (["cam-*"], ["cam-1", "cam-2"]),
        (["dev[13]", "dev2", "dev1"], ["dev1", "dev3", "dev2"]),
        (["dev2", "all"], ["dev2", "cam-1", "cam-2", "dev1", "dev3"]),
        (["dev9"], ["dev9"]),  # disabled: only when it is meant
    ],
)
async def test_selectors(selectors: object, chosen: list[str]) -> None:
    async with running_bench() as bench, exec_agents(bench, "cam-1", "cam-2", "dev1", "dev2"):
        lines = await run_exec(bench, selectors)
    assert lines[0]["devices"] == chosen
    ends = {line["device"]: line for line in lines if line["event"] == "exit"}
    assert sorted(ends) == sorted(chosen)
    for name, end in ends.items():
        wanted = {"dev3": "device-offline", "dev9": "device-disabled"}.get(name)
        assert end.get("reason") == wanted
        assert end["exitCode"] == (255 if wanted else 0)
    ids = [line["commandId"] for line in lines if line["event"] == "exit"]
    assert len(set(ids)) == len(chosen)


@pytest.mark.parametrize("selectors", ["dev4", ["dev1", "dev4"], ["x*"], ["dev1", "[z]"]])
async def test_a_selector_that_matches_nothing_runs_nothing(selectors: object) -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1") as agents:
        reply = await bench.ask("POST", "/internal/exec", {**COMMAND, "devices": selectors})
        assert (reply.status, reply.code) == (404, "UNKNOWN_DEVICE")
        assert reply.json["error"]["field"] == "devices"
        assert agents["dev1"].requests == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("devices", None),
        ("devices", []),
        ("devices", [""]),
        ("devices", [7]),
        ("devices", {"dev1": True}),
        ("host", None),
        ("host", 7),
        ("username", ""),
        ("command", None),
        ("command", ["ls"]),
        ("port", "22"),
        ("port", 65_536),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", 3_600_001),
        ("timeout", "30 s"),
        ("password", 7),
        ("stdin", "not base64!"),
        ("commandId", 7),
        ("concurrency", 0),
        ("concurrency", 33),
        ("concurrency", True),
        ("abortOnError", "yes"),
        ("askedBy", "two\nlines"),
        ("askedBy", "x" * 129),
    ],
)
async def test_a_field_that_is_missing_or_wrong_is_named(field: str, value: object) -> None:
    content = {**COMMAND, "devices": ["dev1"], field: value}
    async with running_bench() as bench, exec_agents(bench, "dev1") as agents:
        reply = await bench.ask("POST", "/internal/exec", content)
        assert (reply.status, reply.code) == (400, "INVALID_COMMAND")
        assert reply.json["error"]["field"] == field
        assert field in reply.json["error"]["message"]
        assert agents["dev1"].requests == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "INVALID_JSON"),
        (b"{", "INVALID_JSON"),
        (b"[" * 100_000, "INVALID_JSON"),
        (b"[]", "INVALID_COMMAND"),
        (b'"all"', "INVALID_COMMAND"),
    ],
)
async def test_what_is_no_command_is_refused(body: bytes, code: str) -> None:
    async with running_bench() as bench:
        reply = await bench.ask("POST", "/internal/exec", body=body)
    assert (reply.status, reply.code) == (400, code)


async def test_the_request_the_devices_and_the_ids_are_bounded() -> None:
    limits = InternalLimits(max_exec_request=1000, max_exec_devices=2)
    async with running_bench(limits=limits) as bench, exec_agents(bench, "dev1"):
        content = {**COMMAND, "devices": "dev1", "stdin": "A" * 1000}
        reply = await bench.ask("POST", "/internal/exec", content)
        assert (reply.status, reply.code) == (413, "BODY_TOO_LARGE")
        reply = await bench.ask("POST", "/internal/exec", {**COMMAND, "devices": "all"})
        assert (reply.status, reply.code) == (400, "INVALID_COMMAND")
        assert "max_exec_devices" in reply.json["error"]["message"]
        long = {**COMMAND, "devices": ["dev1", "dev2"], "commandId": "x" * 65}
        reply = await bench.ask("POST", "/internal/exec", long)
        assert reply.json["error"]["field"] == "commandId"


@pytest.mark.parametrize(
    ("command", "exit_code", "reason", "text"),
    [
        ("status 403", 126, "forbidden", "said 403"),
        ("status 503", 255, "busy", "said 503"),
        ("status 404", 255, "not-supported", "update it"),
        ("status 400", 255, "invalid", "said 400"),
        ("fail timeout", 124, "timeout", "it was timeout"),
        ("fail auth-failed", 255, "auth-failed", "it was auth-failed"),
        ("cut", 255, "lost", "not known"),
        ("nonsense", 255, "lost", "cannot be understood"),
        ("unfinished", 255, "lost", "too early"),
        ("silence", 255, "lost", "did not end the command within 60 s"),
    ],
)
async def test_every_failure_is_a_result(
    command: str,
    exit_code: int,
    reason: str,
    text: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1", "dev2"):
        lines = await run_exec(bench, ["dev1"], command=command)
        [end] = [line for line in lines if line["event"] == "exit"]
        assert (end["exitCode"], end["reason"]) == (exit_code, reason)
        assert text in end["message"]
        assert lines[-1] == {"event": "end", "succeeded": 0, "failed": 1}
        [record] = bench.records.all
        assert (record.exit_code, record.reason) == (exit_code, reason)


async def test_concurrency_is_bounded_and_results_come_as_they_finish(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        running_bench() as bench,
        exec_agents(bench, "dev1", "dev2", "dev3", "cam-1", "cam-2"),
    ):
        started = trio.current_time()
        lines = await run_exec(bench, "all", command="sleep 10", concurrency=2)
        assert 30 <= trio.current_time() - started < 31
    most = running = 0
    for line in lines:
        running += {"started": 1, "exit": -1}.get(line["event"], 0)
        most = max(most, running)
    assert most == 2
    assert lines[-1] == {"event": "end", "succeeded": 5, "failed": 0}


async def test_all_calls_together_are_bounded_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = InternalLimits(max_commands=1)
    async with running_bench(limits=limits) as bench, exec_agents(bench, "dev1", "dev2"):
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for device in ("dev1", "dev2", "dev1"):
                caller = await send_exec(bench, device, command="sleep 5")
                nursery.start_soon(read_lines, caller)
            await trio.sleep(1)
            text = (await bench.ask("GET", "/metrics")).body.decode()
        assert 15 <= trio.current_time() - started < 16
    assert "tunnelmux_commands_running 1.0" in text
    assert "tunnelmux_commands_waiting 2.0" in text


async def test_abort_on_error_ends_the_others_and_begins_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        running_bench() as bench,
        exec_agents(bench, "dev1", "dev2", "cam-1") as agents,
    ):
        caller = await send_exec(
            bench,
            ["dev1", "dev2", "cam-1"],
            command="trouble dev2",
            concurrency=2,
            abortOnError=True,
        )
        lines = await read_lines(caller)
        ends = {line["device"]: line for line in lines if line["event"] == "exit"}
        assert [(end["exitCode"], end.get("reason")) for _, end in sorted(ends.items())] == [
            (255, "skipped"),
            (255, "aborted"),
            (3, None),
        ]
        assert lines[-1] == {"event": "end", "succeeded": 0, "failed": 3}
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert agents["dev1"].ended_early == 1
        assert agents["cam-1"].requests == []
        reasons = [(record.device, record.reason) for record in bench.records.all]
        # What was not begun is no command.
        assert sorted(reasons) == [("dev1", "cancelled"), ("dev2", None)]


@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/json"])
async def test_a_caller_that_leaves_ends_its_commands(
    accept: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1", "dev2") as agents:
        caller = await bench.caller()
        body = json.dumps({**COMMAND, "devices": "dev*", "command": "sleep 1000"}).encode()
        head = f"Authorization: Bearer {SECRET}\r\nAccept: {accept}\r\nContent-Length: {len(body)}"
        await caller.send(
            b"POST /internal/exec HTTP/1.1\r\nHost: 127.0.0.1:3801\r\n%s\r\n\r\n%s"
            % (head.encode(), body)
        )
        with trio.fail_after(10):
            while not agents["dev2"].running:  # noqa: ASYNC110
                await trio.sleep(0.01)
        caller.stream.reset()
        with trio.fail_after(10):
            while agents["dev1"].running + agents["dev2"].running:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert agents["dev1"].ended_early == agents["dev2"].ended_early == 1
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert {record.reason for record in bench.records.all} == {"cancelled", "device-offline"}
        assert bench.server.in_progress == 0


async def test_heartbeats_fill_a_silence(autojump_clock: trio.testing.MockClock) -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        lines = await run_exec(bench, "dev1", command="sleep 40", timeout=60_000)
    waiting = [line for line in lines if line["event"] == "waiting"]
    assert waiting == [{"event": "waiting", "running": 1}] * 2


async def test_a_caller_that_reads_nothing_is_cut(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = InternalLimits(exec_stall=20.0)
    async with running_bench(limits=limits) as bench, exec_agents(bench, "dev1") as agents:
        caller = await send_exec(bench, "dev1", capacity=4096, command="flood 8388608")
        await caller.read_head()
        started = trio.current_time()
        while agents["dev1"].ended_early == 0:  # noqa: ASYNC110
            await trio.sleep(0.1)
        assert trio.current_time() - started == pytest.approx(20, abs=1)


async def test_a_slow_caller_gets_everything_and_the_commands_time_waits_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    size = 2_097_152
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        caller = await send_exec(
            bench, "dev1", capacity=65_536, command=f"flood {size}", timeout=1000
        )
        await caller.read_head()
        content = b""
        while chunk := await caller.read_chunk():
            content += chunk
            await trio.sleep(2)
        assert trio.current_time() > 50  # longer than timeout and the slack
    lines = [json.loads(line) for line in content.splitlines()]
    got = sum(len(base64.b64decode(line["data"])) for line in lines if line["event"] == "stdout")
    assert got == size
    assert lines[-2]["exitCode"] == 0


async def test_a_document_holds_at_most_the_limit() -> None:
    limits = InternalLimits(max_exec_answer=100_000)
    async with running_bench(limits=limits) as bench, exec_agents(bench, "dev1", "dev2"):
        content = {**COMMAND, "devices": ["dev1", "dev2"], "command": "flood 262144"}
        reply = await bench.ask("POST", "/internal/exec", content, headers=JSON)
    results = [entry["result"] for entry in reply.json["results"]]
    assert 90_000 < sum(result["stdout"].count("x") for result in results) < 100_000
    assert all(result["truncated"] for result in results)
    assert all("[truncated: stdout was over" in result["stdout"] for result in results)
    assert len(reply.body) < 100_500


@pytest.mark.parametrize("byte", ["00", "ff", "22", "c3a4", "78"])
async def test_the_limit_is_of_the_document_and_not_of_what_it_was_before_it_was_json(
    byte: str,
) -> None:
    limits = InternalLimits(max_exec_answer=20_000)
    async with running_bench(limits=limits) as bench, exec_agents(bench, "dev1"):
        content = {**COMMAND, "devices": "dev1", "command": "bytes " + byte * 30_000}
        reply = await bench.ask("POST", "/internal/exec", content, headers=JSON)
    assert 15_000 < len(reply.body) < 20_500
    assert reply.json["results"][0]["result"]["truncated"]


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("started", "a second started"),
        ("truncated", "a second truncated for stdout"),
        ("other-id", "commandId of another command"),
        ("long-line", "a line is longer than 262144 bytes"),
    ],
)
async def test_a_device_that_goes_on_for_ever_is_cut(accept: str, what: str, problem: str) -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1") as agents:
        content = {**COMMAND, "devices": "dev1", "command": f"endless {what}"}
        headers = f"Authorization: Bearer {SECRET}\r\nAccept: {accept}\r\n"
        caller = await bench.caller()
        with trio.fail_after(30):
            if accept == "application/json":
                reply = await caller.ask("POST", "/internal/exec", content, headers=headers)
                [entry] = reply.json["results"]
                assert entry["result"]["reason"] == "lost"
                assert problem in entry["result"]["stderr"]
                assert len(reply.body) < 1000
            else:
                lines = await run_exec(bench, "dev1", command=f"endless {what}")
                assert lines[-2]["reason"] == "lost"
                assert problem in lines[-2]["message"]
            while not agents["dev1"].ended_early:  # noqa: ASYNC110
                await trio.sleep(0.01)


def test_one_byte_at_a_time_is_kept_as_bytes_and_not_as_events() -> None:
    document = _Document(30_000)
    command = CommandRequest(command_id="c", host="h", username="u", command="ls")
    tracemalloc.start()
    try:
        for _ in range(100_000):
            document.add("dev1", command, Output("stdout", b"\0"))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 30_000
    document.add("dev1", command, Exited(0))
    [entry] = document.results
    assert len(msgspec.json.encode(entry)) < 30_000


async def test_a_devices_message_is_cut() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        lines = await run_exec(bench, "dev1", command="endless message")
    assert len(lines[-2]["message"]) == 2048


async def test_secrets_are_in_no_log_audit_or_metric(capfd: pytest.CaptureFixture[str]) -> None:
    secrets = {"password": "hunter2", "privateKey": "-----BEGIN X-----", "passphrase": "hunter3"}
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        await run_exec(
            bench, "dev1", **secrets, stdin="aHVudGVyNA==", command="echo private-output"
        )
        metrics = (await bench.ask("GET", "/metrics")).body.decode()
        [record] = bench.records.all
    out, err = capfd.readouterr()
    for text in (metrics, repr(record), out + err):
        for secret in (*secrets.values(), "hunter4", "aHVudGVyNA==", "private-output from"):
            assert secret not in text
    assert record.command == "echo private-output"


async def test_the_audit_says_who_where_what_and_how() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1") as agents:
        await run_exec(bench, "dev1", commandId="c7", command="exit 3", askedBy="alice Ä")
        [record] = bench.records.all
        assert b"Tunnelmux-Asked-By: alice %C3%84 (192.0.2.9:40000)\r\n" in agents["dev1"].heads[0]
    assert record.asked_by == "alice Ä (192.0.2.9:40000)"
    assert (record.device, record.host, record.user) == ("dev1", "127.0.0.1", "root")
    assert (record.command, record.command_id) == ("exit 3", "c7")
    assert (record.exit_code, record.stdout_bytes, record.stderr_bytes) == (3, 0, 8)
    assert record.reason is None
    assert record.time >= record.start


async def test_metrics_count_commands_by_outcome() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        for command in ("echo a", "exit 3", "exit 4", "fail timeout", "fail made-up"):
            await run_exec(bench, "dev1", command=command)
        await run_exec(bench, "dev3")
        text = (await bench.ask("GET", "/metrics")).body.decode()
    for outcome, count in {
        "ok": 1,
        "failed": 2,
        "timeout": 1,
        "device-offline": 1,
        "other": 1,
    }.items():
        assert f'tunnelmux_commands_total{{outcome="{outcome}"}} {count}.0' in text
    assert "tunnelmux_command_seconds_count 6.0" in text
    assert "tunnelmux_command_start_seconds_count 3.0" in text
    assert 'tunnelmux_command_output_bytes_total{stream="stderr"} 16.0' in text
    assert "dev1" not in text and "made-up" not in text


async def test_a_drain_waits_for_commands(autojump_clock: trio.testing.MockClock) -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        caller = await send_exec(bench, "dev1", command="sleep 5")
        await trio.sleep(1)
        assert bench.server.in_progress == 1
        bench.server.drain()
        lines = await read_lines(caller)
        assert lines[-1]["succeeded"] == 1
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert bench.server.in_progress == 0
