"""The sample files and the documentation say what the program does, and all of it."""

from __future__ import annotations

import re
import tomllib

import pytest

from support.settings import PAGE, configuration_page, headed_settings, sample_file
from support.tree import ROOT
from tunnelmux.api.browser_sessions.keys import new_key_line
from tunnelmux.config import (
    AgentConfig,
    JoinInvitation,
    ProxyConfig,
    Secret,
    encode_join,
    load_agent_config,
    load_proxy_config,
)
from tunnelmux.config.api import ApiConfig
from tunnelmux.config.load import environment_names, load_api_config
from tunnelmux.config.render import render
from tunnelmux.config.schema import table_of

PROGRAMS = {
    "proxy": (ProxyConfig, load_proxy_config),
    "agent": (AgentConfig, load_agent_config),
    "api": (ApiConfig, load_api_config),
}
# What the samples hold that `check` does not show.
HIDDEN = {
    "proxy": "the-token-of-dev1",
    "agent": "the-token-of-dev1",
    "api": "sqlite:////var/lib/tunnelmux-api/registry.db",
}
COMMENTED_KEY = re.compile(r"^# (?=[a-z0-9_]+ = )", re.MULTILINE)
HEADER = re.compile(r"(?:# )?(\[.*\])")
COMMENTED_LINE = re.compile(r"^# (?=[a-z0-9_]+ = |\[)", re.MULTILINE)


@pytest.fixture(params=PROGRAMS)
def program(request):
    return request.param


@pytest.fixture
def sample(program):
    return sample_file(program).read_text()


def loaded(program, text, folder):
    file = folder / f"{program}.toml"
    file.write_text(text)
    (folder / "internal.secret").write_text("of-the-back-end\n")
    (folder / "oidc.secret").write_text("of-the-client\n")
    (folder / "session-keys").write_text(new_key_line())
    return PROGRAMS[program][1](file, environ={})


def test_the_sample_loads_as_it_is(program, sample, tmp_path):
    loaded(program, sample, tmp_path)


def test_the_proxys_sample_asks_callers_for_a_secret(tmp_path):
    config = loaded("proxy", sample_file("proxy").read_text(), tmp_path)
    assert config.internal.asks_for_credentials


def test_everything_commented_out_in_the_sample_loads_too(program, sample, tmp_path):
    join = encode_join(JoinInvitation(url="wss://h", token=Secret("t")))
    (tmp_path / "dev1.token").write_text("abc")
    (tmp_path / "dev1.join").write_text(join)
    (tmp_path / "main-server.key").write_text("abc")
    (tmp_path / "redis.url").write_text("redis://:abc@10.0.0.5")
    for part in ("tunnel", "ingress", "internal", "socketio", "api", "shop"):
        (tmp_path / f"{part}.pem").touch()
        (tmp_path / f"{part}.key").touch()
    for name in ("ca.pem", "known_hosts", "callers.pem", "redis-ca.pem"):
        (tmp_path / name).touch()
    text = (
        COMMENTED_LINE.sub("", sample).replace("tunnelmux-join:…", join).replace("ws://", "wss://")
    )
    # Of the ways to give a token, one at a time.
    text = re.sub(
        r"^(token|token_sha256|join|join_file|secret_file|api_key|client_secret|url_file"
        r"|redis|serial_command) = .*\n",
        "",
        text,
        flags=re.MULTILINE,
    )
    loaded(program, text, tmp_path)


def test_the_sample_has_every_key_in_its_place_and_no_other(program, sample):
    wanted = {(header, key) for header, key, _ in headed_settings(table_of(PROGRAMS[program][0]))}
    found, header = set(), ""
    for line in sample.splitlines():
        if is_header := HEADER.fullmatch(line):
            header = is_header[1]
        elif key := re.match(r"(?:# )?([a-z0-9_]+) = ", line):
            found.add((header, key[1]))
    assert found == wanted, "for [limits]: run `python -m support.settings` in tests/"


def test_what_the_sample_shows_as_default_is_the_default(program, sample):
    shown, header = [], ""
    for line in sample.splitlines():
        if is_header := HEADER.fullmatch(line):
            header = is_header[1]
        elif COMMENTED_KEY.match(line):
            ((key, value),) = tomllib.loads(line[2:]).items()
            shown.append((header, key, value))
    defaults = {
        (header, key): setting.default
        for header, key, setting in headed_settings(table_of(PROGRAMS[program][0]))
    }
    # An empty list would not show how it is written, and a service has a name and a target.
    examples = {
        "algorithms",
        "allow_from",
        "deny_from",
        "let_in",
        "people",
        "roles",
        "tokens",
        "users",
        "certificate",
        "devices",
        "key",
        "hook",
        "labels",
        "name",
        "page_origins",
        "serial_command",
        "target",
        "trusted_fields",
        "trusted_proxies",
        "tunnel_urls",
    }
    for header, key, value in shown:
        default = defaults[header, key]
        assert default in (None, value) or key in examples, f"{header} {key}"


def test_the_documentation_is_up_to_date():
    assert PAGE.read_text() == configuration_page(), (
        "docs/configuration.md is old: run `python -m support.settings` in tests/"
    )


def test_no_two_settings_share_a_variable(program):
    table = table_of(PROGRAMS[program][0])
    names = environment_names(table)
    assert len(names) == sum("[[" not in header for header, _, _ in headed_settings(table))


def test_what_check_prints_is_the_same_configuration(program, sample, tmp_path):
    config = loaded(program, sample, tmp_path)
    printed = render(config)
    assert "[[" in printed
    again = loaded(program, printed.replace("***", HIDDEN[program]), tmp_path)
    assert again == config


README_TABLES = {"[tunnel]": "proxy", "[proxy]": "agent", "[api]": "api"}


@pytest.mark.parametrize("first", README_TABLES)
def test_a_file_copied_from_the_readme_loads_with_no_warning_but_that_of_tls(tmp_path, first):
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    (text,) = [block for block in blocks if block.startswith(first)]
    for secret in ("dev1.token", "internal.secret", "session-keys"):
        (tmp_path / secret).write_text("a" * 64)
        (tmp_path / secret).chmod(0o600)
    file = tmp_path / "copied.toml"
    file.write_text(text)
    warnings: list[str] = []
    PROGRAMS[README_TABLES[first]][1](file, environ={}, warn=warnings.append)
    assert [text for text in warnings if "in the clear" not in text] == []
