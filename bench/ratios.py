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

Samples = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
"""By peer and column, one for each round: `samples["chisel"]["keepalive"][0]["rps"]`."""

Traits = Mapping[str, Mapping[str, Any]]
"""By peer: `ours`, `http`, `encrypted`, `multiplexes`."""


@dataclass(frozen=True)
class Target:
    """A ratio by its name, and what it shall be."""

    name: str
    limit: float
    ours: str
    column: str
    metric: str
    rivals: Callable[[str, Mapping[str, Any]], bool] | None = None
    """Which peers it is taken against, by name and traits; None for a figure of our own."""
    at_least: bool = True
    """Else the limit is the most it may be, and the best peer is the one with the least."""

    @property
    def text(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def byte_tunnels(_name: str, traits: Mapping[str, Any]) -> bool:
    return not traits["http"]


def openssh(name: str, _traits: Mapping[str, Any]) -> bool:
    return name == "openssh"


def plain_multiplexers(_name: str, traits: Mapping[str, Any]) -> bool:
    return bool(traits["multiplexes"]) and not traits["encrypted"]


def encrypted(_name: str, traits: Mapping[str, Any]) -> bool:
    return bool(traits["encrypted"])


def http_tunnels(_name: str, traits: Mapping[str, Any]) -> bool:
    return bool(traits["http"])


TARGETS: tuple[Target, ...] = (
    Target("tcp_keepalive_rps_vs_best_peer", 2.0, WS, "keepalive", "rps", byte_tunnels),
    Target("tcp_keepalive_cpu_vs_openssh", 0.65, WS, "keepalive", "cpu_s_per_10k", openssh, False),
    Target("tcp_connect_rps_vs_openssh", 1.5, WS, "connect", "rps", openssh),
    Target("tcp_connect_cpu_vs_openssh", 0.8, WS, "connect", "cpu_s_per_10k", openssh, False),
    Target("bulk_ws_rate_vs_best_mux_peer", 1.2, WS, "bulk", "gb_per_s", plain_multiplexers),
    Target(
        "bulk_ws_cpu_vs_best_mux_peer", 0.6, WS, "bulk", "cpu_s_per_gb", plain_multiplexers, False
    ),
    Target("bulk_wss_rate_vs_best_encrypted_peer", 1.3, WSS, "bulk", "gb_per_s", encrypted),
    Target("http_keepalive_rps_vs_best_http_peer", 5.0, HTTP, "keepalive", "rps", http_tunnels),
    Target("p99_vs_best_peer", 1.0, WS, "keepalive", "p99_ms", byte_tunnels, False),
    Target("echo_p99_ms_under_bulk", 5.0, WS, "echo", "p99_ms", None, False),
    Target("idle_agent_kib", 32.0, WS, "agents", "kib_per_agent_at_10000", None, False),
    Target("agents_per_second_ws", 1000.0, WS, "fleet", "agents_per_second_ws"),
    Target("agents_per_second_wss", 400.0, WS, "fleet", "agents_per_second_wss"),
    Target("agents_10000_known_vs_100", 0.9, WS, "fleet", "rate_10000_known_vs_100"),
    Target("agent_idle_mib", 30.0, WS, "fleet", "agent_idle_mib", None, False),
    Target("agent_connect_s", 0.35, WS, "fleet", "agent_connect_s", None, False),
    Target("idle_relay_kib", 4.0, WS, "memory", "most_kib_per_connection", None, False),
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
        rival = best_rival(target, samples, traits)
        theirs = values_of(samples, rival, target)
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
    assert target.rivals is not None
    figures = {
        name: median(values)
        for name, trait in traits.items()
        if not trait["ours"] and name != "direct" and target.rivals(name, trait)
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
