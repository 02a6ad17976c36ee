"""A file that is given to another daemon by mistake."""

from __future__ import annotations

import pytest

from tunnelmux.config.agent import AgentConfig
from tunnelmux.config.api import ApiConfig
from tunnelmux.config.gateway import GatewayConfig
from tunnelmux.config.proxy import ProxyConfig
from tunnelmux.config.schema import table_of
from tunnelmux.config.whose_file import TABLES, daemon_of

CONFIGURATIONS = {
    "tunnelmux-proxy": ProxyConfig,
    "tunnelmux-agent": AgentConfig,
    "tunnelmux-api": ApiConfig,
    "tunnelmux-gateway": GatewayConfig,
}


def test_the_tables_are_those_of_the_daemons() -> None:
    assert CONFIGURATIONS.keys() == TABLES.keys()
    for daemon, cls in CONFIGURATIONS.items():
        assert set(table_of(cls).names()) == TABLES[daemon], daemon


@pytest.mark.parametrize(
    ("tables", "daemon"),
    [
        (["tunnel", "ingress", "devices"], "tunnelmux-proxy"),
        (["proxy", "device"], "tunnelmux-agent"),
        (["gateway", "tunnels"], "tunnelmux-gateway"),
        (["api", "gateway"], "tunnelmux-api"),
        (["tunnel", "devcies"], None),
    ],
)
def test_a_file_is_known_by_its_tables(tables: list[str], daemon: str | None) -> None:
    assert daemon_of(tables) == daemon
