"""The proxy's command as a real process: a port in use, and signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.proxies import free_port

pytestmark = pytest.mark.slow  # each starts a Python


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this machine that is taken for as long as the test runs."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def start_proxy(file: Path, *options: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-c", "from tunnelmux.cli.proxy import main; main()"),
            *("--config", file),
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_STATE_HOME": str(file.parent / "state-home")},
    )


def test_a_port_in_use_is_one_line_and_status_2(tmp_path, port):
    file = tmp_path / "proxy.toml"
    file.write_text(f'[tunnel]\nlisten = "127.0.0.1:{port}"\n')
    with start_proxy(file) as process:
        output, errors = process.communicate(timeout=45)
    assert process.returncode == 2
    assert output == ""
    sentence = errors.splitlines()[-1]
    assert sentence.startswith("tunnelmux-proxy: error: tunnel.listen: ")
    assert f"127.0.0.1:{port}" in sentence
    assert "choose another port" in sentence
    assert "Traceback" not in errors


def test_sighup_reloads_and_sigterm_ends_it_with_status_0(tmp_path):
    port = free_port()
    file = tmp_path / "proxy.toml"
    file.write_text(f'[tunnel]\nlisten = "127.0.0.1:{port}"\n')
    with start_proxy(file) as process:
        wait_until_listening(port)
        process.send_signal(signal.SIGHUP)
        told = wait_for_event(process, "configuration reloaded")
        assert told["changed"] == "nothing"
        file.write_text("[tunel]\n")
        process.send_signal(signal.SIGHUP)
        kept = wait_for_event(process, "configuration not reloaded; the one before stays")
        assert kept["error"] == f'{file}: tunel: is not a known key: did you mean "tunnel"?'
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=45)
    assert process.returncode == 0
    assert [json.loads(line)["level"] for line in errors.splitlines()].count("error") == 0


def test_sighup_reloads_a_quickstart_proxy_and_ends_it_no_more(tmp_path):
    port = free_port()
    file = tmp_path / "proxy.toml"
    quiet = f'[tunnel]\nlisten = "127.0.0.1:{port}"\n[ingress.http]\nlisten = "127.0.0.1:0"\n'
    file.write_text(quiet)
    options = ("--quickstart", "--state-dir", tmp_path / "state", "--public-host", "127.0.0.1")
    with start_proxy(file, *options) as process:
        wait_until_listening(port)
        certificate = (tmp_path / "state" / "tunnel.crt").read_bytes()
        file.write_text(quiet.replace(":0", f":{port}"))
        process.send_signal(signal.SIGHUP)
        wait_for_event(process, "configuration not reloaded; the one before stays")
        file.write_text(f'{quiet}[[devices]]\nname = "dev9"\ntoken = "t"\n')
        process.send_signal(signal.SIGHUP)
        told = wait_for_event(process, "configuration reloaded")
        assert told["changed"] == "+devices.dev9"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=45)
    assert process.returncode == 0
    assert (tmp_path / "state" / "tunnel.crt").read_bytes() == certificate
    assert "dev9" in (tmp_path / "state" / "quickstart.json").read_text()


def wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + 45
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "the proxy did not come up"
            time.sleep(0.05)


def wait_for_event(process: subprocess.Popen[str], event: str) -> dict[str, object]:
    """Read log lines up to the one with this event; pytest's own time limit bounds the wait."""
    assert process.stderr is not None
    for line in process.stderr:
        fields = json.loads(line)
        if fields["event"] == event:
            return fields
    raise AssertionError(f"the proxy ended without logging {event!r}")
