"""Rounds over all tunnels: each is started afresh, measured in every column, and ended."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.columns import SETTLE, Column, Sample
from bench.load import LoadFailure
from bench.origin import Origin
from bench.peers.tunnel import Peer, Running, Unavailable
from bench.processes import Started

Samples = dict[str, dict[str, list[Sample]]]


@dataclass
class Outcome:
    """Everything a run found, as it grows."""

    samples: Samples = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """Peers that cannot be had, with the reason."""
    failures: list[str] = field(default_factory=list)
    """What went wrong in one round with one peer; the other rounds count."""

    def add(self, peer: str, column: str, sample: Sample) -> None:
        self.samples.setdefault(peer, {}).setdefault(column, []).append(sample)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder only its owner can read, for keys, tokens and logs; it goes with the block."""
    folder = Path(tempfile.mkdtemp(prefix="tunnelmux-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepare(peers: Sequence[Peer], outcome: Outcome) -> list[Peer]:
    """Those of *peers* that can be had; each other with a line saying why not."""
    ready = []
    for peer in peers:
        try:
            peer.prepare()
        except Unavailable as exc:
            outcome.skipped[peer.name] = str(exc)
            print(f"without {peer.name}: {exc}", flush=True)
        else:
            ready.append(peer)
    return ready


def run_rounds(
    peers: Sequence[Peer],
    columns: Sequence[Column],
    origin: Origin,
    *,
    rounds: int,
    seconds: float,
    outcome: Outcome,
) -> None:
    began = time.monotonic()
    total = rounds * len(peers)
    for number in range(rounds):
        for place, peer in enumerate(peers):
            done = number * len(peers) + place
            print(f"round {number + 1}/{rounds}  {peer.name:18}", end="", flush=True)
            measure_peer(peer, columns, origin, seconds, outcome)
            left = (time.monotonic() - began) / (done + 1) * (total - done - 1)
            print(f"  {left / 60:4.1f} min left", flush=True)


def measure_peer(
    peer: Peer, columns: Sequence[Column], origin: Origin, seconds: float, outcome: Outcome
) -> None:
    wanted = [column for column in columns if not peer.columns or column.name in peer.columns]
    together = [column for column in wanted if not column.fresh]
    alone = [[column] for column in wanted if column.fresh]
    for group in filter(None, [together, *alone]):
        measure_group(peer, group, origin, seconds, outcome)


def measure_group(
    peer: Peer, columns: Sequence[Column], origin: Origin, seconds: float, outcome: Outcome
) -> None:
    """These columns of one tunnel, which is started for them."""
    with scratch_folder() as folder, Started(folder) as started:
        try:
            tunnel = peer.start(started, origin)
        except Exception as exc:  # noqa: BLE001  whatever it is, the others are measured
            outcome.failures.append(f"{peer.name}: {str(exc) or type(exc).__name__}")
            print(f"  did not start: {exc}", end="")
            return
        for column in columns:
            if column.applies(peer, tunnel):
                measure_column(peer, column, tunnel, seconds, outcome)


def measure_column(
    peer: Peer, column: Column, tunnel: Running, seconds: float, outcome: Outcome
) -> None:
    try:
        sample = column.measure(tunnel, seconds * column.share)
    except (LoadFailure, OSError, subprocess.SubprocessError) as exc:
        outcome.failures.append(f"{peer.name}, {column.name}: {str(exc) or type(exc).__name__}")
        print(f"  {column.name} failed: {exc}", end="", flush=True)
    else:
        outcome.add(peer.name, column.name, sample)
        what, figure = next(iter(sample.items()))
        print(f"  {column.name} {what} {figure:.4g}", end="", flush=True)
    time.sleep(SETTLE)
