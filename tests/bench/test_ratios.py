"""The ratios that are targets: each against the best of those it is about."""

from __future__ import annotations

import pytest
from bench.columns import COLUMNS
from bench.peers import PEERS
from bench.ratios import ALONE, BEHIND, DEVICE, HTTP, HTTPS, TARGETS, TRUSTED, WS, WSS, take_ratios

NAMES = {
    "tcp_keepalive_rps_vs_best_peer",
    "tcp_keepalive_cpu_vs_best_peer",
    "tcp_connect_rps_vs_best_peer",
    "bulk_wss_cpu_vs_openssh",
    "bulk_wss_cpu_vs_ws",
    "http_connect_rps_vs_best_http_peer",
    "http_p99_vs_tcp_p99",
    "https_cpu_vs_plain_http",
    "trusted_proxy_cpu_vs_plain_http",
    "access_login_cpu_vs_public",
    "device_field_cpu_vs_plain_http",
    "https_rps_vs_best_peer",
    "https_cpu_vs_best_peer",
    "https_connect_cpu_vs_nginx",
    "behind_nginx_cpu_vs_best_peer",
    "behind_nginx_rps_vs_best_peer",
    "behind_nginx_rps_vs_nginx_alone",
    "websocket_echo_cpu_vs_best_peer",
    "websocket_echo_tls_cpu_vs_best_peer",
    "h11_path_cpu_per_10k",
    "tcp_keepalive_cpu_vs_openssh",
    "tcp_connect_rps_vs_openssh",
    "tcp_connect_cpu_vs_openssh",
    "bulk_ws_rate_vs_best_mux_peer",
    "bulk_ws_cpu_vs_best_mux_peer",
    "bulk_wss_rate_vs_best_encrypted_peer",
    "http_keepalive_rps_vs_best_http_peer",
    "p99_vs_best_peer",
    "echo_p99_ms_under_bulk",
    "idle_agent_kib",
    "idle_relay_kib",
    "agents_per_second_ws",
    "agents_per_second_wss",
    "workers_kept_cpu_vs_one",
    "workers_new_cpu_vs_one",
    "agents_10000_known_vs_100",
    "agent_idle_mib",
    "agent_connect_s",
}

TRAITS = {
    peer.name: {
        "ours": peer.ours,
        "tunnel": peer.tunnel,
        "visitors": peer.visitors,
        "encrypted": peer.encrypted,
        "multiplexes": peer.multiplexes,
    }
    for peer in PEERS
}


def rounds(metric: str, *values: float) -> list[dict[str, float]]:
    return [{metric: value} for value in values]


def taken(samples):
    return take_ratios(samples, TRAITS)[0]


def test_the_names_are_those_of_the_targets():
    assert {target.name for target in TARGETS} == NAMES
    ours = {name for name, traits in TRAITS.items() if traits["ours"]}
    assert {WS, WSS, HTTP, HTTPS, BEHIND, TRUSTED, DEVICE} <= ours
    assert ALONE in TRAITS


def test_every_ratio_is_about_a_column_that_is_measured_of_its_tunnel():
    columns = {column.name for column in COLUMNS} | {"agents", "fleet", "workers"}
    only = {peer.name: peer.columns or columns for peer in PEERS}
    for target in TARGETS:
        assert target.column in only[target.ours], target.name
        if isinstance(target.rivals, str):
            assert target.column in only[target.rivals], target.name


def test_the_first_column_meets_a_tunnel_that_has_carried_nothing():
    assert (COLUMNS[0].name, COLUMNS[0].fresh) == ("keepalive", False)


def test_without_any_sample_every_ratio_is_absent_with_a_reason():
    ratios, absent = take_ratios({}, TRAITS)
    assert ratios == {}
    assert set(absent) == NAMES
    assert all(absent.values())


def test_a_rate_is_taken_against_the_fastest_by_medians():
    ratio = taken(
        {
            WS: {"keepalive": rounds("rps", 900, 1000, 3000)},
            "rathole": {"keepalive": rounds("rps", 450, 500, 510)},
            "chisel": {"keepalive": rounds("rps", 100, 120, 9000)},
            "direct": {"keepalive": rounds("rps", 8000, 8000, 8000)},
            "piko": {"keepalive": rounds("rps", 7000, 7000, 7000)},
            WSS: {"keepalive": rounds("rps", 7000, 7000, 7000)},
        }
    )["tcp_keepalive_rps_vs_best_peer"]
    assert ratio["peer"] == "rathole"
    assert ratio["value"] == pytest.approx(2.0)
    assert (ratio["met"], ratio["target"]) == (None, "-")  # watched: two processors cannot show it
    assert ratio["range"] == [pytest.approx(2.0), pytest.approx(3000 / 510)]
    assert ratio["rounds"] == 3


def test_a_cost_is_taken_against_the_cheapest():
    ratio = taken(
        {
            WS: {"bulk": rounds("cpu_s_per_gb", 1.4)},
            "frp": {"bulk": rounds("cpu_s_per_gb", 2.0)},
            "go-ws": {"bulk": rounds("cpu_s_per_gb", 8.0)},
            "openssh": {"bulk": rounds("cpu_s_per_gb", 0.1)},  # encrypted
            "rathole": {"bulk": rounds("cpu_s_per_gb", 0.1)},  # does not multiplex
        }
    )["bulk_ws_cpu_vs_best_mux_peer"]
    assert (ratio["peer"], ratio["value"]) == ("frp", pytest.approx(0.7))
    assert ratio["met"] is False


def test_http_is_compared_with_http_and_tls_with_what_encrypts():
    ratios = taken(
        {
            HTTP: {"keepalive": rounds("rps", 5000)},
            "frp-http": {"keepalive": rounds("rps", 1000)},
            "chisel": {"keepalive": rounds("rps", 9000), "bulk": rounds("gb_per_s", 0.2)},
            WSS: {"bulk": rounds("gb_per_s", 0.4)},
            "frp": {"bulk": rounds("gb_per_s", 0.9)},
        }
    )
    assert ratios["http_keepalive_rps_vs_best_http_peer"]["peer"] == "frp-http"
    assert ratios["bulk_wss_rate_vs_best_encrypted_peer"]["peer"] == "chisel"


def test_one_of_our_own_ways_is_compared_with_another_one():
    ratios = taken(
        {
            HTTP: {"keepalive": [{"cpu_s_per_10k": 0.5, "p99_ms": 6.0}]},
            HTTPS: {"keepalive": rounds("cpu_s_per_10k", 0.9)},
            WS: {"keepalive": rounds("p99_ms", 5.0)},
        }
    )
    https = ratios["https_cpu_vs_plain_http"]
    assert (https["peer"], https["value"], https["met"]) == (HTTP, pytest.approx(1.8), True)
    p99 = ratios["http_p99_vs_tcp_p99"]
    assert (p99["peer"], p99["value"], p99["met"]) == (WS, pytest.approx(1.2), True)


def test_behind_nginx_tunnels_are_rivals_and_nginx_alone_is_the_measure():
    ratios = taken(
        {
            BEHIND: {"keepalive": rounds("rps", 6000)},
            "go-http-nginx": {"keepalive": rounds("rps", 2000)},
            "go-http": {"keepalive": rounds("rps", 9000)},
            ALONE: {"keepalive": rounds("rps", 10_000)},
        }
    )
    assert ratios["behind_nginx_rps_vs_best_peer"]["peer"] == "go-http-nginx"
    assert ratios["behind_nginx_rps_vs_best_peer"]["value"] == pytest.approx(3.0)
    assert ratios["behind_nginx_rps_vs_nginx_alone"]["value"] == pytest.approx(0.6)


def test_without_the_tunnel_that_it_is_named_for_a_ratio_is_left_out():
    _ratios, absent = take_ratios({WSS: {"bulk": rounds("cpu_s_per_gb", 2.0)}}, TRAITS)
    assert absent["bulk_wss_cpu_vs_openssh"] == "openssh has no cpu_s_per_gb in column bulk"


def test_figures_of_our_own_have_no_peer():
    ratios = taken(
        {
            WS: {
                "echo": rounds("p99_ms", 3.0, 4.0, 9.0),
                "memory": rounds("most_kib_per_connection", 3.5),
                "agents": rounds("kib_per_agent_at_10000", 40.0),
            }
        }
    )
    assert ratios["echo_p99_ms_under_bulk"] == {
        "value": 4.0,
        "target": "≤ 5",
        "met": True,
        "peer": None,
        "range": [3.0, 9.0],
        "rounds": 3,
    }
    assert ratios["idle_relay_kib"]["met"] is True
    assert ratios["idle_agent_kib"]["met"] is False


def test_a_peer_that_was_not_measured_leaves_the_ratio_out():
    ratios, absent = take_ratios({WS: {"connect": rounds("rps", 1.0)}}, TRAITS)
    assert "tcp_connect_rps_vs_best_peer" not in ratios
    assert "no peer" in absent["tcp_connect_rps_vs_best_peer"]
