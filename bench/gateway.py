"""`make bench-gateway`: the ways of a person's SSH to a device, ours beside OpenSSH as a jump host.

All parts are processes of this machine: an sshd as the device, another as the jump host, and an
installation of ours (proxy, agent, gateway, API). A round is all ways, one after another, so that
each figure stands beside what it is compared with.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from bench import machine
from bench.columns import Sample
from bench.medians import quantile, summarize
from bench.processes import can_connect, cpu_seconds, descendants, free_ports, read_all_stats
from bench.report import table
from bench.rounds import Outcome, scratch_folder
from bench.ssh import openssh, until_stopped
from bench.ssh_clients import find
from bench.tree import RESULTS, ROOT

if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))  # the installation is that of the tests

from support.daemons import DaemonSet
from support.lease_stage import LeaseStage, running_stage
from support.registries import Templates
from support.sshd import SshServer, running_sshd
from tunnelmux.config import Secret
from tunnelmux.registry import open_registry

PARTIAL_RESULTS = ROOT / "build" / "bench"

LEAST_ROUNDS = 3

MIB = 1 << 20

SESSIONS = 100
AT_ONCE = 10
"""Log-ins under way: sshd refuses some of those beyond (MaxStartups)."""

LOGINS_AT_ONCE = 4

# Nothing of their own limits may show: all comes from one address.
GATEWAY_MORE = """
[limits]
max_connections = 2000
max_connections_per_address = 2000
[recording]
max_bytes = 1099511627776
"""
SSHD_MORE = "MaxSessions 500\nMaxStartups 500\n"

CONFIGURATION = """\
Host *
 BatchMode yes
 Ciphers aes128-gcm@openssh.com
 ConnectTimeout 60
 IdentitiesOnly yes
 IdentityAgent none
 LogLevel ERROR
 StrictHostKeyChecking accept-new
 UserKnownHostsFile {folder}/bench_known_hosts
Host gw recorded
 HostName {host}
 IdentityFile {bob}
 Port {gateway}
Host gw
 User x
Host recorded
 User {user}@cam1
Host jump direct openssh-jump openssh-reverse sealed
 IdentityFile {key}
 User {user}
Host jump
 HostName 127.0.0.1
 Port {jump}
Host direct openssh-jump
 HostName 127.0.0.1
 HostKeyAlias device
 Port {device}
Host openssh-reverse
 HostName 127.0.0.1
 HostKeyAlias device
 Port {reverse}
Host openssh-jump openssh-reverse
 ProxyJump jump
Host sealed
 HostKeyAlias device
 HostName cam1
 ProxyJump gw
"""


@dataclass(frozen=True)
class Way:
    name: str
    what: str
    relays: tuple[str, ...]
    """The processes between person and device; the first is the one that people log in to."""
    ours: bool = False


WAYS = (
    Way("direct", "ssh to the device's sshd, which must be reachable", ()),
    Way("openssh-jump", "ssh -J by an sshd, to a device that it reaches", ("jump",)),
    Way(
        "openssh-reverse",
        "ssh -J by an sshd, to the device's ssh -R",
        ("jump", "reverse"),
    ),
    Way("sealed", "ssh -J by tunnelmux-gateway", ("gateway", "proxy", "agent"), ours=True),
    Way("recorded", "ssh by tunnelmux-gateway, recorded", ("gateway", "proxy", "agent"), ours=True),
)

RATIOS = tuple(
    (f"{ours}_{column}_{metric}_vs_{rival}", ours, rival, column, metric)
    for ours in ("sealed", "recorded")
    for rival in ("openssh-jump", "openssh-reverse")
    for column, metric in (
        ("text", "mb_per_s"),
        ("text", "cpu_s_per_gb"),
        ("text", "first_cpu_s_per_gb"),
        ("file", "cpu_s_per_gb"),
        ("logins", "per_s"),
        ("logins", "cpu_ms"),
        ("sessions", "kib_per_session"),
        ("echo", "p50_ms"),
        ("echo", "p99_ms"),
    )
)


@dataclass
class Stage:
    """All that is running."""

    folder: Path
    configuration: Path
    pids: Mapping[str, int]
    ssh: str
    sftp: str

    def words(self, way: Way, *command: str, options: Sequence[str] = ()) -> list[str]:
        return [self.ssh, "-F", str(self.configuration), *options, way.name, *command]

    def roots(self, way: Way) -> list[int]:
        return [self.pids[name] for name in way.relays]


class Failed(Exception):
    """A client did not do what it was to do; the message has its error."""


# -- columns --------------------------------------------------------------------------------------


async def measure_text(stage: Stage, way: Way, seconds: float) -> Sample:
    """`ssh cat FILE` of text that a terminal shows; recorded it is all written down."""
    return await transfer(stage, way, stage.words(way, f"cat {stage.folder}/text"), seconds)


async def measure_file(stage: Stage, way: Way, seconds: float) -> Sample:
    """`sftp` of random bytes, which no way records."""
    words = [stage.sftp, "-q", "-F", str(stage.configuration)]
    return await transfer(
        stage, way, [*words, f"{way.name}:{stage.folder}/random", "/dev/null"], seconds
    )


async def transfer(stage: Stage, way: Way, words: list[str], seconds: float) -> Sample:
    size = (stage.folder / "text").stat().st_size
    roots = stage.roots(way)
    before = [cpu_seconds([pid]) for pid in roots]
    began, done = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds or not done:
        await run(words)
        done += size
    sample = {"mb_per_s": done / 1e6 / took}
    if roots:
        used = [cpu_seconds([pid]) - was for pid, was in zip(roots, before, strict=True)]
        sample["cpu_s_per_gb"] = sum(used) / done * 1e9
        sample["first_cpu_s_per_gb"] = used[0] / done * 1e9
    return sample


async def measure_logins(stage: Stage, way: Way, seconds: float) -> Sample:
    """`ssh true`, some at once."""
    words = stage.words(way, "true")
    times: list[float] = []
    roots = stage.roots(way)
    before, began = cpu_seconds(roots) if roots else 0.0, time.perf_counter()

    async def work() -> None:
        while (start := time.perf_counter()) < began + seconds:
            await run(words)
            times.append(time.perf_counter() - start)

    async with trio.open_nursery() as nursery:
        for _ in range(LOGINS_AT_ONCE):
            nursery.start_soon(work)
    sample = {
        "per_s": len(times) / (time.perf_counter() - began),
        "p50_ms": quantile(times, 0.5) * 1000,
    }
    if roots:
        sample["cpu_ms"] = (cpu_seconds(roots) - before) / len(times) * 1000
    return sample


async def measure_sessions(stage: Stage, way: Way, _seconds: float) -> Sample:
    """Many sessions, which stay and do nothing: the memory that each costs in between."""
    roots = stage.roots(way)
    before, began = shared_kib(roots), time.perf_counter()
    limiter = trio.CapacityLimiter(AT_ONCE)
    async with AsyncExitStack() as stack:
        async with trio.open_nursery() as starting:

            async def start() -> None:
                async with limiter:
                    process = await stack.enter_async_context(
                        client(stage.words(way, "echo up; exec cat"))
                    )
                    await said(process, b"up\n")

            for _ in range(SESSIONS):
                starting.start_soon(start)
        took = time.perf_counter() - began
        sample = {"seconds": took}
        if roots:
            sample["kib_per_session"] = (shared_kib(roots) - before) / SESSIONS
    return sample


async def measure_echo(stage: Stage, way: Way, seconds: float) -> Sample:
    """Keys in a terminal while another session copies text without end."""
    times: list[float] = []
    copying = stage.words(way, f"while cat {stage.folder}/text; do :; done")
    command = "stty raw -echo; echo up; exec cat"
    async with (
        trio.open_nursery() as nursery,
        client(stage.words(way, command, options=["-tt"])) as terminal,
    ):
        await said(terminal, b"up")
        nursery.start_soon(partial(trio.run_process, copying, stdout=subprocess.DEVNULL))
        await trio.sleep(1)
        assert terminal.stdin is not None
        assert terminal.stdout is not None
        began = time.perf_counter()
        while (start := time.perf_counter()) < began + seconds:
            await terminal.stdin.send_all(b"k")
            await said(terminal, b"k")
            times.append(time.perf_counter() - start)
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return {"p50_ms": quantile(times, 0.5) * 1000, "p99_ms": quantile(times, 0.99) * 1000}


Measure = Callable[[Stage, Way, float], Awaitable[Sample]]

COLUMNS: dict[str, tuple[Measure, str, tuple[tuple[str, str, str], ...]]] = {
    "text": (
        measure_text,
        "Text shown by one session",
        (
            ("MB/s", "mb_per_s", ",.1f"),
            ("CPU-s per GB", "cpu_s_per_gb", ".2f"),
            ("of these the first relay", "first_cpu_s_per_gb", ".2f"),
        ),
    ),
    "file": (
        measure_file,
        "A file by sftp",
        (
            ("MB/s", "mb_per_s", ",.1f"),
            ("CPU-s per GB", "cpu_s_per_gb", ".2f"),
            ("of these the first relay", "first_cpu_s_per_gb", ".2f"),
        ),
    ),
    "logins": (
        measure_logins,
        f"Log-ins, each for one command, {LOGINS_AT_ONCE} at once",
        (
            ("per second", "per_s", ",.1f"),
            ("p50 ms", "p50_ms", ",.0f"),
            ("CPU-ms per log-in", "cpu_ms", ",.1f"),
        ),
    ),
    "sessions": (
        measure_sessions,
        f"{SESSIONS} sessions at once",
        (("KiB per session", "kib_per_session", ",.0f"), ("seconds to open", "seconds", ",.1f")),
    ),
    "echo": (
        measure_echo,
        "Keys in a terminal while another session copies",
        (("p50 ms", "p50_ms", ",.2f"), ("p99 ms", "p99_ms", ",.2f")),
    ),
}


# -- clients --------------------------------------------------------------------------------------


async def run(words: list[str]) -> None:
    """A client to its end; what it shows is thrown away."""
    done = await trio.run_process(
        words, stdin=b"", stdout=subprocess.DEVNULL, capture_stderr=True, check=False
    )
    if done.returncode:
        raise Failed(done.stderr.decode("utf-8", "replace").strip()[-300:] or str(done.returncode))


@asynccontextmanager
async def client(words: list[str]) -> AsyncIterator[trio.Process]:
    process = await trio.lowlevel.open_process(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                await stream.aclose()


async def said(process: trio.Process, text: bytes) -> None:
    """Until the client has shown this."""
    assert process.stdout is not None
    shown = b""
    with trio.fail_after(60):
        while text not in shown:
            part = await process.stdout.receive_some()
            if not part:
                raise Failed(f"it ended: {shown!r}")
            shown += bytes(part)


def shared_kib(roots: Sequence[int]) -> float:
    """Memory of the processes and their children, of pages that several share a part of each."""
    parents = {pid: stat.parent for pid, stat in read_all_stats().items()}
    total = 0
    for pid in descendants(roots, parents):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8")
        except OSError:
            continue
        found = re.search(r"^Pss:\s+([0-9]+)", text, re.MULTILINE)
        total += int(found.group(1)) if found else 0
    return float(total)


# -- the stage ------------------------------------------------------------------------------------


@asynccontextmanager
async def running(folder: Path, seconds: float) -> AsyncIterator[Stage]:
    """All of it, and files to copy of some second's work."""
    words = [f"{number:08d} the quick brown fox jumps over the lazy dog\n" for number in range(999)]
    text = "".join(words).encode()
    (folder / "text").write_bytes(text * max(1, int(seconds * 8 * MIB / len(text))))
    size = (folder / "text").stat().st_size
    (folder / "random").write_bytes(b"".join(machine_bytes(size)))
    url = Templates(folder).sqlite(folder)
    (folder / "jump").mkdir()
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(open_registry(Secret(url), migrate=False))
        nursery = await stack.enter_async_context(trio.open_nursery())
        daemons = DaemonSet(folder, nursery, folder / "bytecode")
        stack.push_async_callback(end_daemons, daemons)
        ours = await stack.enter_async_context(
            running_stage(
                folder,
                registry,
                url,
                find,
                daemons,
                gateway_more=GATEWAY_MORE,
                sshd_more=SSHD_MORE,
            )
        )
        await ours.lease(7000, rights=("shell", "exec", "sftp", "forward"))
        for name in ("user_key", "user_key.pub"):
            (folder / "jump" / name).write_bytes((folder / "sshd" / name).read_bytes())
            (folder / "jump" / name).chmod(0o600)
        jump = await stack.enter_async_context(
            running_sshd(folder / "jump", find, SSHD_MORE, quiet=True)
        )
        yield await connected(stack, ours, jump)


async def connected(stack: AsyncExitStack, ours: LeaseStage, jump: SshServer) -> Stage:
    """The stage, once the device's `ssh -R` listens as well."""
    ssh, folder = find("ssh", "openssh-client"), ours.folder
    file = folder / "bench_config"
    assert ours.bob is not None
    (port,) = free_ports(1)
    file.write_text(
        CONFIGURATION.format(
            folder=folder,
            host=ours.host,
            gateway=f"{ours.port}3",
            bob=ours.bob.key,
            key=folder / "sshd" / "user_key",
            user=ours.sshd.user,
            jump=jump.address.port,
            device=ours.sshd.address.port,
            reverse=port,
        )
    )
    forward = f"127.0.0.1:{port}:127.0.0.1:{ours.sshd.address.port}"
    words = [ssh, "-F", str(file), "-N", "-o", "ExitOnForwardFailure=yes", "-R", forward, "jump"]
    reverse = await trio.lowlevel.open_process(words, stdin=subprocess.DEVNULL)
    stack.callback(reverse.kill)
    with trio.fail_after(60):
        while not can_connect(port):  # noqa: ASYNC110  ssh tells of it at no place of its own
            await trio.sleep(0.1)
    pids = {name: daemon.pid for name, daemon in ours.running.items()}
    pids |= {"jump": parent_of_port(jump.address.port), "reverse": reverse.pid}
    return Stage(folder, file, pids, ssh, find("sftp", "openssh-client"))


def parent_of_port(port: int) -> int:
    """The sshd that was started with this port in its configuration: the one whose listener it
    is."""
    for pid in read_all_stats():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            if b"-f " in command and b"sshd" in command:
                file = command.rpartition(b"-f ")[2].split()[0].decode()
                if f":{port}\n" in Path(file).read_text("utf-8"):
                    return pid
        except (OSError, IndexError):
            continue
    raise Failed(f"no sshd with port {port}")


def machine_bytes(size: int) -> list[bytes]:
    with Path("/dev/urandom").open("rb") as source:
        return [source.read(MIB) for _ in range(size // MIB)] + [source.read(size % MIB)]


async def end_daemons(daemons: DaemonSet) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # their logs
        await daemons.finish()


# -- the run --------------------------------------------------------------------------------------


async def measure(arguments: argparse.Namespace, outcome: Outcome) -> None:
    with scratch_folder() as folder:
        async with running(folder, arguments.seconds) as stage:
            ways = [way for way in WAYS if way.name in arguments.ways]
            for way in ways:  # host keys are met, and what is imported late is imported
                await run(stage.words(way, "true"))
            for number in range(arguments.rounds):
                for way in ways:
                    print(
                        f"round {number + 1}/{arguments.rounds}  {way.name:16}", end="", flush=True
                    )
                    for column in arguments.columns:
                        await measure_one(stage, way, column, arguments.seconds, outcome)
                    print(flush=True)


async def measure_one(
    stage: Stage, way: Way, column: str, seconds: float, outcome: Outcome
) -> None:
    try:
        sample = await COLUMNS[column][0](stage, way, seconds)
    except* (Failed, OSError, trio.TooSlowError, trio.BrokenResourceError) as group:
        outcome.failures.append(f"{way.name}, {column}: {group.exceptions[0]}")
        print(f"  {column} failed", end="", flush=True)
    else:
        outcome.add(way.name, column, sample)
        name, figure = next(iter(sample.items()))
        print(f"  {column} {name} {figure:.4g}", end="", flush=True)


def make_result(
    arguments: argparse.Namespace, described: Mapping[str, Any], outcome: Outcome
) -> dict[str, Any]:
    medians = {
        way: {column: summarize(samples) for column, samples in columns.items()}
        for way, columns in outcome.samples.items()
    }
    return {
        "machine": dict(described),
        "settings": {
            "command": shlex.join(["python", "-m", "bench.gateway", *sys.argv[1:]]),
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
        },
        "ways": {way.name: way.what for way in WAYS if way.name in arguments.ways},
        "version": openssh(),
        "failures": outcome.failures,
        "ratios": take_ratios(outcome.samples),
        "medians": medians,
        "samples": outcome.samples,
    }


def take_ratios(samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> dict[str, Any]:
    """The ratio of two medians, and the range of it over the rounds."""
    found = {}
    for name, ours, rival, column, metric in RATIOS:
        pairs = [
            (mine[metric], theirs[metric])
            for mine, theirs in zip(
                samples.get(ours, {}).get(column, []),
                samples.get(rival, {}).get(column, []),
                strict=False,
            )
            if theirs.get(metric)
        ]
        if pairs:
            middle = [quantile(side, 0.5) for side in zip(*pairs, strict=True)]
            each = [mine / theirs for mine, theirs in pairs]
            found[name] = {
                "value": middle[0] / middle[1],
                "range": [min(each), max(each)],
                "column": column,
            }
    return found


def markdown(result: Mapping[str, Any]) -> str:
    described, settings = result["machine"], result["settings"]
    load = ", ".join(str(figure) for figure in described["load_average"])
    parts = [
        f"# The gateway, {described['date'][:10]}, commit {described['commit']}",
        " ".join(
            (
                f"Made by `{settings['command']}`, begun {described['date']}:",
                f"{settings['rounds']} rounds, a base of {settings['seconds']:g} s for each",
                "column. Medians; in parentheses half the distance from the least to the most.",
                "CPU-seconds are those of all between person and device, without the two ends.",
                f"{result['version']}.",
            )
        ),
        "; ".join(
            (
                f"{described['cpu']}, {described['cpus']} CPUs, {described['memory_gib']} GiB",
                f"{described['kernel']}",
                f"Python {described['python']}",
                f"load average at the start {load}.",
            )
        ),
        table(("way", "what"), list(result["ways"].items())),
    ]
    for column, (_, title, metrics) in COLUMNS.items():
        rows = [
            (way, *(shown(columns[column].get(metric), form) for _, metric, form in metrics))
            for way, columns in result["medians"].items()
            if column in columns
        ]
        if rows:
            parts.append(f"## {title} (`{column}`)")
            parts.append(table(("way", *(name for name, _, _ in metrics)), rows))
    rows = [
        (name, ratio["column"], f"{ratio['value']:.2f}", "{:.2f} to {:.2f}".format(*ratio["range"]))
        for name, ratio in result["ratios"].items()
    ]
    if rows:
        parts += ["## Ratios", table(("ratio", "column", "value", "over the rounds"), rows)]
    if result["failures"]:
        parts.append("## Not measured\n\n" + "\n".join(f"- {line}" for line in result["failures"]))
    return "\n\n".join(parts) + "\n"


def shown(figure: Mapping[str, float] | None, form: str) -> str:
    return "-" if figure is None else f"{figure['median']:{form}} (±{figure['spread']:.0%})"


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.gateway", description=__doc__)
    names = {"ways": [way.name for way in WAYS], "columns": list(COLUMNS)}
    for key, known in names.items():
        parser.add_argument(f"--{key}", help=f"only these, by commas: {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all ways (3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="base time of a column (5)")
    arguments = parser.parse_args(given)
    arguments.is_whole = arguments.rounds >= LEAST_ROUNDS
    for key, known in names.items():
        wanted = getattr(arguments, key)
        chosen = wanted.split(",") if wanted else known
        if unknown := sorted(set(chosen) - set(known)):
            parser.error(f"there is no {', '.join(unknown)}; there are: {', '.join(known)}")
        arguments.is_whole = arguments.is_whole and set(chosen) == set(known)
        setattr(arguments, key, chosen)
    return arguments


def save(result: Mapping[str, Any], *, whole: bool) -> Path:
    described = result["machine"]
    folder = RESULTS if whole else PARTIAL_RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    date = described["date"]
    when = date[:10] if whole else re.sub(r"[^0-9T-]", "", date)
    path = folder / f"{when}-{described['commit']}-gateway.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    path.with_suffix(".md").write_text(markdown(result), "utf-8")
    return path


def main() -> int:
    arguments = parse_arguments()
    described, outcome = machine.describe(), Outcome()
    trio.run(until_stopped, partial(measure, arguments, outcome))
    result = make_result(arguments, described, outcome)
    path = save(result, whole=arguments.is_whole)
    print(markdown(result))
    print("written:", path.relative_to(ROOT).as_posix())
    return 0


if __name__ == "__main__":
    sys.exit(main())
