"""`make bench-fleet`: what 10,000 agents over two nodes cost, and how soon they are back when one
node dies.

Two proxies in a cluster with Redis; each agent once with one session, once with two. Then a node is
killed with SIGKILL while visitors ask for every device at the other one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio

import tunnelmux
from bench import machine
from bench.agents import allow_files
from bench.columns import Sample
from bench.failures.visitors import Door, Visitor
from bench.fleet import device_name, device_token
from bench.medians import quantile
from bench.node_loss.agents import Settings
from bench.peers.ours import make_certificate, start_daemon
from bench.processes import (
    HOST,
    START_TIMEOUT,
    Started,
    StartFailure,
    can_connect,
    cpu_seconds,
    free_ports,
    resident_kib,
)
from bench.report import table
from bench.rounds import scratch_folder
from bench.tree import RESULTS, ROOT

AGENTS = 10_000
PER_PROCESS = 500
"""Agents that share a process. More of them cost each other time that no device spends."""

VISITORS = 64
"""Devices that are asked for at the same time."""

ASKED_MEANWHILE = 10
"""Every so many devices are asked for while agents come back, and all of them afterwards: visitors
take processor time from those agents here."""

STARTS_PER_SECOND = 150
"""Sessions that are begun at first: less than what two processors do for both ends."""

AGAIN = 1.0
"""Seconds until a visitor asks again whose request failed."""

STEADY = 20.0
"""Seconds of which calls of Redis and processor time are counted while nothing happens."""

LOOK = 0.5
"""Seconds between two looks at the metrics of a node, each of which costs it some."""

SETTLE = 5.0
CONNECT_WITHIN = 240.0
BACK_WITHIN = 120.0
GOAL = 20.0
PARTIAL_RESULTS = ROOT / "build" / "bench"

PROXY = """\
[tunnel]
listen = "{host}:{tunnel}"
tls_certificate = "{certificate}"
tls_key = "{key}"
[ingress.http]
listen = "{host}:{http}"
[internal]
listen = "{host}:{internal}"
[cluster]
redis = "redis://{host}:{redis}"
listen = "{host}:{hop}"
node = "{node}"
agent_url = "wss://{host}:{tunnel}/tunnel/connect"
"""


class Fleet:
    """Redis, the nodes `a` and `b`, and the processes of agents."""

    def __init__(self, started: Started, count: int, sessions: int, *, keeps_logs: bool) -> None:
        self._started = started
        self.count, self.sessions = count, sessions
        self._keeps_logs = keeps_logs
        self.redis_port, *ports = free_ports(9)
        self._ports = {node: ports[4 * n : 4 * n + 4] for n, node in enumerate("ab")}
        self.certificate, self.key, self.pin = make_certificate(started.folder, "tunnel")
        self.pids: dict[str, int] = {}
        """The processes by name, without a node that was killed."""
        self._logs: dict[str, str] = {}
        self._starts = 0

    def start_redis(self) -> None:
        redis = ["redis-server", "--port", str(self.redis_port), "--bind", HOST, "--save", ""]
        self._start("redis", [*redis, "--appendonly", "no"])
        self._started.wait_for_port(self.redis_port)

    def start_node(self, node: str) -> None:
        """Start it, or start it again; returns when it listens."""
        tunnel, http, internal, hop = self._ports[node]
        text = PROXY.format(
            host=HOST, tunnel=tunnel, http=http, internal=internal, hop=hop, node=node,
            certificate=self.certificate, key=self.key, redis=self.redis_port,
        )  # fmt: skip
        for number in range(self.count):
            text += f'[[devices]]\nname = "{device_name(number)}"\n'
            text += f'token = "{device_token(number)}"\n'
        self._starts += 1
        called = f"{node}-{self._starts}"
        self.pids[node] = start_daemon(self._started, "proxy", text, called)
        self._logs[node] = called
        until = time.monotonic() + START_TIMEOUT
        while not can_connect(tunnel):
            self.check()
            if time.monotonic() > until:
                raise StartFailure(f"{node} does not listen")
            time.sleep(0.02)

    def start_agents(self) -> None:
        source = Path(tunnelmux.__file__).parents[1]
        for first in range(0, self.count, PER_PROCESS):
            settings = Settings(
                first=first,
                count=min(PER_PROCESS, self.count - first),
                sessions=self.sessions,
                start_within=self.count * self.sessions / STARTS_PER_SECOND,
                pin=self.pin,
                nodes=[f"wss://{HOST}:{self._ports[n][0]}/tunnel/connect" for n in "ab"],
                keeps_logs=self._keeps_logs,
            )
            file = self._started.folder / f"agents-{first}.json"
            file.write_bytes(msgspec.json.encode(settings))
            command = [sys.executable, "-m", "bench.node_loss.agents", str(file)]
            paths = {"PYTHONPATH": f"{ROOT}:{source}"}
            self._start(f"agents-{first}", command, paths)

    def _start(self, name: str, command: list[str], paths: Mapping[str, str] | None = None) -> None:
        self._logs[name] = name
        self.pids[name] = self._started.start(name, command, paths)

    @property
    def agents(self) -> list[int]:
        """The processes that hold agents."""
        return [pid for name, pid in self.pids.items() if name.startswith("agents-")]

    def kill(self, node: str) -> None:
        """End it as a crash would."""
        os.kill(self.pids.pop(node), signal.SIGKILL)

    def check(self) -> None:
        """Raise StartFailure when a process has ended that should not have."""
        for name, pid in self.pids.items():
            if self._started.has_ended(pid):
                raise StartFailure(
                    f"{name} has ended: {self._started.log(self._logs[name])[-600:]}"
                )

    def door(self, node: str) -> Door:
        return Door(node, HOST, self._ports[node][1])

    async def metric(self, node: str, name: str) -> float:
        """The value of one metric of a node."""
        text = await _get(self._ports[node][2], "/metrics")
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def sessions_at(self, *nodes: str) -> int:
        return sum([int(await self.metric(node, "tunnelmux_sessions")) for node in nodes])

    def redis_calls(self) -> int:
        """Scripts that Redis has run for the nodes."""
        found = re.findall(r"^cmdstat_eval(?:sha)?:calls=(\d+)", self._redis_info(), re.MULTILINE)
        return sum(map(int, found))

    def redis_memory(self) -> int:
        """Bytes that Redis uses."""
        found = re.search(r"^used_memory:(\d+)", self._redis_info(), re.MULTILINE)
        return int(found[1]) if found else 0

    def _redis_info(self) -> str:
        done = subprocess.run(
            ["redis-cli", "-p", str(self.redis_port), "INFO", "everything"],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


async def _get(port: int, path: str) -> str:
    stream = await trio.open_tcp_stream(HOST, port)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
        return b"".join([data async for data in stream]).decode()


# -- one run ------------------------------------------------------------------------------------


async def measure(folder: Path, count: int, sessions: int, keeps_logs: bool) -> Sample:
    """The figures of a fleet whose agents keep so many sessions."""
    told: Sample = {}
    with Started(folder) as started:
        fleet = Fleet(started, count, sessions, keeps_logs=keeps_logs)
        fleet.start_redis()
        for node in "ab":
            fleet.start_node(node)
        started.wait_for_log("b-2", "node joined")
        await trio.sleep(SETTLE)
        empty = {node: resident_kib([fleet.pids[node]]) for node in "ab"}
        before = fleet.redis_memory()
        told["node_empty_mib"] = empty["a"] / 1024
        await connect(fleet, told)
        told["redis_bytes_per_agent"] = (fleet.redis_memory() - before) / count
        for node in "ab":
            held = await fleet.sessions_at(node)
            grown = resident_kib([fleet.pids[node]]) - empty[node]
            told[f"sessions_{node}"], told[f"kib_per_session_{node}"] = held, grown / held
        await steady(fleet, told)
        told |= {f"before_{k}": v for k, v in (await ask_all(fleet, "b")).items()}
        try:
            await lose(fleet, told)
            if sessions > 1:
                await return_of_node(fleet, told)
        except* trio.TooSlowError:
            say("given up: it took too long")
    return told


async def connect(fleet: Fleet, told: Sample) -> None:
    began, used = time.monotonic(), cpu_of(fleet)
    fleet.start_agents()
    wanted = fleet.count * fleet.sessions
    told["all_connected_after_s"] = await until_sessions(fleet, "ab", wanted, CONNECT_WITHIN)
    for name, seconds in cpu_of(fleet).items():
        told[f"connect_cpu_ms_{name}"] = (seconds - used.get(name, 0.0)) / wanted * 1000
    say(f"{wanted} sessions after {time.monotonic() - began:.1f} s")
    await trio.sleep(SETTLE)


async def steady(fleet: Fleet, told: Sample) -> None:
    calls, used, began = fleet.redis_calls(), cpu_of(fleet), time.monotonic()
    await trio.sleep(STEADY)
    took = time.monotonic() - began
    told["redis_calls_per_s"] = (fleet.redis_calls() - calls) / took
    for name, seconds in cpu_of(fleet).items():
        told[f"idle_cpu_percent_{name}"] = (seconds - used[name]) / took * 100
    say(f"Redis: {told['redis_calls_per_s']:.2f} calls a second")


async def lose(fleet: Fleet, told: Sample) -> None:
    """Kill node `a`, and watch until all devices are at `b`, and have answered there."""
    calls, used = fleet.redis_calls(), cpu_of(fleet)
    told["lost_sessions"] = await fleet.sessions_at("a")
    fleet.kill("a")
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            told["all_at_the_other_after_s"] = await until_sessions(
                fleet, "b", fleet.count, BACK_WITHIN
            )

        nursery.start_soon(watch)
        meanwhile = await ask_all(fleet, "b", every=ASKED_MEANWHILE)
    told |= {f"loss_{name}": value for name, value in meanwhile.items()}
    told["loss_redis_calls"] = fleet.redis_calls() - calls
    for name, seconds in cpu_of(fleet).items():
        told[f"loss_cpu_s_{name}"] = seconds - used[name]
    say(
        f"killed: all sessions at the other after {told['all_at_the_other_after_s']:.1f} s; every "
        f"tenth has answered after {told['loss_all_answered_after_s']:.1f} s, "
        f"{told['loss_failed_requests']:.0f} requests failed"
    )
    told |= {f"after_{name}": value for name, value in (await ask_all(fleet, "b")).items()}


async def return_of_node(fleet: Fleet, told: Sample) -> None:
    fleet.start_node("a")
    told["two_sessions_again_after_s"] = await until_sessions(
        fleet, "ab", 2 * fleet.count, CONNECT_WITHIN
    )
    say(f"node a is back: two sessions each after {told['two_sessions_again_after_s']:.1f} s")


async def until_sessions(fleet: Fleet, nodes: Sequence[str], wanted: int, limit: float) -> float:
    """Seconds until these nodes have that many sessions."""
    began = shown = trio.current_time()
    with trio.fail_after(limit):
        while (count := await fleet.sessions_at(*nodes)) < wanted:
            fleet.check()
            if trio.current_time() - shown > 2:
                shown = trio.current_time()
                say(f"{count} of {wanted} sessions", end="\r")
            await trio.sleep(LOOK)
    return trio.current_time() - began


async def ask_all(fleet: Fleet, node: str, *, every: int = 1) -> Sample:
    """Ask all devices, or one of so many, at that node until they answer, in a mixed order."""
    waiting = [number * 7919 % fleet.count for number in range(0, fleet.count, every)]
    began = trio.current_time()
    problems: dict[str, int] = {}
    times: list[float] = []
    wrong = 0

    async def ask() -> None:
        nonlocal wrong
        while waiting:
            number = waiting.pop()
            first = trio.current_time()
            while True:  # until it answers; the caller bounds the whole
                visitor = Visitor(device_name(number), [fleet.door(node)], 0)
                request = await visitor.ask()
                await visitor.leave()
                wrong += bool(request.wrong)
                if not request.problem:
                    break
                problems[request.problem] = problems.get(request.problem, 0) + 1
                await trio.sleep(AGAIN)
            times.append(trio.current_time() - first)

    with trio.fail_after(BACK_WITHIN):
        async with trio.open_nursery() as nursery:
            for _ in range(VISITORS):
                nursery.start_soon(ask)
    for problem, count in problems.items():
        say(f"{count} requests: {problem}")
    return {
        "all_answered_after_s": trio.current_time() - began,
        "failed_requests": sum(problems.values()),
        "wrong_devices": wrong,
        "p50_ms": quantile(times, 0.5) * 1000,
        "p99_ms": quantile(times, 0.99) * 1000,
    }


def cpu_of(fleet: Fleet) -> dict[str, float]:
    """Processor time of each part; that of the agents together."""
    parts = [name for name in ("a", "b", "redis") if name in fleet.pids]
    found = {name: cpu_seconds([fleet.pids[name]]) for name in parts}
    return found | {"agents": cpu_seconds(fleet.agents)}


def say(what: str, end: str = "\n") -> None:
    print(f"  {what:76}", end=end, flush=True)


# -- what is written ----------------------------------------------------------------------------

ROWS = (
    ("all connected", "all_connected_after_s", "s", ".1f"),
    ("a node without agents", "node_empty_mib", "MiB", ".0f"),
    ("memory of a node for each session", "kib_per_session_b", "KiB", ".1f"),
    ("memory of Redis for each agent", "redis_bytes_per_agent", "bytes", ".0f"),
    ("calls of Redis while nothing happens", "redis_calls_per_s", "a second", ".2f"),
    ("a node's processor meanwhile", "idle_cpu_percent_b", "% of one", ".1f"),
    ("connecting: processor of the node for each session", "connect_cpu_ms_b", "ms", ".2f"),
    ("connecting: that of the agent's end", "connect_cpu_ms_agents", "ms", ".2f"),
    ("sessions of the node that is killed", "lost_sessions", "", ",.0f"),
    ("all have a session at the other one", "all_at_the_other_after_s", "s", ".1f"),
    ("every tenth has answered a visitor there", "loss_all_answered_after_s", "s", ".1f"),
    ("requests of these visitors that failed", "loss_failed_requests", "", ".0f"),
    ("answers from a wrong device", "loss_wrong_devices", "", ".0f"),
    ("then all are asked: requests that failed", "after_failed_requests", "", ".0f"),
    ("answers from a wrong device then", "after_wrong_devices", "", ".0f"),
    ("a visitor waited, half and 99 %", "loss_p50_ms", "ms", ".0f"),
    ("", "loss_p99_ms", "ms", ".0f"),
    ("calls of Redis because of it", "loss_redis_calls", "", ",.0f"),
    ("processor of the other node meanwhile", "loss_cpu_s_b", "s", ".1f"),
    ("that of all agents", "loss_cpu_s_agents", "s", ".1f"),
    ("the node is back: all have two again", "two_sessions_again_after_s", "s", ".1f"),
)


def markdown(result: Mapping[str, Any]) -> str:
    described = result["machine"]
    load = ", ".join(str(figure) for figure in described["load_average"])
    kinds = list(result["samples"])
    rows = [
        (what, *(_cell(result["samples"][kind].get(name), unit, form) for kind in kinds))
        for what, name, unit, form in ROWS
    ]
    never = float("inf")
    goal = max(s.get("all_at_the_other_after_s", never) for s in result["samples"].values())
    how = (
        f"Made by `{result['command']}`, begun {described['date']}: {result['agents']:,} agents, "
        "over `wss://`, with their default settings; one run of each kind. All is on one machine, "
        "also the agents, which take most of its processor time."
    )
    where = (
        f"{described['cpu']}, {described['cpus']} CPUs, {described['memory_gib']} GiB; "
        f"{described['kernel']}; Python {described['python']}; load average at the start {load}."
    )
    verdict = (
        f"Goal: all are back within {GOAL:g} s. It is {'met' if goal <= GOAL else 'missed'}: "
        f"{goal:.1f} s."
    )
    parts = [
        f"# A fleet over two nodes, {described['date'][:10]}, commit {described['commit']}",
        how,
        where,
        table(("", *(f"{kind} for each agent" for kind in kinds)), rows),
        verdict,
    ]
    return "\n\n".join(parts) + "\n"


def _cell(value: float | None, unit: str, form: str) -> str:
    return "-" if value is None else f"{value:{form}} {unit}".strip()


def save(result: Mapping[str, Any], *, whole: bool) -> Path:
    described = result["machine"]
    folder = RESULTS if whole else PARTIAL_RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    date = described["date"]
    when = date[:10] if whole else re.sub(r"[^0-9T-]", "", date)
    path = folder / f"{when}-{described['commit']}-fleet.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    path.with_suffix(".md").write_text(markdown(result), "utf-8")
    return path


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.node_loss", description=__doc__)
    parser.add_argument("--agents", type=int, default=AGENTS, help=f"how many ({AGENTS})")
    parser.add_argument("--sessions", default="1,2", help="of each agent, by commas (1,2)")
    parser.add_argument("--keep", type=Path, help="a folder for all logs and configurations")
    return parser.parse_args(given)


def main() -> int:
    arguments = parse_arguments()
    if shutil.which("redis-server") is None:
        sys.exit("redis-server not found: apt-get install redis-server")
    allow_files(max(20_000, 6 * PER_PROCESS, 2 * arguments.agents))
    described, samples = machine.describe(), {}
    for sessions in map(int, arguments.sessions.split(",")):
        kind = "one session" if sessions == 1 else "two sessions"
        print(f"{arguments.agents} agents, {kind} each", flush=True)
        with scratch_folder() as scratch:
            folder = scratch
            if arguments.keep is not None:
                folder = arguments.keep / str(sessions)
                folder.mkdir(parents=True)
            keeps_logs = arguments.keep is not None
            samples[kind] = trio.run(measure, folder, arguments.agents, sessions, keeps_logs)
    result = {
        "machine": described,
        "command": shlex.join(["python", "-m", "bench.node_loss", *sys.argv[1:]]),
        "agents": arguments.agents,
        "samples": samples,
    }
    path = save(result, whole=arguments.agents == AGENTS and len(samples) == 2)
    print(markdown(result))
    print("written:", path.relative_to(ROOT).as_posix())
    return 0


if __name__ == "__main__":
    sys.exit(main())
