"""The agent's own shell, with a real `ssh` and without tunnel and gateway in between."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from support.own_thread import replace_here
from support.terminal import Terminal, open_terminal
from tunnelmux.agent.own_shell import OwnShell
from tunnelmux.config import (
    AgentConfig,
    Device,
    InvalidSetting,
    ProxyEndpoint,
    Secret,
    load_agent_config,
)
from tunnelmux.config.shell import ShellConfig
from tunnelmux.errors import ConfigError
from tunnelmux.limits import ShellLimits
from tunnelmux.relay import relay

ME = pwd.getpwuid(os.geteuid()).pw_name


@dataclass
class Stage:
    """A shell behind a port of this machine, and a client with a key for it."""

    shell: OwnShell
    config: AgentConfig
    folder: Path
    port: int
    ssh: str
    notes: list[dict[str, Any]] = field(default_factory=list)

    def words(self, *command: str, account: str = ME) -> list[str]:
        settings = [
            f"IdentityFile={self.folder}/key",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            f"UserKnownHostsFile={self.folder}/known_hosts",
            "StrictHostKeyChecking=accept-new",
            "BatchMode=yes",
            "SendEnv=TUNNELMUX_ACTOR",
        ]
        options = [word for setting in settings for word in ("-o", setting)]
        login = ["-p", str(self.port), "-l", account, "127.0.0.1"]
        return [self.ssh, "-F", "none", *options, *login, *command]

    async def run(
        self, *command: str, account: str = ME, send: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        with trio.fail_after(50):
            return await trio.run_process(
                self.words(*command, account=account),
                stdin=send,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )

    async def terminal(self) -> Terminal:
        words = self.words()
        return await open_terminal([*words[:-3], "-tt", *words[-3:]])

    async def noted(self, what: str) -> dict[str, Any]:
        with trio.fail_after(30):
            while True:
                for note in self.notes:
                    if note["what"] == what:
                        return note
                await trio.sleep(0.02)

    def let_in(self, options: str = "") -> None:
        key = (self.folder / "key.pub").read_text()
        (self.folder / "keys").write_text(f"{options} {key}".lstrip())


OpenStage = Callable[..., Any]


@pytest.fixture
def open_stage(tmp_path: Path, debian_program: Callable[[str, str], str]) -> OpenStage:
    @asynccontextmanager
    async def make(**settings: Any) -> AsyncIterator[Stage]:
        keygen = debian_program("ssh-keygen", "openssh-client")
        await trio.run_process([keygen, "-q", "-t", "ed25519", "-N", "", "-f", f"{tmp_path}/key"])
        config = AgentConfig(
            device=Device(name="cam1", state_dir=tmp_path / "state"),
            proxy=ProxyEndpoint(url="ws://127.0.0.1:1/tunnel/connect", token=Secret("t" * 20)),
            shell=ShellConfig(
                **{"enabled": True, "user": ME, "authorized_keys": tmp_path / "keys"} | settings
            ),
        )
        notes: list[dict[str, Any]] = []
        shell = OwnShell(config, lambda what, **more: notes.append({"what": what} | more))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shell.run)

            async def serve(visitor: trio.SocketStream) -> None:
                try:
                    target = await shell.open(config.offered[-1])
                except OSError:
                    await visitor.aclose()
                    return
                await relay(visitor, target)

            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            port = listeners[0].socket.getsockname()[1]
            ssh = debian_program("ssh", "openssh-client")
            stage = Stage(shell, config, tmp_path, port, ssh, notes)
            stage.let_in()
            yield stage
            nursery.cancel_scope.cancel()

    return make


async def test_a_connection_that_does_not_log_in_is_ended_after_login_timeout(
    open_stage: OpenStage,
) -> None:
    async with open_stage(limits=ShellLimits(login_timeout=0.2)) as stage:
        silent = await trio.open_tcp_stream("127.0.0.1", stage.port)
        async with silent:
            await silent.send_all(b"SSH-2.0-silent\r\n")
            with trio.fail_after(30), contextlib.suppress(trio.BrokenResourceError):
                while await silent.receive_some():
                    pass


async def test_a_command_has_its_streams_its_status_and_none_of_the_agents_variables(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNNELMUX_PROXY_TOKEN", "a-secret")
    monkeypatch.setenv("TUNNELMUX_ACTOR", "somebody else")
    async with open_stage() as stage:
        command = "cat; echo warn >&2; echo $USER; pwd; env; exit 7"
        result = await stage.run(command, send=b"over\n" * 100_000)
        fingerprint = await trio.run_process(
            ["ssh-keygen", "-lf", str(stage.folder / "key.pub")], capture_stdout=True
        )
    assert result.returncode == 7
    assert result.stderr.endswith(b"\r\nwarn\n")  # behind what ssh says of the new host
    copy, rest = result.stdout[:500_000], result.stdout[500_000:].decode().splitlines()
    assert copy == b"over\n" * 100_000
    assert rest[:2] == [ME, pwd.getpwnam(ME).pw_dir]
    shown = dict(line.partition("=")[::2] for line in rest[2:])
    assert "a-secret" not in result.stdout.decode()
    # A key says who it is by itself; what its holder says in variables counts for nothing.
    assert shown["TUNNELMUX_ACTOR"] == fingerprint.stdout.decode().split()[1]
    begun, over = await stage.noted("shell begins"), await stage.noted("shell over")
    assert (begun["actor"], begun["command"]) == (shown["TUNNELMUX_ACTOR"], command)
    assert over["status"] == 7


async def test_a_signal_that_ends_a_command_is_its_end(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        assert (await stage.run("kill -TERM $$")).returncode == 255  # as with sshd
        assert (await stage.noted("shell over"))["status"] == -15


@pytest.mark.slow
async def test_a_terminal_has_sizes_and_job_control(open_stage: OpenStage) -> None:
    async with open_stage() as stage, await stage.terminal() as terminal:
        await terminal.type("stty size; tty; echo re''ady $TERM\n")
        await terminal.expect("24 80")
        await terminal.expect("/dev/pts/")
        await terminal.expect("ready")
        terminal.resize(100, 40)
        await terminal.type(
            "while [ \"$(stty size)\" != '40 100' ]; do sleep .05; done; echo se''en\n"
        )
        await terminal.expect("seen")
        # What says it is in the foreground already: the key is for that one, and not for the shell.
        await terminal.type("sh -c 'echo go\"\"es; exec sleep 1000'\n")
        await terminal.expect("goes")
        await terminal.type("\x03")
        await terminal.type("echo aft''er\n")
        await terminal.expect("after")
        await terminal.type("exit 3\n")
        assert await terminal.wait() == 3


@pytest.mark.slow
async def test_what_does_not_hang_up_is_killed_with_all_that_it_started(
    open_stage: OpenStage,
) -> None:
    async with open_stage() as stage, await stage.terminal() as terminal:
        await terminal.type("trap '' HUP TERM; sleep 1000 & echo pids $! $$ e''nd\n")
        await terminal.expect("end")
        pids = [int(word) for word in terminal.shown.rpartition("pids ")[2].split()[:2]]
        stage.shell.configure(_without_shell(stage.config))
        assert await terminal.wait() == 255
        assert (await stage.noted("shell over"))["status"] is None
        with trio.fail_after(30):
            while any(_runs(pid) for pid in pids):  # noqa: ASYNC110  the system tells of none
                await trio.sleep(0.02)
        assert (await stage.run("true")).returncode == 255


def _without_shell(config: AgentConfig) -> AgentConfig:
    web = config.offered[-1]
    return replace(
        config, shell=ShellConfig(), services=[replace(web, name="web", lease_only=False)]
    )


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_sessions_have_a_bound(open_stage: OpenStage) -> None:
    async with open_stage(limits=ShellLimits(max_sessions=1)) as stage:
        async with trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(
                stage.words("echo on; cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            assert await process.stdout.receive_some() == b"on\n"
            refused = await stage.run("true")
            assert b"1 sessions are open on this device" in refused.stderr
            assert refused.returncode == 255
            process.terminate()
            await process.wait()
            await stage.noted("shell over")
            nursery.cancel_scope.cancel()
        assert (await stage.run("true")).returncode == 0


async def test_connections_have_a_bound(open_stage: OpenStage) -> None:
    async with open_stage(limits=ShellLimits(max_connections=1)) as stage:
        service = stage.config.offered[-1]
        first = await stage.shell.open(service)
        with pytest.raises(OSError, match=r"1 connections to its shell are open"):
            await stage.shell.open(service)
        await first.aclose()


@pytest.mark.slow
async def test_a_key_lets_in_as_its_line_says(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        wrong = await stage.run("true", account="another")
        assert f'is that of "{ME}"'.encode() in wrong.stderr
        assert wrong.returncode == 126
        for options, command, said in (
            ('expiry-time="20200101"', "true", b"the time of this key is over"),
            ('from="10.0.0.0/8"', "true", b"Permission denied"),
            ('command="echo only"', "id", b"only"),
            ('restrict,expiry-time="20990101",from="127.0.0.0/8"', "echo in", b"in"),
        ):
            stage.let_in(options)
            result = await stage.run(command)
            assert said in result.stdout + result.stderr, options
        terminals = stage.words("true")
        refused = await trio.run_process(
            [*terminals[:-4], "-tt", *terminals[-4:]], capture_stdout=True, stdin=b"", check=False
        )
        assert b"this key is not for terminals" in refused.stdout
        (stage.folder / "keys").write_text("")
        assert (await stage.run("true")).returncode == 255


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
async def test_root_becomes_the_account_with_its_groups_only(open_stage: OpenStage) -> None:
    command = ["/bin/sh", "-c", 'id -u; id -G; echo "$SSH_ORIGINAL_COMMAND"']
    async with open_stage(user="nobody", command=command) as stage:
        result = await stage.run("rm", "-rf", "/", account="nobody")
    nobody = pwd.getpwnam("nobody")
    assert result.stdout.decode() == f"{nobody.pw_uid}\n{nobody.pw_gid}\nrm -rf /\n"


async def test_an_agent_of_root_must_be_told_whose_the_shell_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell = ShellConfig(enabled=True, authorized_keys=tmp_path)
    replace_here(monkeypatch, os, "geteuid", lambda: 0)
    with pytest.raises(InvalidSetting, match=r'user: is missing.*runs as root.*user = "root"'):
        shell.find_account()
    replace_here(monkeypatch, os, "geteuid", lambda: 12345)
    with pytest.raises(InvalidSetting, match=r'cannot become "root": run it as'):
        ShellConfig(enabled=True, authorized_keys=tmp_path, user="root").find_account()
    with pytest.raises(InvalidSetting, match=r'there is no account "nosuch"'):
        ShellConfig(enabled=True, authorized_keys=tmp_path, user="nosuch").find_account()


def test_check_refuses_an_agent_of_root_that_says_no_account(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "agent.toml"
    (tmp_path / "keys").touch()
    file.write_text(
        '[device]\nname = "cam1"\n[proxy]\nurl = "ws://127.0.0.1:1/tunnel/connect"\n'
        'token = "token-of-cam1"\n[shell]\nenabled = true\nauthorized_keys = "keys"\n'
    )
    file.chmod(0o600)
    replace_here(monkeypatch, os, "geteuid", lambda: 0)
    with pytest.raises(ConfigError, match=r"shell\.user: is missing.*runs as root"):
        load_agent_config(file, environ={})
    file.write_text(file.read_text() + 'user = "root"\n')
    assert load_agent_config(file, environ={}).shell.find_account().pw_uid == 0
    file.write_text(file.read_text().replace('authorized_keys = "keys"\n', ""))
    with pytest.raises(ConfigError, match=r"shell\.authorized_keys: is missing, so that none"):
        load_agent_config(file, environ={})
    services = '[[services]]\nname = "ssh"\ntarget = "tcp://127.0.0.1:22"\n'
    file.write_text(file.read_text() + 'authorized_keys = "keys"\n' + services)
    with pytest.raises(ConfigError, match=r'shell\.service: "ssh" is under \[\[services\]\] too'):
        load_agent_config(file, environ={})
