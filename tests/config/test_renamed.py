"""A setting that was renamed works for a release under its old name, and says so."""

from __future__ import annotations

from typing import ClassVar

import pytest

from support.settings import PROGRAMS
from tunnelmux.config import load_agent_config
from tunnelmux.config.agent import BackoffConfig, ServiceConfig
from tunnelmux.config.process import LimitsConfig
from tunnelmux.config.renamed import old_paths, with_new_names
from tunnelmux.config.schema import settings_of, table_of
from tunnelmux.errors import ConfigError
from tunnelmux.limits import Limits


@pytest.fixture(autouse=True)
def _renamed(monkeypatch):
    """As if these had been renamed: in a table, in a list of tables, and among the limits."""
    for cls, names in (
        (BackoffConfig, {"maximum": "longest"}),
        (ServiceConfig, {"target": "address"}),
        (Limits, {"linger": "close_linger"}),
    ):
        monkeypatch.setattr(cls, "renamed_from", names, raising=False)


def agent_file(folder, backoff="longest = 7.0", limits="close_linger = 9.0"):
    file = folder / "agent.toml"
    file.touch(mode=0o600)
    file.write_text(
        '[proxy]\nurl = "wss://h/x"\ntoken = "a-token-that-is-long"\n[device]\nname = "dev1"\n'
        '[[services]]\nname = "web"\naddress = "http://127.0.0.1:1"\n'
        f"[backoff]\n{backoff}\n[limits]\n{limits}\n"
    )
    return file


def test_old_names_in_a_file_work_and_each_is_told_of(tmp_path):
    warnings = []
    file = agent_file(tmp_path)
    config = load_agent_config(file, environ={}, warn=warnings.append)
    assert config.backoff.maximum == 7.0
    assert config.services[0].target == "http://127.0.0.1:1"
    assert config.limits.session.linger == 9.0
    tail = "rename it, the next release refuses the old name"
    assert sorted(warnings) == [
        f"{file}: backoff.longest is called backoff.maximum now: {tail}",
        f"{file}: limits.close_linger is called limits.linger now: {tail}",
        f"{file}: services[0].address is called services[0].target now: {tail}",
    ]


def test_both_names_at_once_are_refused(tmp_path):
    file = agent_file(tmp_path, "longest = 7.0\nmaximum = 8.0")
    with pytest.raises(ConfigError) as caught:
        load_agent_config(file, environ={})
    assert str(caught.value) == (
        f"{file}: backoff.longest: is the old name of backoff.maximum: leave out one of them"
    )


def test_an_old_variable_works_and_wins_over_the_file(tmp_path):
    warnings = []
    environ = {"TUNNELMUX_BACKOFF_LONGEST": "6.5"}
    config = load_agent_config(
        agent_file(tmp_path, "maximum = 7.0"), environ=environ, warn=warnings.append
    )
    assert config.backoff.maximum == 6.5
    assert any(
        sentence.startswith("TUNNELMUX_BACKOFF_LONGEST is called TUNNELMUX_BACKOFF_MAXIMUM now")
        for sentence in warnings
    )


def test_a_mistake_under_an_old_name_is_told_under_the_new_one(tmp_path):
    with pytest.raises(ConfigError, match=r"backoff\.maximum: must be a number"):
        load_agent_config(agent_file(tmp_path, 'longest = "x"'), environ={})


def test_what_is_no_table_is_left_to_the_decoder(tmp_path):
    table = table_of(PROGRAMS["agent"])
    content = {"backoff": 3, "services": [1], "limits": []}
    assert with_new_names(table, content, lambda _old, _new: None) == content


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_declared_rename_leads_to_a_setting(program):
    table = table_of(PROGRAMS[program])
    known = dict(settings_of(table))
    for old, new in old_paths(table):
        assert new in known
        assert old not in known


def test_the_declaration_is_no_setting():
    class Renamed(LimitsConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
        renamed_from: ClassVar[dict[str, str]] = {"linger": "close_linger"}

    assert "renamed_from" not in table_of(Renamed).names()
