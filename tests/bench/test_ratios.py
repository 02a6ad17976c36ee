"""The ratios that are targets: each against the best of those it is about."""

from __future__ import annotations

import pytest
from bench.peers import PEERS
from bench.ratios import HTTP, TARGETS, WS, WSS, take_ratios

NAMES = {
    "tcp_keepalive_rps_vs_best_peer",
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
    "agents_10000_known_vs_100",
    "agent_idle_mib",
    "agent_connect_s",
}

TRAITS = {
    peer.name: {
        "ours": peer.ours,
        "http": peer.http,
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
    assert {WS, WSS, HTTP} <= {name for name, traits in TRAITS.items() if traits["ours"]}


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
    assert ratio["met"] is True
    assert ratio["target"] == "≥ 2"
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
    assert "tcp_connect_rps_vs_openssh" not in ratios
    assert "no peer" in absent["tcp_connect_rps_vs_openssh"]
