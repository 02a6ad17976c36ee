"""What somebody who types a command sees, before anything runs."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from click.testing import CliRunner

from tunnelmux import __version__
from tunnelmux.cli.agent import agent
from tunnelmux.cli.main import tunnelmux
from tunnelmux.cli.proxy import proxy
from tunnelmux.config import JoinInvitation, Secret, encode_join
from tunnelmux.errors import ConfigError

PROXY_TOML = '[[devices]]\nname = "dev1"\ntoken = "hunter2"\n'
AGENT_FLAGS = ["--name", "dev1", "--service", "web=http://127.0.0.1:8000"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("TUNNELMUX_CONFIG", "TUNNELMUX_PROXY_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def run(command, *arguments):
        return CliRunner().invoke(command, arguments, prog_name=command.name)

    return run


@pytest.mark.parametrize("command", [proxy, agent, tunnelmux])
def test_version(run, command):
    result = run(command, "--version")
    assert result.exit_code == 0
    assert __version__ in result.output


@pytest.mark.parametrize(
    ("command", "example"),
    [
        (proxy, "tunnelmux-proxy check --config proxy.toml\n"),
        (agent, "tunnelmux-agent --join tunnelmux-join:… --name dev1"),
    ],
)
def test_help_has_examples_and_exit_statuses(run, command, example):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert example in result.output
    assert "Exit status: 0 stopped as asked" in result.output


def test_check_prints_the_whole_configuration_as_toml_without_secrets(run, tmp_path):
    file = tmp_path / "proxy.toml"
    file.write_text(PROXY_TOML)
    file.chmod(0o600)
    result = run(proxy, "check", "--config", "proxy.toml", "--http", "127.0.0.1:80", "--grace", "3")
    assert result.exit_code == 0
    assert result.stderr == ""
    printed = tomllib.loads(result.stdout)
    assert printed["devices"] == [{"name": "dev1", "token": "***", "enabled": True}]
    assert printed["ingress"]["http"]["listen"] == "127.0.0.1:80"
    assert printed["drain"]["grace"] == 3.0
    assert printed["limits"]["max_streams"] == 1024
    assert "hunter2" not in result.output


def test_check_warns_on_standard_error(run, tmp_path):
    (tmp_path / "proxy.toml").write_text("")
    result = run(proxy, "check", "--config", "proxy.toml")
    assert result.exit_code == 0
    assert result.stderr == (
        "tunnelmux-proxy: warning: there are no [[devices]], so no agent can connect: add one\n"
    )


def test_the_file_may_be_named_in_the_environment(run, monkeypatch, tmp_path):
    (tmp_path / "proxy.toml").write_text("[drain]\ngrace = 2\n")
    monkeypatch.setenv("TUNNELMUX_CONFIG", "proxy.toml")
    result = run(proxy, "check")
    assert tomllib.loads(result.stdout)["drain"]["grace"] == 2.0


def test_an_agent_without_a_file(run, tmp_path):
    (tmp_path / "token").write_text("hunter2\n")
    result = run(
        agent, "check", "--url", "ws://proxy.example:3800", "--token-file", "token", *AGENT_FLAGS,
        "--service", "ssh=tcp://127.0.0.1:22",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = tomllib.loads(result.stdout)
    assert printed["proxy"] == {
        "url": "ws://proxy.example:3800",
        "token_file": str(tmp_path / "token"),
    }
    assert [service["target"] for service in printed["services"]] == [
        "http://127.0.0.1:8000",
        "tcp://127.0.0.1:22",
    ]


def test_an_agent_that_joins(run):
    invitation = JoinInvitation(url="wss://h:3800/x", token=Secret("hunter2"))
    result = run(agent, "check", "--join", encode_join(invitation), *AGENT_FLAGS)
    assert result.exit_code == 0, result.output
    assert tomllib.loads(result.stdout)["proxy"] == {"url": "wss://h:3800/x", "join": "***"}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (proxy, [], "give --config FILE, or try tunnelmux-proxy --quickstart"),
        (proxy, ["--config", "x", "check"], "write tunnelmux-proxy check --config"),
        (proxy, ["--lisen", "x"], "No such option"),
        (agent, ["check", "--service", "web"], '"web" is not NAME=TARGET: write it like web='),
    ],
)
def test_wrong_usage_is_status_2(run, command, arguments, message):
    result = run(command, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (agent, [], "device.name is missing: give --name, or a file with --config"),
        (
            agent,
            ["--url", "ws://h"],
            "proxy.token_file is missing: give --token-file, or a file with --config",
        ),
        (agent, ["--url", "h:1"], '--url: "h:1" does not begin with one of ws://'),
        (agent, ["--join", "x"], '--join: does not begin with "tunnelmux-join:": copy the whole'),
        (proxy, ["--config", "nope.toml"], "nope.toml cannot be read (No such file or directory)"),
        (
            proxy,
            ["check", "--listen", "3800"],
            '--listen: "3800" has no port: write it as "host:port"',
        ),
        (proxy, ["check", "--grace", "soon"], '--grace: must be a number, not "soon"'),
    ],
)
def test_a_setting_that_cannot_be_used(run, command, arguments, message):
    result = run(command, *arguments)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(message)


@pytest.mark.slow  # it starts a Python
def test_a_wrong_setting_is_one_line_and_status_2(tmp_path):
    (tmp_path / "proxy.toml").write_text("[tunnel]\nlistn = 1\n")
    result = subprocess.run(
        [
            *(sys.executable, "-c", "from tunnelmux.cli.proxy import main; main()"),
            *("check", "--config", tmp_path / "proxy.toml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"tunnelmux-proxy: error: {tmp_path}/proxy.toml: tunnel.listn: is not a known key: "
        'did you mean "listen"?\n'
    )


@pytest.mark.slow  # it starts a Python
def test_help_and_check_do_not_import_trio(tmp_path):
    (tmp_path / "proxy.toml").write_text(PROXY_TOML)
    program = (
        "import sys, tunnelmux.cli.proxy as p, tunnelmux.cli.agent\n"
        "p.proxy.main(['check', '--config', sys.argv[1]], standalone_mode=False)\n"
        "sys.exit('trio' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "proxy.toml"], capture_output=True, check=False
    )
    assert result.returncode == 0


JOIN = encode_join(JoinInvitation(url="ws://proxy.example:3800/tunnel/connect", token=Secret("t")))


def test_the_join_line_may_come_from_standard_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = f"tunnelmux-agent --join {JOIN} --name dev7\n"
    result = CliRunner().invoke(agent, ["check", "--join", "-", *AGENT_FLAGS], input=line)
    assert result.exit_code == 0, result.output
    assert tomllib.loads(result.output)["proxy"]["url"] == "ws://proxy.example:3800/tunnel/connect"
    assert JOIN not in result.output
    result = CliRunner().invoke(agent, ["check", "--join", "-", *AGENT_FLAGS], input="\n")
    assert result.exit_code == 2
    assert "standard input must have one word" in result.output


def test_the_join_line_may_come_from_a_file_beside_the_configuration(run, tmp_path):
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "dev1.join").write_text(JOIN)
    (folder / "dev1.join").chmod(0o600)
    (folder / "agent.toml").write_text('[proxy]\njoin_file = "dev1.join"\n')
    result = run(agent, "check", "--config", str(folder / "agent.toml"), *AGENT_FLAGS)
    assert result.exit_code == 0, result.output
    assert tomllib.loads(result.output)["proxy"]["url"] == "ws://proxy.example:3800/tunnel/connect"
    result = run(agent, "check", "--join-file", str(folder / "dev1.join"), *AGENT_FLAGS)
    assert result.exit_code == 0, result.output
    result = run(agent, "check", "--join-file", "absent", *AGENT_FLAGS)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("--join-file: ")
