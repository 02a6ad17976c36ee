"""`make bench`, or `python -m bench`: tunnels and SSH clients side by side, micro-benchmarks."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from bench import machine, micro
from bench.agents import measure_agents
from bench.charts import write_charts
from bench.columns import COLUMNS, Sample
from bench.hop import measure_hop
from bench.load import LoadFailure
from bench.origin import Origin, OriginProcesses, find_nginx
from bench.peers import PEERS
from bench.peers.tunnel import Peer, Unavailable
from bench.processes import Started, StartFailure
from bench.ratios import WS
from bench.report import Result, make_result, print_ratios, write
from bench.returning import measure_returning
from bench.rounds import Outcome, prepare, run_rounds, scratch_folder
from bench.ssh import CLIENTS, LEVELS, SSH, measure_ssh
from bench.tree import IMAGES, RESULTS, ROOT
from bench.workers import measure_workers

TUNNELS = "tunnels"
AGENTS = "agents"
FLEET = "fleet"
WORKERS = "workers"
HOP = "hop"
PARTS = (TUNNELS, SSH, *micro.PARTS)
"""What runs when nothing is named."""
PARTIAL_RESULTS = ROOT / "build" / "bench"
LEAST_ROUNDS = 3
"""A median of fewer is none."""

EXAMPLES = f"""\
examples:
  make bench                                  everything: about 20 minutes on two cores
  make bench ARGS=frame                       one part; parts: {", ".join(PARTS)},
                                              and {", ".join(micro.SLOW_PARTS)} (only by name)
  make bench ARGS="ssh --columns ssh-10"      commands over SSH, ten at once
  make bench ARGS="tunnels --peers tunnelmux-ws,openssh --columns keepalive --rounds 1 --seconds 2"
  make bench ARGS="tunnels --columns agents --agents 1000"
  make bench ARGS=--prepare                   build the peers, some eight minutes, and no more
  make bench ARGS="--rounds 1 --seconds 2"    every column once: do they all work?
  make bench ARGS=--list                      the tunnels, SSH clients and columns
  python bench/compare.py OLD.json NEW.json   fails on a regression beyond the noise

A whole run writes bench/results/DATE-COMMIT.json and .md, and the charts in docs/images. Any other,
and one of fewer than {LEAST_ROUNDS} rounds, writes to build/bench and leaves those alone.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = (*PARTS, *micro.SLOW_PARTS)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument(
        "--peers", help="only these tunnels and SSH clients, by commas; direct is always there"
    )
    parser.add_argument("--columns", help="only these columns, by commas")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all of them (3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="base time of a column (3)")
    parser.add_argument("--agents", default="1000,10000", help="numbers of idle agents, by commas")
    parser.add_argument(
        "--prepare", action="store_true", help="only build the peers into build/peers-bench"
    )
    parser.add_argument("--list", action="store_true", help="name tunnels, clients, columns")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(parts)}")
    arguments.peers = chosen(parser, "tunnel or SSH client", arguments.peers, peer_names())
    arguments.columns = chosen(parser, "column", arguments.columns, column_names())
    arguments.agents = [int(count) for count in arguments.agents.split(",")]
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def peer_names() -> list[str]:
    return [*(peer.name for peer in PEERS), *(client.name for client in CLIENTS)]


def column_names() -> list[str]:
    return [*(column.name for column in COLUMNS), AGENTS, FLEET, WORKERS, HOP, *LEVELS]


def parts_of(arguments: argparse.Namespace) -> list[str]:
    """Those named; else all that have a peer and a column to be measured."""
    if arguments.parts:
        return list(arguments.parts)
    has = {
        TUNNELS: ({peer.name for peer in PEERS}, {*column_names()} - {*LEVELS}),
        SSH: ({client.name for client in CLIENTS}, {*LEVELS}),
    }
    return [
        part
        for part in PARTS
        if part not in has
        or (has[part][0] & {*arguments.peers} and has[part][1] & {*arguments.columns})
    ]


def chosen(
    parser: argparse.ArgumentParser, what: str, given: str | None, names: list[str]
) -> list[str]:
    wanted = given.split(",") if given else names
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"no {what} {', '.join(unknown)}; there are: {', '.join(names)}")
    return wanted


def show_list() -> None:
    for peer in PEERS:
        print(f"{peer.name:18} {peer.what}")
    print()
    for column in COLUMNS:
        print(f"{column.name:18} {column.what}")
    print(f"{AGENTS:18} proxy memory per idle agent (once, not in every round)")
    print(f"{FLEET:18} agents that connect at once, and the start of one (once)")
    print(f"{WORKERS:18} a request with two workers beside one process (once)")
    print(f"{HOP:18} a request that goes from node to node beside one that does not (once)")
    print("\nof the part ssh:\n")
    for client in CLIENTS:
        print(f"{client.name:18} {client.what}")
    print()
    for name, at in LEVELS.items():
        print(f"{name:18} commands per second, {at} at once")


def require_tools() -> str:
    """nginx's path; ends with what to install where something is missing."""
    nginx = find_nginx()
    missing = [
        name for name, path in (("nginx", nginx), ("wrk", shutil.which("wrk"))) if path is None
    ]
    if missing or nginx is None:
        packages = " ".join({"nginx": "nginx-light"}.get(name, name) for name in missing)
        sys.exit(f"{' and '.join(missing)} not found: apt-get install {packages}")
    return nginx


def measure_tunnels(arguments: argparse.Namespace, outcome: Outcome) -> list[Peer]:
    """Fill *outcome*; the peers that were there."""
    nginx = require_tools()
    wanted = [peer for peer in PEERS if peer.name in {*arguments.peers, "direct"}]
    columns = [column for column in COLUMNS if column.name in arguments.columns]
    peers = prepare(wanted, outcome)
    if columns:
        with scratch_folder() as folder, OriginProcesses(Started(folder), nginx) as origin:
            run_rounds(
                peers,
                columns,
                origin,
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                outcome=outcome,
            )
    if any(peer.name == WS for peer in peers):
        measure_once(arguments, outcome, nginx)
    return peers


def measure_once(arguments: argparse.Namespace, outcome: Outcome, nginx: str) -> None:
    """The columns of plain WebSocket that are measured once, and not in every round."""

    def with_origin(measure: Callable[[Origin], Sample]) -> Sample:
        with scratch_folder() as folder, OriginProcesses(Started(folder), nginx) as origin:
            return measure(origin)

    columns: dict[str, tuple[str, Callable[[], Sample]]] = {
        AGENTS: (f"idle agents: {arguments.agents}", lambda: measure_agents(arguments.agents)),
        FLEET: ("a fleet that comes back", measure_returning),
        WORKERS: ("two workers beside one process", partial(with_origin, measure_workers)),
        HOP: ("a hop beside none", partial(with_origin, measure_hop)),
    }
    for column, (what, measure) in columns.items():
        if column not in arguments.columns:
            continue
        print(what, flush=True)
        try:
            outcome.add(WS, column, measure())
        except (StartFailure, Unavailable, LoadFailure) as exc:
            outcome.failures.append(f"{WS}, {column}: {exc}")
            print(f"  failed: {exc}")


def prepare_peers(arguments: argparse.Namespace) -> None:
    """Build what has to be built, so that a later run measures at once; name what cannot be had."""
    outcome = Outcome()
    for peer in prepare([peer for peer in PEERS if peer.name in arguments.peers], outcome):
        print(f"{peer.name:18} {peer.version}")


def is_whole(arguments: argparse.Namespace) -> bool:
    return (
        not arguments.parts
        and len(arguments.peers) == len(peer_names())
        and len(arguments.columns) == len(column_names())
        and arguments.rounds >= LEAST_ROUNDS
    )


def traits_of(peer: Peer) -> dict[str, object]:
    return {
        "what": peer.what,
        "version": peer.version,
        "ours": peer.ours,
        "tunnel": peer.tunnel,
        "visitors": peer.visitors,
        "encrypted": peer.encrypted,
        "multiplexes": peer.multiplexes,
    }


def save(arguments: argparse.Namespace, result: Result) -> None:
    whole = is_whole(arguments)
    results, images = (RESULTS, IMAGES) if whole else (PARTIAL_RESULTS, PARTIAL_RESULTS)
    results.parent.mkdir(exist_ok=True)
    written = [write(result, results, whole=whole), *write_charts(result, images)]
    print("\nwritten:", *(display(path) for path in written))


def display(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def stop(number: int, _frame: object) -> NoReturn:
    """A signal ends the run as an exception would, so that every process started is ended."""
    sys.exit(128 + number)


def main() -> int:
    arguments = parse_arguments()
    if arguments.list:
        show_list()
        return 0
    signal.signal(signal.SIGTERM, stop)
    if arguments.prepare:
        prepare_peers(arguments)
        return 0
    described = machine.describe()
    parts = parts_of(arguments)
    outcome = Outcome()
    peers: list[Peer] = []
    clients: dict[str, dict[str, object]] = {}
    figures: dict[str, dict[str, object]] = {}
    with contextlib.suppress(KeyboardInterrupt):
        if TUNNELS in parts:
            peers = measure_tunnels(arguments, outcome)
        if SSH in parts:
            clients = measure_ssh(
                arguments.peers,
                [column for column in arguments.columns if column in LEVELS],
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                outcome=outcome,
            )
        for part in parts:
            if part not in {TUNNELS, SSH}:
                repeats = 1 if part in micro.SLOW_PARTS else arguments.rounds
                figures.update(micro.measure(part, repeats))
        result = make_result(
            machine=described,
            settings={
                "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
                "rounds": arguments.rounds,
                "seconds": arguments.seconds,
            },
            peers={peer.name: traits_of(peer) for peer in peers} | clients,
            samples=outcome.samples,
            micro=figures,
            skipped=outcome.skipped,
            failures=outcome.failures,
        )
        save(arguments, result)
        if TUNNELS in parts:
            print_ratios(result)
        return 0
    print("\ninterrupted: nothing was written", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
