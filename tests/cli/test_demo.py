"""`tunnelmux demo`: what it shows, how it ends, and the live page it is about."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest
import trio
import trio_websocket
from click.testing import CliRunner
from rich.console import Console

from support.browser import browser_page
from support.shapes import of_whole
from tunnelmux.cli.demo import checks
from tunnelmux.cli.demo.checks import checks_of, run_check
from tunnelmux.cli.demo.origin import serve_page
from tunnelmux.cli.demo.report import TextReport
from tunnelmux.cli.demo.run import tunnel_demo
from tunnelmux.cli.demo.stage import Ports, Stage, running_stage
from tunnelmux.cli.main import tunnelmux
from tunnelmux.transports import open_listeners, serve_connections

CHECKS = [
    "web page",
    "header routing",
    "upload",
    "live events",
    "WebSocket echo",
    "TCP port",
    "unknown device",
]
ANY = Ports(0, 0, 0)
DEMO = (sys.executable, "-c", "from tunnelmux.cli.main import main; main()", "demo")


# -- as a program ---------------------------------------------------------------------------


@pytest.mark.slow
def test_once_prints_each_check_and_what_to_do_next_and_ends_with_status_0():
    done = subprocess.run([*DEMO, "--once"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line for line in done.stdout.splitlines() if line.startswith(" ✓ ")]
    assert [re.split("  +", row[3:])[0] for row in rows] == CHECKS
    assert all(row.rstrip().endswith(" ms") for row in rows)
    assert "All 7 checks passed." in done.stdout
    assert "tunnelmux-proxy --quickstart" in done.stdout
    assert "\x1b" not in done.stdout  # no terminal, no colours


@pytest.mark.slow
def test_ports_that_are_taken_are_replaced_by_free_ones():
    with taken(8080), taken(3800), taken(7007):
        done = subprocess.run([*DEMO, "--once"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for port in (8080, 3800, 7007):
        assert f"port {port} is taken, so it is " in done.stdout
    assert "demo.localhost:8080" not in done.stdout


@pytest.mark.slow
def test_a_reader_that_leaves_changes_nothing_but_the_reading():
    with subprocess.Popen(
        [*DEMO, "--once"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("✓ a web page listens on ")
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")


@pytest.mark.slow
def test_json_is_one_object():
    done = subprocess.run([*DEMO, "--once", "--json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    result = of_whole("tunnelmux demo", done.stdout)
    assert [check.name for check in result.checks] == CHECKS
    assert result.passed is True
    assert result.url.startswith("http://demo.localhost:")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_ctrl_c_and_its_commands_work(number):
    with subprocess.Popen(
        DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        shown = []
        for line in process.stdout:
            shown.append(line.rstrip("\n"))
            if "until Ctrl-C" in line:
                break
        port = next(line for line in shown if line.startswith("  http://")).rsplit(":")[2][:-1]
        tcp = next(line for line in shown if "nc -N" in line).split()[-1]
        with socket.create_connection(("127.0.0.1", int(tcp)), timeout=30) as visitor:
            visitor.sendall(b"hello\n")
            visitor.shutdown(socket.SHUT_WR)
            assert b"hello\n" in b"".join(iter(partial(visitor.recv, 4096), b""))
        with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as listener:
            listener.sendall(b"GET /ticks HTTP/1.1\r\nHost: demo.localhost\r\n\r\n")
            assert listener.recv(4096).startswith(b"HTTP/1.1 200 ")
            process.send_signal(number)  # with a visitor still there
            rest, errors = process.communicate(timeout=30)
    assert rest == "\nStopped.\n"
    assert (process.returncode, errors) == (0, "")


@contextmanager
def taken(port: int) -> Iterator[None]:
    """The port is in use for the length of the block, by us or by whoever was first."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            sock.bind(("127.0.0.1", port))
            sock.listen()
        yield


async def test_a_port_taken_at_the_last_moment_is_no_failure(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as rival:
        port = rival.getsockname()[1]
        monkeypatch.setattr("tunnelmux.cli.demo.stage.free_port", lambda port: port)
        async with running_stage(print, preferred=Ports(port, 0, 0)) as stage:
            assert stage.moved == {port: stage.http.port}
            assert (await run_check(checks_of(stage)[0])).passed


def test_help_has_examples_and_exit_statuses():
    result = CliRunner().invoke(tunnelmux, ["demo", "--help"])
    assert result.exit_code == 0
    assert "tunnelmux demo --once\n" in result.output
    assert "Exit status: 0 every check passed" in result.output


# -- when something is wrong ------------------------------------------------------------------


@pytest.fixture
def terminal() -> io.StringIO:
    return io.StringIO()


def report_to(file: io.StringIO, width: int = 100) -> TextReport:
    return TextReport(Console(file=file, width=width, highlight=False))


async def serve_nothing(*, task_status=trio.TASK_STATUS_IGNORED):
    """A page that closes every connection."""

    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    await serve_connections(hang_up, await open_listeners("127.0.0.1", 0), task_status=task_status)


async def test_a_check_that_fails_is_named_with_what_came_instead(terminal):
    demo = tunnel_demo(report_to(terminal), once=True, serve_page=serve_nothing, preferred=ANY)
    await demo.run()
    assert demo.results is not None
    failed = {result.name: result.seen for result in demo.results if not result.passed}
    assert failed == {
        "web page": "status 502, target-broke",
        "header routing": "status 502, target-broke",
        "upload": failed["upload"],  # cut while still sending, or answered
        "live events": "status 502, target-broke",
        "WebSocket echo": failed["WebSocket echo"],
    }
    assert "502" in failed["WebSocket echo"]
    shown = terminal.getvalue()
    assert "5 of 7 checks failed: web page, header routing, upload, live events" in shown
    assert "status 502, target-broke" in shown


async def test_a_check_that_hears_nothing_ends(monkeypatch, terminal):
    async def serve_silence(*, task_status=trio.TASK_STATUS_IGNORED):
        async def wait(stream: trio.SocketStream) -> None:
            await trio.sleep_forever()

        await serve_connections(wait, await open_listeners("127.0.0.1", 0), task_status=task_status)

    monkeypatch.setattr(checks, "CHECK_TIMEOUT", 0.1)
    async with running_stage(print, serve_page=serve_silence, preferred=ANY) as stage:
        result = await run_check(checks_of(stage)[0])
    assert not result.passed
    assert result.seen == "nothing came within 0.1 s"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--once"], ["--once", "--json"]])
def test_a_failed_check_is_status_1(monkeypatch, arguments):
    broken = partial(tunnel_demo, serve_page=serve_nothing)
    monkeypatch.setattr("tunnelmux.cli.demo.run.tunnel_demo", broken)
    # This process's logs are pytest's, and stay as they are.
    monkeypatch.setattr("tunnelmux.cli.demo.command.configure_logs", lambda _level: None)
    result = CliRunner().invoke(
        tunnelmux, ["demo", "--any-ports", *arguments], standalone_mode=False
    )
    assert result.return_value == 1
    assert "502" in result.stdout


@pytest.mark.parametrize("width", [80, 120])
async def test_commands_are_never_wrapped_and_the_table_fits(terminal, width):
    demo = tunnel_demo(report_to(terminal, width), once=True, preferred=ANY)
    async with trio.open_nursery() as nursery:
        await nursery.start(demo.run)
    lines = terminal.getvalue().splitlines()
    assert len([line for line in lines if line.startswith(" ✓ ")]) == len(CHECKS)
    table = lines[next(i for i, line in enumerate(lines) if "Through the proxy" in line) :]
    assert all(len(line.rstrip()) <= width for line in table[: len(CHECKS) + 2])
    assert all(row.rstrip().endswith(" ms") for row in table[2 : len(CHECKS) + 2])
    (agent,) = [line for line in lines if "tunnelmux-agent --join" in line]
    assert agent.endswith("--service ssh=tcp://127.0.0.1:22")


async def test_a_terminal_without_unicode_gets_ascii(capsysbinary):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    demo = tunnel_demo(TextReport(Console(file=stream, width=80)), once=True, preferred=ANY)
    await demo.run()
    stream.flush()
    shown = stream.buffer.getvalue().decode("ascii")
    assert "you --> proxy" in shown
    assert "+ the agent connected" in shown


# -- the page -------------------------------------------------------------------------------------


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with running_stage(print, preferred=ANY) as stage:
        yield stage


async def test_chat_reaches_every_window(stage):
    url = f"ws://{stage.http}/chat"
    named = {"extra_headers": [(b"Tunnelmux-Device", b"demo")]}
    async with (
        trio_websocket.open_websocket_url(url, **named) as one,
        trio_websocket.open_websocket_url(url, **named) as other,
    ):
        await one.send_message("first")  # so that the second window is known to be there
        assert await one.get_message() == "first"
        await other.send_message("<b>hello</b>")
        with trio.fail_after(20):
            assert await one.get_message() == "<b>hello</b>"
            while await other.get_message() != "<b>hello</b>":
                pass


async def test_echo_returns_text_and_binary(stage):
    async with trio_websocket.open_websocket_url(
        f"ws://{stage.http}/echo", extra_headers=[(b"Tunnelmux-Device", b"demo")]
    ) as websocket:
        for message in ("täxt", b"\x00\xff", "x" * 60_000):
            await websocket.send_message(message)
            assert await websocket.get_message() == message


async def test_what_the_page_does_not_have_is_404(stage):
    async with await trio.open_tcp_stream(*stage.http) as stream:
        await stream.send_all(
            b"GET /nothing HTTP/1.1\r\nHost: demo.localhost\r\nConnection: close\r\n\r\n"
        )
        answer = b"".join([bytes(data) async for data in stream])
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"The demo has no such page.\n")


async def test_rubbish_at_the_page_harms_nobody(stage):
    async with await trio.open_tcp_stream(*stage.page) as stream:
        await stream.send_all(b"rubbish\r\n\r\n")
        assert await stream.receive_some() == b""
    assert (await run_check(checks_of(stage)[0])).passed


async def test_page_needs_nothing_from_elsewhere(stage):
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_page)
        async with await trio.open_tcp_stream(*addresses[0]) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            page = b"".join([bytes(data) async for data in stream])
        nursery.cancel_scope.cancel()
    for reference in (b'src="http', b"src='http", b'href="http', b"url(http", b"@import"):
        assert reference not in page


@pytest.mark.slow
async def test_a_browser_sees_live_data(stage, chromium, tmp_path):
    async with browser_page(chromium, tmp_path / "profile") as page:
        await page.goto(stage.url)
        with trio.fail_after(20):
            await page.wait_until("Number(document.getElementById('ticks')?.textContent) >= 2")
            await page.wait_until("Number(document.getElementById('rtt').textContent) > 0")
            await page.wait_until("document.querySelector('#said li')")
            await page.wait_until("document.querySelector('tr.set')")
        seen = await page.evaluate("document.getElementById('seen').innerText")
        assert f"demo.localhost:{stage.http.port}" in seen
        assert "x-forwarded-for" in seen.lower()
        assert await page.evaluate("document.getElementById('at-page').textContent") == str(
            stage.page
        )
        assert await page.evaluate("document.getElementById('echo-state').textContent") == "live"
