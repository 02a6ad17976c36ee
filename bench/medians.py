"""Many samples as one figure, and how far they lie apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Half the distance from the least to the most, as a share of the median: 0.1 is ±10 %."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / 2 / abs(middle) if middle else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that at least *share* of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarize(samples: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The median and spread of every metric that the samples have."""
    metrics = dict.fromkeys(metric for sample in samples for metric in sample)
    summary = {}
    for metric in metrics:
        values = [sample[metric] for sample in samples if metric in sample]
        summary[metric] = {"median": median(values), "spread": spread(values)}
    return summary
