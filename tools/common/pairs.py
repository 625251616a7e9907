"""Interleaved measuring: dense, sparse, dense, sparse, ... in one loop, and the ratio of each pair.

A machine that is shared slows both halves of a pair alike, so the ratio within pairs holds where seconds do not.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from .arguments import positive
from .measure import quartiles

Parts = Sequence[Callable[[], object]]
Spread = dict[str, float]

SPREAD = ("low", "median", "high")


@dataclass
class Pairs:
    """Seconds of every part of both sides, one list a pair."""

    dense: list[list[float]] = field(default_factory=list)
    sparse: list[list[float]] = field(default_factory=list)

    def ratio(self, part: int | None = None) -> Spread:
        """Quartiles of sparse / dense over the pairs, of one part or of their sum."""
        return spread(s / d for d, s in zip(_sums(self.dense, part), _sums(self.sparse, part), strict=True))

    def seconds(self, part: int | None = None) -> dict[str, float]:
        """Median seconds of either side."""
        return {
            "dense": spread(_sums(self.dense, part))["median"],
            "sparse": spread(_sums(self.sparse, part))["median"],
        }


def _sums(rows: list[list[float]], part: int | None) -> list[float]:
    return [sum(row) if part is None else row[part] for row in rows]


def spread(values: Iterable[float]) -> Spread:
    """Lower quartile, median and upper quartile."""
    return dict(zip(SPREAD, quartiles(values), strict=True))


def measure(
    dense: Parts,
    sparse: Parts,
    repeats: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    after: Callable[[], object] = lambda: None,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Pairs:
    """Run both sides in turn and time every part.

    Args:
        dense, sparse: the parts of one round of either side, run in their order; the counts may differ.
        repeats: pairs that count.
        warmup: pairs before them that do not.
        clock: gives seconds.
        after: called after each pair, outside what is timed.
        device: on a GPU events give the times, not ``clock``.
    """
    pairs, timed = Pairs(), partial(_by_events, device) if device.type == "cuda" else partial(_timed, clock)
    for i in range(warmup + repeats):
        times = [[timed(part) for part in side] for side in (dense, sparse)]
        if i >= warmup:
            pairs.dense.append(times[0])
            pairs.sparse.append(times[1])
        after()
    return pairs


def _timed(clock: Callable[[], float], part: Callable[[], object]) -> float:
    start = clock()
    part()
    return clock() - start


def _by_events(device: torch.device, part: Callable[[], object]) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        part()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def bound(fwd: float, bwd: float) -> float:
    """The ideal ratio of a training step by FLOPs: two products with A's density, one with B's."""
    return (2 * (1 - fwd) + (1 - bwd)) / 3


def geomean(values: Iterable[float]) -> float:
    """Geometric mean, the one that suits ratios."""
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def geomean_spread(spreads: Iterable[Spread]) -> Spread:
    """Geometric mean of the medians, and of the lower and the upper quartiles."""
    spreads = list(spreads)
    return {key: geomean(found[key] for found in spreads) for key in SPREAD}


def show(found: Spread) -> str:
    """``median [low, high]``."""
    return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def add_timing(parser: argparse.ArgumentParser, repeats: int) -> None:
    """The arguments of every benchmark that measures pairs."""
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2], help="torch's threads, each measured")
    parser.add_argument("--repeats", type=positive, default=repeats, help="pairs of each figure")
