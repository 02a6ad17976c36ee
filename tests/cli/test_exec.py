"""tunnelmux exec: what somebody sees who runs a command on devices."""

from __future__ import annotations

import base64
import io
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from rich.console import Console

from support.exec_agent import exec_proxy
from support.shapes import of_lines
from support.tree import ROOT
from tunnelmux.cli.exec_output import ManyDevices, OneDevice, print_table
from tunnelmux.cli.main import tunnelmux
from tunnelmux.commands import Exited, Output, Started, Truncated, failure
from tunnelmux.proxy import RunningProxy


def arguments(proxy: RunningProxy, *words: str) -> list[str]:
    url = f"http://{proxy.internal_address}"
    return [sys.executable, str(ROOT / "cmd" / "tunnelmux"), "exec", "--url", url, *words]


def environment(more: Mapping[str, str] = {}) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "TUNNELMUX" not in name}
    return {**kept, "COLUMNS": "100", **more}


async def run_exec(
    proxy: RunningProxy, *words: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(30):
        return await trio.run_process(
            arguments(proxy, *words),
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(),
        )


@pytest.mark.slow
async def test_one_device_gives_its_bytes_and_its_status(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("hunter2 \n")
    password.chmod(0o600)
    async with exec_proxy("dev1") as (proxy, agents):
        done = await run_exec(proxy, "dev1", "--user", "pi", "--", "bytes 00ff0a41")
        assert (done.stdout, done.stderr, done.returncode) == (b"\x00\xff\nA", b"", 0)
        done = await run_exec(
            proxy,
            *("dev1", "--host", "10.0.0.7", "--port", "2222", "--user", "pi", "--timeout", "2.5"),
            *("--password-file", str(password), "--stdin", "--", "exit", "7"),
            stdin=b"typed",
        )
        assert (done.stdout, done.stderr, done.returncode) == (b"", b"no luck\n", 7)
        request = agents["dev1"].requests[1]
        assert request.pop("commandId") != agents["dev1"].requests[0]["commandId"]
        assert request == {
            "host": "10.0.0.7",
            "port": 2222,
            "username": "pi",
            "password": "hunter2 ",
            "command": "exit 7",
            "timeout": 2500,
            "stdin": base64.b64encode(b"typed").decode(),
        }
        done = await run_exec(proxy, "dev1", "--", "fail", "forbidden")
        assert done.returncode == 126
        assert done.stderr == b"tunnelmux exec: dev1: it was forbidden\n"


@pytest.mark.slow
async def test_a_program_gets_lines_of_json() -> None:
    async with exec_proxy("dev1") as (proxy, _):
        done = await run_exec(proxy, "dev1", "--json", "--", "bytes 00ff0a41")
        started, output, end = of_lines("tunnelmux exec", done.stdout)
        assert started.device == output.device == end.device == "dev1"
        assert base64.b64decode(output.data) == b"\x00\xff\nA"
        assert (end.exit_code, done.stderr, done.returncode) == (0, b"", 0)


@pytest.mark.slow
async def test_many_devices_are_told_apart_and_end_in_a_table() -> None:
    async with exec_proxy("cam-1", "cam-2", "dev1") as (proxy, _):
        done = await run_exec(proxy, "all", "--", "echo", "a b")
        assert sorted(done.stdout.splitlines()) == [
            b"cam-1 | 'a b' from cam-1",
            b"cam-2 | 'a b' from cam-2",
            b"dev1  | 'a b' from dev1",
        ]
        assert done.returncode == 0
        table = done.stderr.decode()
        assert re.search(r"✓ cam-1 +0 +250 ms +17 B", table)
        assert table.endswith("All 3 succeeded.\n")
        done = await run_exec(proxy, "cam-*", "--", "exit 9")
        assert done.returncode == 9
        assert b"cam-1 ! no luck\n" in done.stderr
        assert re.search("✗ cam-2 +9 ", done.stderr.decode())
        done = await run_exec(proxy, "cam-1", "nobody", "--", "echo x")
        assert (done.stdout, done.returncode) == (b"", 255)
        assert b'error: UNKNOWN_DEVICE (404): "nobody" is no device here' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_ends_the_commands_on_the_devices(number: signal.Signals) -> None:
    async with exec_proxy("dev1", "dev2") as (proxy, agents):
        process = await trio.lowlevel.open_process(
            arguments(proxy, "all", "--timeout", "600", "--", "trouble dev2x"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        with trio.fail_after(30):
            while not all(agent.running for agent in agents.values()):  # noqa: ASYNC110
                await trio.sleep(0.01)
            process.send_signal(number)
            while any(agent.running for agent in agents.values()):  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert await process.wait() == 130
        assert process.stderr is not None
        assert b"interrupted" in await process.stderr.receive_some()
        assert [agent.ended_early for agent in agents.values()] == [1, 1]


@pytest.mark.slow
async def test_a_reader_that_leaves_ends_it() -> None:
    async with exec_proxy("dev1") as (proxy, agents):
        process = await trio.lowlevel.open_process(
            arguments(proxy, "dev1", "--", f"flood {1 << 26}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        assert process.stdout is not None
        with trio.fail_after(30):
            await process.stdout.receive_some()
            await process.stdout.aclose()
            assert await process.wait() == 141
            while agents["dev1"].running:  # noqa: ASYNC110
                await trio.sleep(0.01)


@pytest.mark.slow
async def test_a_terminal_shows_progress_and_colours() -> None:
    async with exec_proxy("dev1", "dev2") as (proxy, _):
        ours, theirs = pty.openpty()
        shown = bytearray()

        async def read() -> None:
            while True:
                await trio.lowlevel.wait_readable(ours)
                try:
                    shown.extend(os.read(ours, 65_536))
                except OSError:  # the other side was closed
                    return

        try:
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    process = await trio.lowlevel.open_process(
                        arguments(proxy, "dev*", "--", "trouble dev1"),
                        stdin=subprocess.DEVNULL,
                        stdout=theirs,
                        stderr=theirs,
                        env=environment({"TERM": "xterm-256color"}),
                    )
                    nursery.start_soon(read)
                    while b"1/2 done, 1 failed" not in shown:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    process.send_signal(signal.SIGINT)
                    assert await process.wait() == 130
                    os.close(theirs)
        finally:
            os.close(ours)
    text = shown.decode()
    assert "0/2 done, 0:0" in text and re.search("running on dev[12] dev[12]", text)
    assert "✗ dev1" in text and "not known" in text
    assert text.rstrip().endswith("0 of 2 succeeded.\x1b[0m")


# -- without processes -----------------------------------------------------------------------


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(tunnelmux, ["exec", *words], prog_name="tunnelmux")
    return result.exit_code, result.output


def test_help_has_examples_and_exit_statuses() -> None:
    status, output = invoke("--help")
    assert status == 0
    assert "Usage: tunnelmux exec [OPTIONS] DEVICE... -- COMMAND...\n" in output
    assert "tunnelmux exec dev1 -- uptime\n" in output
    assert "Exit status: that of the command" in output


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--", "uptime"], "Missing argument 'DEVICE...'"),
        (["dev1"], 'no command: put it behind "--"'),
        (["dev1", "--"], 'no command: put it behind "--"'),
        (["dev1", "--timeout", "0", "--", "uptime"], "Invalid value for '--timeout'"),
        (["dev1", "--port", "x", "--", "uptime"], "Invalid value for '--port'"),
        (["dev1", "--host", "a b", "--", "uptime"], "host must be a host name"),
        (["dev1", "--user", "a\nb", "--", "uptime"], "username must be one line"),
    ],
)
def test_a_wrong_option_is_2_and_says_what_to_write(words: list[str], problem: str) -> None:
    status, output = invoke(*words)
    assert status == 2
    assert problem in output


@pytest.mark.parametrize("option", ["--password-file", "--identity-file", "--passphrase-file"])
def test_files_with_secrets_are_read_with_care(option: str, tmp_path: Path) -> None:
    def problem(content: bytes | None) -> str:
        file = tmp_path / "secret"
        if content is not None:
            file.write_bytes(content)
            file.chmod(0o600)
        result = CliRunner().invoke(tunnelmux, ["exec", "dev1", option, str(file), "--", "ls"])
        return str(result.exception)

    assert f"{option}: " in problem(None) and "cannot be read" in problem(None)
    assert "is empty" in problem(b"")
    assert "too long" in problem(b"x" * 70_000)
    assert "is no text" in problem(b"\xff\xfe")


async def test_lines_are_whole_and_prefixed(capfd: pytest.CaptureFixture[str]) -> None:
    report = ManyDevices(["dev1", "camera-2"])
    for device, event in [
        ("dev1", Started("c", 0.0)),
        ("dev1", Output("stdout", b"one\ntw")),
        ("camera-2", Output("stdout", b"else\r\n")),
        ("dev1", Output("stdout", b"o\nthree")),
        ("dev1", Output("stderr", b"oh\n")),
        ("camera-2", Truncated("stdout", 10)),
        ("dev1", Exited(0, 1.0)),
        ("camera-2", failure("timeout", "too slow")),
    ]:
        await report.see(device, event)
    out, err = capfd.readouterr()
    assert out.splitlines() == [
        "dev1     | one",
        "camera-2 | else",
        "dev1     | two",
        "dev1     | three",
    ]
    assert err.splitlines() == [
        "dev1     ! oh",
        "camera-2 ! [stdout was over 10 bytes; the rest is missing]",
        "camera-2 ! [timeout]",
    ]


async def test_a_line_without_an_end_is_not_kept_for_ever(
    capfd: pytest.CaptureFixture[str],
) -> None:
    report = ManyDevices(["a", "b"])
    for _ in range(5):
        await report.see("a", Output("stdout", b"x" * 30_000))
    out, _ = capfd.readouterr()
    assert out == f"a | {'x' * 90_000}\n"


def test_what_moves_the_cursor_is_taken_out_on_a_terminal() -> None:
    report = ManyDevices(["a", "b"])
    report._is_terminal[1] = True
    line = b"\x1b[31mred\x1b[m \x1b[2J\x1b]0;title\x07\x08\rfake | line\ttab"
    assert (
        report._line(b"a | ", line, 1) == b"a | \x1b[31mred\x1b[m 2J0;titlefake | line\ttab\x1b[m\n"
    )


async def test_one_device_says_why_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    report = OneDevice()
    await report.see("dev1", Output("stderr", b"its own\n"))
    await report.see("dev1", Truncated("stdout", 10))
    await report.see("dev1", failure("device-offline", "Device dev1 is offline."))
    out, err = capfd.readouterr()
    assert out == ""
    assert err == (
        "its own\ntunnelmux exec: dev1: stdout was over 10 bytes; the rest is missing\n"
        "tunnelmux exec: dev1: Device dev1 is offline.\n"
    )


def test_a_large_fleet_lists_what_failed() -> None:
    devices = [f"dev{number}" for number in range(200)]
    ends = {name: Exited(0, 0.1) for name in devices}
    ends["dev7"] = failure("unreachable", "no way leads there", duration=75.0)
    ends["dev8"] = Exited(2, 3.25, 2048, 1)
    console = Console(width=100, record=True, file=io.StringIO())
    print_table(console, devices, ends)
    text = console.export_text()
    assert re.search(r"dev7 +255 +1\.2 min +0 B +unreachable: no way leads there", text)
    assert re.search(r"dev8 +2 +3\.2 s +2\.0 KiB", text)
    assert "dev9" not in text
    assert "198 of 200 succeeded." in text


async def test_why_it_failed_does_nothing_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    end = failure("failed", "the sshd said \x1b]0;x\x07\x1b[2J\r\ntunnelmux exec: all is well")
    await OneDevice().see("dev1", end)
    told = capsys.readouterr().err
    assert told == ("tunnelmux exec: dev1: the sshd said �]0;x��[2J��tunnelmux exec: all is well\n")
    table = io.StringIO()
    print_table(Console(file=table, width=200), ["dev1"], {"dev1": end})
    assert "the sshd said" in table.getvalue()
    assert {char for char in table.getvalue() if not char.isprintable()} == {"\n"}
