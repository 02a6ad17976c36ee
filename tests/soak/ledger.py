"""What was asked for, what the callers were told, and what really ran."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tunnelmux.backend import ApiCallFailed
from tunnelmux.commands import CommandRequest, Exited
from tunnelmux.errors import ConnectError, TunnelmuxError

if TYPE_CHECKING:
    from soak.stage import Stage

__all__ = ["Ledger", "Told", "make_request", "run_load"]

NOT_RUN = frozenset(
    {
        *("busy", "device-busy", "device-draining", "device-offline", "undelivered"),
        *("refused", "unreachable", "auth-failed", "forbidden", "host-key-changed", "not-sent"),
    }
)
"""Answers that promise that nothing ran."""

TIMEOUT = 20.0
"""Seconds each command may take."""

SHAPES = ("{0}", "{0}", "{0}", "sleep 1; {0}", "{0}; sleep 1")
"""Some are short; some have not yet written when they are interrupted, some have already."""


@dataclass(frozen=True)
class Told:
    """What a caller learned of its command."""

    destination: str
    outcome: str
    """`ok`, the reason, `exit N`, or what was wrong with the call."""

    seconds: float

    @property
    def ran_well(self) -> bool:
        return self.outcome == "ok"


@dataclass
class Ledger:
    """`file` is where the commands write their ids."""

    file: Path
    told: dict[str, Told] = field(default_factory=dict)
    in_progress: int = 0
    late: int = 0
    """Commands that were begun more than a second after their time."""

    def ran(self) -> Counter[str]:
        """How often each id is in the file."""
        return Counter(self.file.read_text("ascii").split()) if self.file.exists() else Counter()


def make_request(stage: Stage, name: str, command: str) -> CommandRequest:
    content = {
        **stage.ssh,
        "commandId": name,
        "command": command,
        "timeout": TIMEOUT * 1000,
    }
    return CommandRequest.from_json(content)


async def run_load(ledger: Ledger, stage: Stage, rate: float, until: float) -> None:
    """Begin commands at that rate, and wait for the last one."""
    started = trio.current_time()
    destinations = itertools.cycle(stage.destinations)
    async with trio.open_nursery() as nursery:
        for number in itertools.count():
            due = started + number / rate
            if due >= until:
                return
            await trio.sleep_until(due)
            ledger.late += trio.current_time() - due > 1
            nursery.start_soon(run_one, ledger, stage, f"id-{number:06}", next(destinations))


async def run_one(ledger: Ledger, stage: Stage, name: str, destination: str) -> None:
    number = int(name.removeprefix("id-"))
    shape = SHAPES[number // 7 % len(SHAPES)]
    request = make_request(stage, name, shape.format(f"echo {name} >> {ledger.file}"))
    started = trio.current_time()
    ledger.in_progress += 1
    outcome = "call lost"
    try:
        with trio.move_on_after(TIMEOUT * 4):
            outcome = await ask(stage, destination, request, as_events=number % 2 == 0)
    finally:
        ledger.in_progress -= 1
        seconds = trio.current_time() - started
        ledger.told[name] = Told(destination, outcome, seconds)


async def ask(stage: Stage, destination: str, request: CommandRequest, *, as_events: bool) -> str:
    try:
        if not as_events:
            [result] = await stage.client.exec_results(
                destination, request, timeout=TIMEOUT * 3, asked_by="the soak"
            )
            return outcome_of(result.result.exit_code, result.result.reason)
        end: Exited | None = None
        async with stage.client.exec(destination, request, asked_by="the soak") as events:
            async for _, event in events:
                if isinstance(event, Exited):
                    end = event
        return outcome_of(end.exit_code, end.reason) if end is not None else "call lost"
    except ApiCallFailed as error:
        return "not-sent" if error.code in {"UNKNOWN_DEVICE", "DRAINING"} else error.code
    except ConnectError as error:
        return "not-sent" if "cannot connect" in str(error) else "call lost"
    except TunnelmuxError:
        return "call lost"


def outcome_of(exit_code: int, reason: str | None) -> str:
    if reason is not None:
        return reason
    return "ok" if exit_code == 0 else f"exit {exit_code}"
