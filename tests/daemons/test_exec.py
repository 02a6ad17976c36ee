"""Commands from the internal API, through proxy and agent as processes, to a real sshd and back."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from support.daemons import Daemon
from support.sshd import SshServer, running_sshd
from support.tree import ROOT
from support.tunnels import Tunnel
from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.commands import CommandRequest, Exited, Output, Started

pytestmark = pytest.mark.slow  # each starts processes

SECRET = "the-secret-of-the-back-end"

EXEC = """
[exec]
enabled = true
hosts = ["127.0.0.0/8"]
users = ["*"]
commands = ["*"]
"""


@pytest.fixture
async def sshd(
    tmp_path: Path, debian_program: Callable[[str, str], str]
) -> AsyncIterator[SshServer]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    async with running_sshd(folder, debian_program) as server:
        yield server


class Site:
    """A proxy with its internal API and audit, and a device that runs commands."""

    def __init__(self, tunnel: Tunnel, sshd: SshServer, folder: Path) -> None:
        self.tunnel = tunnel
        self.sshd = sshd
        self.folder = folder
        self.key = (sshd.folder / "user_key").read_text("ascii")
        self.secret_file = folder / "internal.secret"

    async def start(self) -> None:
        self.secret_file.write_text(SECRET)
        self.secret_file.chmod(0o600)
        self.tunnel.daemons.secrets |= {SECRET, self.key.splitlines()[2]}
        await self.tunnel.start_proxy(
            more=f'[internal]\nlisten = "127.0.0.1:0"\nsecret_file = "{self.secret_file}"\n'
            f'[audit]\nfile = "{self.folder}/proxy.jsonl"\n'
        )
        address = await self.tunnel.proxy.listening("internal.listen")
        self.url = f"http://{address}"
        self.client = ProxyClient(self.url, secret=SECRET)

    async def start_agent(self, device: str = "dev1", more: str = EXEC) -> Daemon:
        state = self.folder / f"state-{device}"
        state.mkdir(mode=0o700, exist_ok=True)
        os.environ["XDG_STATE_HOME"] = str(state)
        return await self.tunnel.start_agent(
            {"web": "http://127.0.0.1:1"},
            device=device,
            more=f'{more}[audit]\nfile = "{self.folder}/{device}.jsonl"\n',
        )

    def request(self, command: str, **more: object) -> CommandRequest:
        content: dict[str, object] = {
            "commandId": f"c-{os.urandom(4).hex()}",
            "host": self.sshd.address.host,
            "port": self.sshd.address.port,
            "username": self.sshd.user,
            "privateKey": self.key,
            "command": command,
            **more,
        }
        return CommandRequest.from_json(content)

    def audit(self, who: str) -> list[dict[str, object]]:
        lines = (self.folder / f"{who}.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
async def site(
    tunnel: Tunnel, sshd: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Site:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    site = Site(tunnel, sshd, tmp_path)
    await site.start()
    return site


async def run(site: Site, devices: object, request: CommandRequest) -> tuple[bytes, bytes, Exited]:
    """What one device wrote, and its end."""
    got = {"stdout": b"", "stderr": b""}
    with trio.fail_after(30):
        async with site.client.exec(devices, request) as events:  # type: ignore[arg-type]
            async for _, event in events:
                if isinstance(event, Output):
                    got[event.stream] += event.data
                elif isinstance(event, Exited):
                    end = event
    return got["stdout"], got["stderr"], end


async def test_a_command_runs_on_a_device_and_is_written_down_twice(site: Site) -> None:
    await site.start_agent()
    request = site.request("printf 'a\\377b'; echo oh >&2; exit 7")
    out, err, end = await run(site, "dev1", request)
    assert (out, err) == (b"a\xffb", b"oh\n")
    assert (end.exit_code, end.reason, end.stdout_bytes, end.stderr_bytes) == (7, None, 3, 3)
    for who in ("proxy", "dev1"):
        [line] = site.audit(who)
        assert line["command_id"] == request.command_id
        assert (line["device"], line["user"], line["exit_code"]) == ("dev1", site.sshd.user, 7)
        assert (line["stdout_bytes"], line["stderr_bytes"]) == (3, 3)
        assert str(line["asked_by"]).startswith("127.0.0.1:")
        assert site.key.splitlines()[2] not in json.dumps(line)


async def test_metrics_tell_how_commands_came_by_their_ssh_connections(site: Site) -> None:
    def read() -> str:
        headers = {"Authorization": f"Bearer {SECRET}"}
        request = urllib.request.Request(f"{site.url}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read(), "utf-8")

    async def ssh_figures() -> dict[str, float]:
        text = await trio.to_thread.run_sync(read)
        lines = [line for line in text.splitlines() if line.startswith("tunnelmux_ssh_")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    agent = await site.start_agent()
    for _ in range(3):
        assert (await run(site, "dev1", site.request("true")))[2].exit_code == 0
    assert (await run(site, "dev1", site.request("true", port=1)))[2].reason == "refused"
    figures = await ssh_figures()
    for result, count in {"new": 1, "reused": 2, "failed": 1}.items():
        assert figures[f'tunnelmux_ssh_connects_total{{result="{result}"}}'] == count
    assert figures["tunnelmux_ssh_connect_seconds_count"] == 1
    assert 0 < figures["tunnelmux_ssh_connect_seconds_sum"] < 15
    assert figures["tunnelmux_ssh_pooled_connections"] == 1

    agent.send_signal(signal.SIGKILL)
    with trio.fail_after(30):
        while (await ssh_figures())["tunnelmux_ssh_pooled_connections"]:  # noqa: ASYNC110
            await trio.sleep(0.05)


async def test_ten_mebibytes_come_up_to_the_limit_and_are_counted_whole(site: Site) -> None:
    await site.start_agent()
    request = site.request("head -c 10485760 /dev/zero | tr '\\0' x")
    out, _, end = await run(site, "dev1", request)
    assert (end.exit_code, end.stdout_bytes) == (0, 10_485_760)
    assert len(out) == 8_388_608  # exec.max_output
    [result] = await site.client.exec_results("dev1", request)
    assert result.result.exit_code == 0
    assert result.result.truncated
    assert result.result.stdout.endswith("[truncated: stdout was over 8388608 bytes]\n")


async def test_failures_have_their_reasons(site: Site) -> None:
    await site.start_agent()
    for request, exit_code, reason in [
        (site.request("true", port=1), 255, "refused"),
        (site.request("true", privateKey=None, password="wrong"), 255, "auth-failed"),
        (site.request("true", host="192.0.2.1"), 126, "forbidden"),
        (site.request("sleep 60", timeout=700), 124, "timeout"),
    ]:
        _, _, end = await run(site, "dev1", request)
        assert (end.exit_code, end.reason) == (exit_code, reason), end
        assert end.message
    _, _, end = await run(site, "dev2", site.request("true"))
    assert (end.exit_code, end.reason) == (255, "device-offline")
    assert [line["reason"] for line in site.audit("proxy")] == [
        *("refused", "auth-failed", "forbidden", "timeout", "device-offline")
    ]


async def test_a_device_runs_nothing_unless_it_allows_it(site: Site, tmp_path: Path) -> None:
    await site.start_agent(more="")
    mark = tmp_path / "mark"
    _, _, end = await run(site, "dev1", site.request(f"touch {mark}"))
    assert (end.exit_code, end.reason) == (126, "forbidden")
    assert not mark.exists()


async def test_leaving_kills_the_command_on_the_device(site: Site, tmp_path: Path) -> None:
    await site.start_agent()
    mark = tmp_path / "pid"
    request = site.request(f"echo $$ > {mark}; exec sleep 300")
    async with site.client.exec("dev1", request) as events:
        assert isinstance((await anext(events))[1], Started)
        with trio.fail_after(30):
            while not (mark.exists() and mark.read_text().strip()):  # noqa: ASYNC110
                await trio.sleep(0.01)
    process = mark.read_text().strip()
    with trio.fail_after(30):
        while Path(f"/proc/{process}").exists():  # noqa: ASYNC110, ASYNC240  proc(5) does not block
            await trio.sleep(0.01)


async def test_an_agent_that_is_killed_loses_its_command_and_it_is_said(
    site: Site, tmp_path: Path
) -> None:
    agent = await site.start_agent()
    async with site.client.exec("dev1", site.request("sleep 300", timeout=600_000)) as events:
        assert isinstance((await anext(events))[1], Started)
        agent.send_signal(signal.SIGKILL)
        with trio.fail_after(30):
            _, end = await anext(events)
    assert isinstance(end, Exited)
    assert (end.exit_code, end.reason) == (255, "lost")
    # A command that comes while its device is away waits for it.
    await agent.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.start_agent)
        out, _, end = await run(site, "dev1", site.request("echo back"))
    assert (out, end.exit_code) == (b"back\n", 0)


async def test_people_run_it_on_many_devices(site: Site) -> None:
    for device in ("dev1", "dev2"):
        await site.start_agent(device)
    with trio.fail_after(30):
        done = await trio.run_process(
            [
                *(sys.executable, str(ROOT / "cmd" / "tunnelmux"), "exec", "dev*"),
                *("--url", site.url, "--secret-file", str(site.secret_file)),
                *("--port", str(site.sshd.address.port)),
                *("--identity-file", str(site.sshd.folder / "user_key")),
                *("--", "echo", "two  words", "$HOME"),
            ],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "COLUMNS": "100"},
        )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        b"dev1 | two  words $HOME",
        b"dev2 | two  words $HOME",
    ]
    assert done.stderr.endswith(b"All 2 succeeded.\n")


async def test_hup_begins_another_audit_file_and_sigterm_waits_for_commands(
    site: Site, tmp_path: Path
) -> None:
    await site.start_agent()
    proxy = site.tunnel.proxy
    file = site.tunnel.daemons.file(proxy.name)
    file.write_text(file.read_text().replace("proxy.jsonl", "second.jsonl"))
    since = len(proxy.events)
    proxy.send_signal(signal.SIGHUP)
    await proxy.logged("configuration reloaded", since=since)
    async with site.client.exec("dev1", site.request("sleep 1; echo done")) as events:
        assert isinstance((await anext(events))[1], Started)
        proxy.send_signal(signal.SIGTERM)
        rest = [event async for _, event in events]
    assert rest[0] == Output("stdout", b"done\n")
    assert await proxy.wait() == 0
    assert [line["reason"] for line in site.audit("second")] == [None]
    assert site.audit("proxy") == []


async def test_without_the_secret_nothing_runs(site: Site) -> None:
    await site.start_agent()
    with pytest.raises(ApiCallFailed, match="UNAUTHORIZED"):
        await ProxyClient(site.url, secret="wrong").exec_results("dev1", site.request("true"))
    assert site.audit("proxy") == []
