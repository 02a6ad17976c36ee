"""The ratios that are the project's targets: how each is taken, and against whom.

A ratio is that of two medians. Its range holds the lowest and highest of the single rounds, in
which both were measured within a few minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.medians import median

WS, WSS, HTTP = "tunnelmux-ws", "tunnelmux-wss", "tunnelmux-http"
HTTPS, BEHIND, ALONE = "tunnelmux-https", "tunnelmux-nginx", "nginx"
TRUSTED, DEVICE, LOGIN = "tunnelmux-trusted", "tunnelmux-device", "tunnelmux-login"

RPS, CPU, P99 = "rps", "cpu_s_per_10k", "p99_ms"
GB_RATE, GB_CPU = "gb_per_s", "cpu_s_per_gb"

Samples = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
"""By peer and column, one for each round: `samples["chisel"]["keepalive"][0]["rps"]`."""

Traits = Mapping[str, Mapping[str, Any]]
"""By peer: `ours`, `tunnel`, `visitors`, `encrypted`, `multiplexes`."""

Rivals = Callable[[str, Mapping[str, Any]], bool]
"""Which peers a ratio is taken against, by name and traits."""


@dataclass(frozen=True)
class Target:
    """A ratio by its name, and what it shall be."""

    name: str
    limit: float | None
    """None where the ratio is only watched."""
    ours: str
    column: str
    metric: str
    rivals: Rivals | str | None = None
    """The best of these peers, or the one of that name; None for a figure that stands alone."""
    at_least: bool = True
    """Else the limit is the most it may be, and the best peer is the one with the least."""

    @property
    def text(self) -> str:
        if self.limit is None:
            return "-"
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"

    def is_met(self, value: float) -> bool | None:
        if self.limit is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit


def byte_tunnels(_name: str, traits: Mapping[str, Any]) -> bool:
    return bool(traits["visitors"] == "bytes")


def plain_multiplexers(_name: str, traits: Mapping[str, Any]) -> bool:
    return bool(traits["multiplexes"]) and not traits["encrypted"]


def encrypted(_name: str, traits: Mapping[str, Any]) -> bool:
    return bool(traits["encrypted"])


def http_tunnels(_name: str, traits: Mapping[str, Any]) -> bool:
    return bool(traits["visitors"] == "http")


def https_tunnels(_name: str, traits: Mapping[str, Any]) -> bool:
    return bool(traits["visitors"] == "https")


def tunnels_behind_nginx(_name: str, traits: Mapping[str, Any]) -> bool:
    return bool(traits["visitors"] == "nginx")


def at_least(
    name: str, limit: float | None, ours: str, column: str, metric: str, rivals: Rivals | str
) -> Target:
    return Target(name, limit, ours, column, metric, rivals)


def at_most(
    name: str,
    limit: float,
    ours: str,
    column: str,
    metric: str,
    rivals: Rivals | str | None = None,
) -> Target:
    return Target(name, limit, ours, column, metric, rivals, at_least=False)


TARGETS: tuple[Target, ...] = (
    # Visitors' bytes through TCP services.
    at_least("tcp_keepalive_rps_vs_best_peer", None, WS, "keepalive", RPS, byte_tunnels),
    at_most("tcp_keepalive_cpu_vs_best_peer", 0.6, WS, "keepalive", CPU, byte_tunnels),
    at_most("tcp_keepalive_cpu_vs_openssh", 0.65, WS, "keepalive", CPU, "openssh"),
    at_least("tcp_connect_rps_vs_best_peer", 1.3, WS, "connect", RPS, byte_tunnels),
    at_least("tcp_connect_rps_vs_openssh", 1.5, WS, "connect", RPS, "openssh"),
    at_most("tcp_connect_cpu_vs_openssh", 0.8, WS, "connect", CPU, "openssh"),
    at_least("bulk_ws_rate_vs_best_mux_peer", 1.2, WS, "bulk", GB_RATE, plain_multiplexers),
    at_most("bulk_ws_cpu_vs_best_mux_peer", 0.6, WS, "bulk", GB_CPU, plain_multiplexers),
    at_least("bulk_wss_rate_vs_best_encrypted_peer", 1.2, WSS, "bulk", GB_RATE, encrypted),
    at_most("bulk_wss_cpu_vs_openssh", 0.9, WSS, "bulk", GB_CPU, "openssh"),
    at_most("bulk_wss_cpu_vs_ws", 1.7, WSS, "bulk", GB_CPU, WS),
    at_most("p99_vs_best_peer", 1.0, WS, "keepalive", P99, byte_tunnels),
    at_most("echo_p99_ms_under_bulk", 5.0, WS, "echo", P99),
    at_most("idle_relay_kib", 4.0, WS, "memory", "most_kib_per_connection"),
    # Visitors' HTTP, in each way in.
    at_least("http_keepalive_rps_vs_best_http_peer", 5.0, HTTP, "keepalive", RPS, http_tunnels),
    at_least("http_connect_rps_vs_best_http_peer", 1.5, HTTP, "connect", RPS, http_tunnels),
    at_most("http_p99_vs_tcp_p99", 1.3, HTTP, "keepalive", P99, WS),
    at_most("https_cpu_vs_plain_http", 2.0, HTTPS, "keepalive", CPU, HTTP),
    at_most("trusted_proxy_cpu_vs_plain_http", 1.3, TRUSTED, "keepalive", CPU, HTTP),
    at_most("access_login_cpu_vs_public", 1.3, LOGIN, "keepalive", CPU, HTTP),
    at_most("device_field_cpu_vs_plain_http", 1.3, DEVICE, "keepalive", CPU, HTTP),
    at_least("https_rps_vs_best_peer", 2.5, HTTPS, "keepalive", RPS, https_tunnels),
    Target(
        "https_cpu_vs_best_peer",
        *(None, HTTPS, "keepalive", CPU, https_tunnels),
        at_least=False,
    ),
    at_most("https_connect_cpu_vs_nginx", 2.5, HTTPS, "connect", CPU, ALONE),
    at_least("behind_nginx_rps_vs_best_peer", 2.5, BEHIND, "keepalive", RPS, tunnels_behind_nginx),
    Target(
        "behind_nginx_cpu_vs_best_peer",
        *(None, BEHIND, "keepalive", CPU, tunnels_behind_nginx),
        at_least=False,
    ),
    at_least("behind_nginx_rps_vs_nginx_alone", 0.5, BEHIND, "keepalive", RPS, ALONE),
    at_most("websocket_echo_cpu_vs_best_peer", 0.6, HTTP, "websocket", CPU, http_tunnels),
    Target(
        "websocket_echo_tls_cpu_vs_best_peer",
        *(None, HTTPS, "websocket", CPU, https_tunnels),
        at_least=False,
    ),
    at_most("h11_path_cpu_per_10k", 8.0, HTTP, "h11", CPU),
    # Agents.
    at_most("idle_agent_kib", 32.0, WS, "agents", "kib_per_agent_at_10000"),
    Target("agents_per_second_ws", 1000.0, WS, "fleet", "agents_per_second_ws"),
    Target("agents_per_second_wss", 400.0, WS, "fleet", "agents_per_second_wss"),
    Target("agents_10000_known_vs_100", 0.9, WS, "fleet", "rate_10000_known_vs_100"),
    at_most("agent_idle_mib", 30.0, WS, "fleet", "agent_idle_mib"),
    at_most("agent_connect_s", 0.35, WS, "fleet", "agent_connect_s"),
    # Two workers, half of the visitors at the wrong one.
    at_most("workers_kept_cpu_vs_one", 1.1, WS, "workers", "kept_two_vs_one"),
    at_most("workers_new_cpu_vs_one", 1.1, WS, "workers", "new_two_vs_one"),
)


def take_ratios(samples: Samples, traits: Traits) -> tuple[dict[str, Any], dict[str, str]]:
    """The ratios by name, and for each that could not be taken the reason."""
    taken, absent = {}, {}
    for target in TARGETS:
        try:
            taken[target.name] = take_ratio(target, samples, traits)
        except LookupError as exc:
            absent[target.name] = str(exc.args[0])
    return taken, absent


def take_ratio(target: Target, samples: Samples, traits: Traits) -> dict[str, Any]:
    """One entry of `ratios`; LookupError with a sentence when it cannot be had."""
    ours = values_of(samples, target.ours, target)
    if not ours:
        raise LookupError(f"{target.ours} has no {target.metric} in column {target.column}")
    rival = None
    values = list(ours)
    value = median(values)
    if target.rivals is not None:
        if isinstance(target.rivals, str):
            rival = target.rivals
        else:
            rival = best_rival(target, samples, traits)
        theirs = values_of(samples, rival, target)
        if not theirs:
            raise LookupError(f"{rival} has no {target.metric} in column {target.column}")
        value = value / median(theirs)
        values = [one / other for one, other in zip(ours, theirs, strict=False)]
    return {
        "value": value,
        "target": target.text,
        "met": target.is_met(value),
        "peer": rival,
        "range": [min(values), max(values)],
        "rounds": len(values),
    }


def best_rival(target: Target, samples: Samples, traits: Traits) -> str:
    assert callable(target.rivals)
    figures = {
        name: median(values)
        for name, trait in traits.items()
        if not trait["ours"] and trait["tunnel"] and target.rivals(name, trait)
        if (values := values_of(samples, name, target))
    }
    if not figures:
        raise LookupError(
            f"no peer to take it against was measured in column {target.column} "
            f"({target.rivals.__name__.replace('_', ' ')})"
        )
    return (max if target.at_least else min)(figures, key=lambda name: figures[name])


def values_of(samples: Samples, name: str, target: Target) -> list[float]:
    """The metric in every round that has it and is not zero, which no measurement here can be."""
    column = samples.get(name, {}).get(target.column, ())
    return [sample[target.metric] for sample in column if sample.get(target.metric)]
