"""File, environment and flags, and what each refuses."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

import pytest

from tunnelmux.config import Flag, hash_token
from tunnelmux.config.state_dir import default_state_dir

DEVICE = '[[devices]]\nname = "dev1"\ntoken = "abc"\n'
AGENT = (
    '[proxy]\nurl = "ws://proxy.example:3800/tunnel/connect"\ntoken = "abc"\n'
    '[device]\nname = "dev1"\n'
    '[[services]]\nname = "web"\ntarget = "http://127.0.0.1:8000"\n'
)


def test_the_example_of_the_design(proxy):
    config = proxy.load(
        DEVICE + '[tunnel]\nlisten = "0.0.0.0:3800"\n'
        '[access]\nlet_in = ["public"]\n'
        '[ingress.http]\nlisten = "0.0.0.0:8080"\ndomain = "localhost"\n'
        '[[ingress.tcp]]\nlisten = "127.0.0.1:2222"\ndevice = "dev1"\nservice = "ssh"\n'
    )
    assert config.tunnel.address == ("0.0.0.0", 3800)
    assert config.ingress.http.address == ("0.0.0.0", 8080)
    assert config.ingress.tcp[0].address == ("127.0.0.1", 2222)
    assert config.read_token_hashes() == {hash_token("abc"): config.devices[0]}


def test_an_empty_file_is_all_defaults(proxy):
    config = proxy.load("")
    assert config.tunnel.listen == "0.0.0.0:3800"
    assert config.ingress.http is None


def test_limits_of_both_kinds_stand_in_one_table(proxy):
    config = proxy.load("[limits]\nmax_streams = 7\nmax_visitors = 8\nlinger = 9\n")
    assert config.limits.session.max_streams == 7
    assert config.limits.session.linger == 9.0
    assert config.limits.ingress.max_visitors == 8


def test_environment_wins_over_file_and_flag_over_environment(proxy):
    text = '[tunnel]\nlisten = "127.0.0.1:1"\n[log]\nlevel = "error"\n[drain]\ngrace = 1\n'
    environ = {"TUNNELMUX_TUNNEL_LISTEN": "127.0.0.1:2", "TUNNELMUX_LOG_LEVEL": "debug"}
    flags = [Flag("--listen", "tunnel.listen", "127.0.0.1:3"), Flag("--grace", "drain.grace", None)]
    config = proxy.load(text, environ=environ, flags=flags)
    assert (config.tunnel.listen, config.log.level, config.drain.grace) == (
        "127.0.0.1:3",
        "debug",
        1.0,
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("TUNNELMUX_LIMITS_MAX_STREAMS", "12", lambda c: c.limits.session.max_streams == 12),
        ("TUNNELMUX_LIMITS_HEAD_TIMEOUT", "1.5", lambda c: c.limits.ingress.head_timeout == 1.5),
        (
            "TUNNELMUX_INGRESS_HTTP_TRUSTED_PROXIES",
            "10.0.0.0/8, ::1",
            lambda c: c.ingress.http.trusted_proxies == ["10.0.0.0/8", "::1"],
        ),
    ],
)
def test_text_from_the_environment_becomes_the_settings_kind(proxy, name, text, value):
    assert value(proxy.load('[ingress.http]\nlisten = "127.0.0.1:0"\n', environ={name: text}))


def test_other_variables_are_none_of_our_business(proxy):
    proxy.load("", environ={"PATH": "/bin", "TUNNELMUX_CONFIG": "proxy.toml"})


REFUSALS = {
    "unknown table": (
        '[tunel]\nlisten = "x"',
        'proxy.toml: tunel: is not a known key: did you mean "tunnel"?',
    ),
    "unknown key": (
        '[tunnel]\nlistn = "x"',
        'proxy.toml: tunnel.listn: is not a known key: did you mean "listen"?',
    ),
    "unknown key of a list": (
        DEVICE + 'tokn = "x"',
        'proxy.toml: devices[0].tokn: is not a known key: did you mean "token"?',
    ),
    "key of another table": (
        "max_streams = 1",
        'proxy.toml: max_streams: is not a known key: did you mean "limits.max_streams"?',
    ),
    "key like no other": (
        "[drain]\nzzz = 1",
        "proxy.toml: drain.zzz: is not a known key: known here are grace",
    ),
    "number for text": (
        "[tunnel]\nlisten = 3800",
        "proxy.toml: tunnel.listen: must be text in quotes, not the number 3800",
    ),
    "text for number": (
        '[limits]\nmax_streams = "many"',
        'proxy.toml: limits.max_streams: must be a whole number, not the text "many"',
    ),
    "fraction for whole number": (
        "[limits]\nmax_streams = 1.5",
        "proxy.toml: limits.max_streams: must be a whole number, not the number 1.5",
    ),
    "boolean for number": (
        "[drain]\ngrace = true",
        "proxy.toml: drain.grace: must be a number, not true",
    ),
    "text for list": (
        '[ingress.http]\nlisten = "127.0.0.1:0"\ntrusted_proxies = "::1"',
        (
            "proxy.toml: ingress.http.trusted_proxies: must be a list of texts, "
            'like ["a", "b"], not the text "::1"'
        ),
    ),
    "no such choice": (
        '[log]\nlevel = "loud"',
        (
            'proxy.toml: log.level: must be one of "debug", "error", "info", "warning", '
            'not the text "loud"'
        ),
    ),
    "value for table": (
        "tunnel = 1",
        "proxy.toml: tunnel: must be a table, not the number 1: write it as [tunnel]",
    ),
    "value for list of tables": (
        "devices = 1",
        "proxy.toml: devices: must be a list of tables: write each as [[devices]]",
    ),
    "required key": (
        "[ingress.http]",
        "proxy.toml: ingress.http.listen: is missing: add it under [ingress.http]",
    ),
    "required key of a list": (
        "[[devices]]\nenabled = true",
        "proxy.toml: devices[0].name: is missing: add it under [[devices]]",
    ),
    "URL for address": (
        '[tunnel]\nlisten = "ws://0.0.0.0:3800"',
        (
            'proxy.toml: tunnel.listen: "ws://0.0.0.0:3800" is a URL, and this is an address: '
            'write it as "host:port", for example "127.0.0.1:8080" or "[::1]:8080"'
        ),
    ),
    "misspelt key behind one that is missing": (
        "[ingress.http]\n[[devices]]\nname = 'dev1'\ntokne_file = 'dev1.token'",
        'proxy.toml: devices[0].tokne_file: is not a known key: did you mean "token_file"?',
    ),
    "another daemon's file": (
        '[proxy]\nurl = "ws://127.0.0.1:1/"\n[device]\nname = "dev1"',
        "proxy.toml: device: is not a known key: this is a file for tunnelmux-agent",
    ),
    "key one table too high": (
        '[ingress]\nlisten = "127.0.0.1:8080"',
        'proxy.toml: ingress.listen: is not a known key: did you mean "ingress.http.listen"?',
    ),
    "no TOML": (
        "[tunnel]\nlisten = ?\n",
        'proxy.toml: line 2 is not TOML (invalid value): put the value in quotes: listen = "…"',
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_a_file_is_refused_for(proxy, text, message):
    assert proxy.refusal(text) == message


def test_a_secret_of_the_wrong_type_is_not_shown(proxy):
    message = proxy.refusal('[[devices]]\nname = "dev1"\ntoken = 271828')
    assert message == "proxy.toml: devices[0].token: must be text in quotes"


def test_a_file_that_is_not_there(proxy):
    proxy.file = proxy.file.with_name("absent.toml")
    with pytest.raises(Exception, match=r"cannot be read \(No such file or directory\): check"):
        proxy._load(proxy.file, environ={})


@pytest.mark.parametrize("denied", ["token", "proxy.toml"])
def test_a_file_that_this_user_may_not_read(proxy, tmp_path, monkeypatch, denied):
    """Root may read every file, so the refusal is put in the system's place."""
    for name in ("open", "read_bytes"):
        real = getattr(Path, name)

        def refuse(path, *args, real=real, **more):
            if path.name == denied and "w" not in (*args, more.get("mode")):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *args, **more)

        monkeypatch.setattr(Path, name, refuse)
    (tmp_path / "token").touch()
    message = proxy.refusal('[[devices]]\nname = "dev1"\ntoken_file = "token"')
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert message.endswith(
        f"{denied} cannot be read (Permission denied): let the user {user} read it "
        "(chgrp and chmod 640) and enter the folders above it"
    )


def test_a_file_that_is_not_utf8(proxy):
    proxy.file.write_bytes(b"[tunnel]\n# \xff\n")
    with pytest.raises(Exception, match="line 2 is not UTF-8 text: save the file as UTF-8"):
        proxy._load(proxy.file, environ={})


def test_an_error_names_the_source_its_value_came_from(proxy):
    assert proxy.refusal(environ={"TUNNELMUX_TUNNEL_LISTEN": "x"}).startswith(
        'TUNNELMUX_TUNNEL_LISTEN: "x" has no port: write it as "host:port"'
    )
    assert proxy.refusal(flags=[Flag("--listen", "tunnel.listen", "y")]).startswith(
        '--listen: "y" has no port'
    )
    assert (
        proxy.refusal(environ={"TUNNELMUX_LIMITS_MAX_STREAMS": "x"})
        == 'TUNNELMUX_LIMITS_MAX_STREAMS: must be a whole number, not "x"'
    )


def test_an_unknown_variable_is_refused(proxy):
    assert proxy.refusal(environ={"TUNNELMUX_TUNNEL_LISTN": "x"}) == (
        "TUNNELMUX_TUNNEL_LISTN: no setting has this environment variable: did you mean "
        "TUNNELMUX_TUNNEL_LISTEN?"
    )


def test_an_agent_without_a_file_is_told_which_option_to_give(agent):
    flags = [Flag("--url", "proxy.url", None), Flag("--name", "device.name", None)]
    assert agent.refusal(None, flags=flags) == (
        "device.name is missing: give --name, or a file with --config"
    )
    flags[1] = Flag("--name", "device.name", "dev1")
    assert agent.refusal(None, flags=flags) == (
        "proxy.url is missing: give --url, or a file with --config"
    )


def test_an_agent_from_flags_alone(agent):
    flags = [
        Flag("--url", "proxy.url", "ws://proxy.example:3800/tunnel/connect"),
        Flag("--name", "device.name", "dev1"),
        Flag("--service", "services", [{"name": "ssh", "target": "tcp://127.0.0.1:22"}]),
    ]
    config = agent.load(None, environ={"TUNNELMUX_PROXY_TOKEN": "abc"}, flags=flags)
    assert config.proxy.read_token().reveal() == "abc"
    assert config.default_service.address == ("127.0.0.1", 22)


def test_a_later_way_to_log_in_replaces_an_earlier_one(agent, tmp_path):
    (tmp_path / "token").write_text("other\n")
    flags = [Flag("--token-file", "proxy.token_file", str(tmp_path / "token"))]
    assert agent.load(AGENT, flags=flags).proxy.read_token().reveal() == "other"


def test_file_names_start_from_the_folder_of_the_file(agent, tmp_path, monkeypatch):
    (tmp_path / "dev1.token").write_text("  abc \n")
    text = AGENT.replace('token = "abc"', 'token_file = "dev1.token"')
    monkeypatch.chdir("/")
    config = agent.load(text)
    assert config.proxy.token_file == tmp_path / "dev1.token"
    assert config.proxy.read_token().reveal() == "abc"


def test_file_names_in_variables_start_from_the_working_folder(agent, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "t").write_text("abc")
    monkeypatch.chdir(tmp_path / "here")
    config = agent.load(AGENT, environ={"TUNNELMUX_PROXY_TOKEN_FILE": "t"})
    assert config.proxy.token_file == Path.cwd() / "t"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read (No such file or directory): create it with the token as its only "),
        ("", "is empty: put the device's token there"),
        ("two words", "holds a character that a token cannot have"),
        ("sécret", "holds a character that a token cannot have"),
        ("x" * 20_000, "is too long for a token: is it the right file?"),
    ],
)
def test_a_token_file_that_holds_no_token(proxy, tmp_path, content, problem):
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    message = proxy.refusal('[[devices]]\nname = "dev1"\ntoken_file = "token"')
    assert message.startswith(f"proxy.toml: devices[0].token_file: {file} {problem}")
    assert not content or content not in message


def test_a_secret_that_everybody_may_read_is_worth_a_warning(proxy, tmp_path):
    file = tmp_path / "token"
    file.write_text("abc" * 20)
    file.chmod(0o640)
    text = '[tunnel]\nlisten = "127.0.0.1:0"\n[[devices]]\nname = "dev1"\ntoken_file = "token"'
    proxy.load(text)
    assert proxy.warnings == []
    file.chmod(0o644)
    proxy.load(text)
    assert proxy.warnings == [f"{file} holds a secret and every user may read it: chmod o-r {file}"]


def test_a_configuration_file_with_a_token_in_it_is_such_a_secret(proxy):
    proxy.file.write_text(DEVICE)
    proxy.file.chmod(0o644)
    proxy._load(proxy.file, environ={}, warn=proxy.warnings.append)
    assert [str(proxy.file) in warning for warning in proxy.warnings].count(True) == 1


def test_a_target_whose_certificate_is_not_checked_is_worth_a_warning(agent):
    agent.load(AGENT.replace("http://127.0.0.1:8000", "https://127.0.0.1") + "verify = false\n")
    warning = "service web: the certificate of its target is not checked (verify = false): "
    assert any(text.startswith(warning) for text in agent.warnings)
    before = len(agent.warnings)
    agent.load(AGENT.replace("http://127.0.0.1:8000", "https://127.0.0.1"))
    assert not any("service web" in w for w in agent.warnings[before:])


def test_an_authority_of_a_target_that_cannot_be_read(agent, tmp_path):
    text = AGENT.replace("http://127.0.0.1:8000", "https://127.0.0.1") + 'ca_file = "no.pem"\n'
    assert f"services[0].ca_file: {tmp_path}/no.pem cannot be read" in agent.refusal(text)


def test_a_certificate_that_cannot_be_read(proxy, tmp_path):
    (tmp_path / "tunnel.key").touch()
    message = proxy.refusal('[tunnel]\ntls_certificate = "no.pem"\ntls_key = "tunnel.key"\n')
    assert message == (
        f"proxy.toml: tunnel.tls_certificate: {tmp_path}/no.pem cannot be read (No such file or "
        "directory): check its name and who may read it"
    )


def test_file_names_that_name_no_file(agent):
    missing_home = AGENT.replace('token = "abc"', 'token_file = "~nobody-here/t"')
    assert "is in no home directory: write it in full" in agent.refusal(missing_home)
    with_nul = AGENT.replace('token = "abc"', 'token_file = "a\\u0000b"')
    assert "must be a file name in quotes" in agent.refusal(with_nul)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_STATE_HOME": "/x"}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/x"}, "/x/prog"),
        ({"XDG_STATE_HOME": "relative"}, "/h/.local/state/prog"),
        ({}, "/h/.local/state/prog"),
    ],
)
def test_where_state_is_kept(monkeypatch, environ, folder):
    monkeypatch.setenv("HOME", "/h")
    assert default_state_dir("prog", environ) == Path(folder)
