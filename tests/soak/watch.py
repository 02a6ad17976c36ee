"""The memory of each process, minute by minute."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from soak.stage import Stage

__all__ = ["Watch"]


@dataclass(frozen=True)
class Sample:
    at: float
    generation: int
    resident: int
    descriptors: int


class Watch:
    """Looks at every process now and then."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._started = trio.current_time()
        self._samples: dict[str, list[Sample]] = {name: [] for name in stage.processes}

    async def run(self, interval: float) -> None:
        while True:
            await trio.sleep(interval)
            self.look()

    def look(self) -> None:
        at = round(trio.current_time() - self._started, 1)
        for name, process in self._stage.processes.items():
            sample = Sample(at, process.generation, process.resident(), process.descriptors())
            self._samples[name].append(sample)

    def summary(self) -> dict[str, dict[str, object]]:
        """Each process: all samples, and what the last generation gained while it was watched.

        The gain is between the median of the first third of its samples, its first one left out
        (it was still filling its caches), and of its last third.
        """
        return {name: _summarize(samples) for name, samples in self._samples.items()}


def _summarize(samples: list[Sample]) -> dict[str, object]:
    generation = samples[-1].generation
    last = [sample.resident for sample in samples if sample.generation == generation][1:]
    part = max(1, len(last) // 3)
    before, after = (median(last[:part]), median(last[-part:])) if last else (0, 0)
    return {
        "generations": generation,
        "watched": len(last),
        "largest": max(sample.resident for sample in samples),
        "before": before,
        "after": after,
        "gain": round(after / before - 1, 4) if before else 0.0,
        "samples": [
            {"at": s.at, "generation": s.generation, "rss": s.resident, "fds": s.descriptors}
            for s in samples
        ],
    }
