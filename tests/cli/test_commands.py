"""What somebody who types a command sees, before anything runs."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
import trio
import trustme
from click.testing import CliRunner

from tunnelmux import __version__
from tunnelmux.cli.agent import agent
from tunnelmux.cli.main import tunnelmux
from tunnelmux.cli.proxy import proxy
from tunnelmux.config import JoinInvitation, Secret, encode_join
from tunnelmux.errors import ConfigError, ConnectError

TOKEN = "hunter2-hunter2-hunter2"
PROXY_TOML = f'tunnel.listen = "127.0.0.1:0"\n[[devices]]\nname = "dev1"\ntoken = "{TOKEN}"\n'
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
    changed = ["--http", "127.0.0.1:80", "--grace", "3"]
    result = run(proxy, "check", "--all", "--config", "proxy.toml", *changed)
    assert result.exit_code == 0
    assert result.stderr == ""
    printed = tomllib.loads(result.stdout)
    assert printed["devices"] == [{"name": "dev1", "token": "***", "enabled": True, "labels": []}]
    assert printed["ingress"]["http"]["listen"] == "127.0.0.1:80"
    assert printed["drain"]["grace"] == 3.0
    assert printed["limits"]["max_streams"] == 1024
    assert TOKEN not in result.output


def test_check_warns_on_standard_error(run, tmp_path):
    (tmp_path / "proxy.toml").write_text('[tunnel]\nlisten = "127.0.0.1:3800"\n')
    result = run(proxy, "check", "--config", "proxy.toml")
    assert result.exit_code == 0
    assert result.stderr == (
        "tunnelmux-proxy: warning: there are no [[devices]], so no agent can connect: add one\n"
    )
    assert result.stdout.endswith("\n\n# OK, with warnings: 1\n")


def test_check_ends_in_ok_and_shows_of_the_limits_what_was_changed(run, tmp_path):
    file = tmp_path / "proxy.toml"
    file.write_text(PROXY_TOML + "[limits]\nmax_streams = 7\nack_delay = 10.0\n")
    file.chmod(0o600)
    result = run(proxy, "check", "--config", "proxy.toml")
    assert result.stderr == ""
    assert result.stdout.endswith("\n\n# OK\n")
    printed = tomllib.loads(result.stdout)
    assert printed["limits"] == {"max_streams": 7}  # the other has its default
    file.write_text(PROXY_TOML)
    assert "limits" not in tomllib.loads(run(proxy, "check", "--config", "proxy.toml").stdout)
    in_full = run(proxy, "check", "--all", "--config", "proxy.toml").stdout
    assert len(tomllib.loads(in_full)["limits"]) > 40
    assert in_full.endswith("\n\n# OK\n")


WEAK = {
    "device dev1: its token has only 6 characters": '[[devices]]\nname = "dev1"\ntoken = "secret"',
    "device dev1: its token is that of a sample file": (
        '[[devices]]\nname = "dev1"\ntoken = "the-token-of-dev1"'
    ),
    "device dev2: its token is that of a sample file: make another": (
        f'[[devices]]\nname = "dev2"\ntoken_sha256 = "{"0" * 64}"'
    ),
    "device dev3: its token has only 5 characters": (
        '[[devices]]\nname = "dev3"\ntoken_file = "dev3.token"'
    ),
    "internal.secret has only 3 characters": '[internal]\nsecret = "abc"',
    "Socket.IO agent a1: its key is that of a sample file": (
        f'[socketio]\nlisten = "127.0.0.1:0"\n[[socketio.agents]]\nproxy_id = "a1"\n'
        f'api_key_sha256 = "{"1" * 64}"'
    ),
    "tunnel.listen: at 0.0.0.0:3800 agents speak plain ws://": '[tunnel]\nlisten = "0.0.0.0:3800"',
    "tunnel.listen: at 9.9.9.9:3800 agents": '[tunnel]\nlisten = "9.9.9.9:3800"',
}


@pytest.mark.parametrize("sentence", WEAK)
def test_what_is_weak_is_told_without_any_secret(run, tmp_path, sentence):
    (tmp_path / "dev3.token").write_text("short\n")
    (tmp_path / "proxy.toml").write_text(WEAK[sentence])
    stderr = run(proxy, "check", "--config", "proxy.toml").stderr
    assert sentence in stderr
    assert "secret" not in stderr.replace("internal.secret", "").replace("holds a secret", "")
    assert "short" not in stderr


@pytest.mark.parametrize(
    "text",
    [
        '[tunnel]\nlisten = "127.0.0.1:3800"',
        '[tunnel]\nlisten = "10.1.2.3:3800"',  # a network of one's own
        '[tunnel]\nlisten = "[::1]:3800"',
        f'[[devices]]\nname = "dev1"\ntoken_sha256 = "{"ab" * 32}"\n[tunnel]\nlisten="[::1]:1"',
    ],
)
def test_what_is_in_order_is_not_told(run, tmp_path, text):
    (tmp_path / "proxy.toml").write_text(text)
    stderr = run(proxy, "check", "--config", "proxy.toml").stderr
    assert [line for line in stderr.splitlines() if "there are no [[devices]]" not in line] == []


@pytest.mark.parametrize(
    ("url", "is_told"),
    [
        ("ws://proxy.example.com:3800/x", True),
        ("ws://9.9.9.9:3800/x", True),
        ("wss://proxy.example.com:3800/x", False),
        ("ws://127.0.0.1:3800/x", False),
        ("ws://localhost:3800/x", False),
        ("ws://192.168.1.7:3800/x", False),
        ("ws://[fd00::1]:3800/x", False),
    ],
)
def test_an_agent_that_dials_in_the_clear_is_told_so(run, tmp_path, url, is_told):
    (tmp_path / "token").write_text("a" * 64)
    (tmp_path / "token").chmod(0o600)
    result = run(agent, "check", "--url", url, "--token-file", "token", *AGENT_FLAGS)
    assert result.exit_code == 0, result.output
    assert (
        "proxy.url: the token and all that passes cross the network" in result.stderr
    ) is is_told
    assert result.stdout.endswith("\n# OK, with warnings: 1\n" if is_told else "\n# OK\n")


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
        "sessions": 2,
    }
    assert [service["target"] for service in printed["services"]] == [
        "http://127.0.0.1:8000",
        "tcp://127.0.0.1:22",
    ]


def test_an_agent_that_joins(run):
    invitation = JoinInvitation(url="wss://h:3800/x", token=Secret("hunter2"))
    result = run(agent, "check", "--join", encode_join(invitation), *AGENT_FLAGS)
    assert result.exit_code == 0, result.output
    printed = tomllib.loads(result.stdout)["proxy"]
    assert printed == {"url": "wss://h:3800/x", "join": "***", "sessions": 2}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (proxy, [], "give --config FILE, or try tunnelmux-proxy --quickstart"),
        (proxy, ["--config", "x", "check"], "write tunnelmux-proxy check --config"),
        (proxy, ["--lisen", "x"], "No such option"),
        (proxy, ["--config", "x", "--public"], "--public goes with --quickstart"),
        (agent, ["check", "--service", "web"], '"web" is not NAME=TARGET: write it like web=8000'),
    ],
)
def test_wrong_usage_is_status_2(run, command, arguments, message):
    result = run(command, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_quickstart_lets_everybody_visit_when_that_is_asked_for(run, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(trio, "run", lambda main: started.append(main.args[0].keywords) or 0)
    for flags in ([], ["--public", "--http", "0.0.0.0:8080"]):
        result = run(proxy, "--quickstart", "--state-dir", "state", *flags)
        assert result.exit_code == 0, result.output
    assert [keywords["public"] for keywords in started] == [False, True]
    assert [keywords["config"].access.let_in for keywords in started] == [[], ["public"]]


def test_a_service_may_be_written_as_a_port(run, tmp_path):
    (tmp_path / "token").write_text("a" * 64)
    (tmp_path / "token").chmod(0o600)
    flags = ["--url", "wss://h/x", "--token-file", "token", "--name", "dev1"]
    result = run(agent, "check", *flags, "--service", "web=8000")
    assert result.exit_code == 0, result.output
    assert tomllib.loads(result.stdout)["services"][0]["target"] == "8000"
    result = run(agent, "check", *flags, "--service", "ssh=22")
    assert isinstance(result.exception, ConfigError)
    assert 'write "tcp://127.0.0.1:22" for SSH' in str(result.exception)


def test_pairing_looks_at_services_before_it_asks_anybody(run):
    result = run(agent, "pair", "--url", "http://127.0.0.1:9", "--service", "web=ftp://x")
    assert result.exit_code == 2
    assert 'web=ftp://x: "ftp://" is no scheme of a target' in result.stderr


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
            '--listen: "3800" has no host: write "127.0.0.1:3800" for programs of this machine, ',
        ),
        (proxy, ["check", "--grace", "soon"], '--grace: must be a number, not "soon"'),
    ],
)
def test_a_setting_that_cannot_be_used(run, command, arguments, message):
    result = run(command, *arguments)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(message)


def test_a_configuration_that_may_not_be_read_is_told_by_the_one_who_reads_it(
    run, tmp_path, monkeypatch
):
    """Click would say "is not readable" and no fix."""
    file = tmp_path / "proxy.toml"
    file.write_text(PROXY_TOML)
    monkeypatch.setattr("os.access", lambda *_: False)
    result = run(proxy, "check", "--config", str(file))
    assert (result.exit_code, result.output.splitlines()[-1][:4]) == (0, "# OK")


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
    assert tomllib.loads(result.stdout)["proxy"]["url"] == "ws://proxy.example:3800/tunnel/connect"
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
    assert tomllib.loads(result.stdout)["proxy"]["url"] == "ws://proxy.example:3800/tunnel/connect"
    result = run(agent, "check", "--join-file", str(folder / "dev1.join"), *AGENT_FLAGS)
    assert result.exit_code == 0, result.output
    result = run(agent, "check", "--join-file", "absent", *AGENT_FLAGS)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("--join-file: ")


def test_a_connection_that_ssh_asked_for_and_does_not_get_says_what_the_lines_of_ssh_mean(run):
    meaning = "What ssh writes below only means that it got no connection."
    place = ["--url", "http://127.0.0.1:9"]
    by_ssh = run(tunnelmux, "connect", *place, "dev1.tunnelmux", "ssh").exception
    by_a_person = run(tunnelmux, "connect", *place, "dev1", "ssh").exception
    assert isinstance(by_ssh, ConnectError) and isinstance(by_a_person, ConnectError)
    assert str(by_ssh) == f"{by_a_person}\n{meaning}"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://db/x", 'registry.url: the database "mysql" is not supported: write the URL as '),
        ("/var/lib/registry.db", "registry.url is not a URL: write it as sqlite:////var/lib/"),
        ("sqlite:///registry.db", "registry.url: SQLite needs the absolute path of a file"),
    ],
)
def test_check_refuses_a_registry_that_no_start_would_take(run, tmp_path, url, problem):
    pytest.importorskip("sqlalchemy")
    (tmp_path / "proxy.toml").write_text(f'{PROXY_TOML}[registry]\nurl = "{url}"\n')
    result = run(proxy, "check", "--config", "proxy.toml")
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(problem)


def test_check_loads_the_certificates(run, tmp_path):
    pair = trustme.CA().issue_cert("localhost")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "a.pem")
    pair.private_key_pem.write_to_path(tmp_path / "a.key")
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "b.key")
    settings = '{}[{}]\nlisten = "127.0.0.1:0"\ntls_certificate = "a.pem"\ntls_key = "{}.key"\n'
    for table in ("internal", "ingress.http"):
        (tmp_path / "proxy.toml").write_text(settings.format(PROXY_TOML, table, "a"))
        good = run(proxy, "check", "--config", "proxy.toml")
        assert good.exit_code == 0, good.output
        (tmp_path / "proxy.toml").write_text(settings.format(PROXY_TOML, table, "b"))
        bad = run(proxy, "check", "--config", "proxy.toml")
        assert isinstance(bad.exception, ConfigError)
        assert str(bad.exception).startswith(
            f"{table}.tls_certificate: cannot load the certificate"
        )
        assert "both must be readable PEM files that belong together" in str(bad.exception)
