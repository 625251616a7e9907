"""Times on a GPU, by events, in turn; on the CPU, for a dry run, by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Run = Callable[[], object]


def device(dry: bool) -> torch.device:
    """Where a part runs."""
    return torch.device("cpu" if dry else "cuda")


def seconds(runs: Sequence[Run], where: torch.device, repeats: int = 15, warm: bool = False) -> list[list[float]]:
    """Seconds of every run, ``repeats`` times in turn, after two rounds that do not count.

    Args:
        warm: leave the cache as the run before left it; else something larger is written before each run, which also
            lets the CPU queue all of a run's kernels before the first begins.
    """
    if where.type == "cpu":
        return [[_clock(run)] for run in runs]
    flush = torch.empty(2**30, dtype=torch.uint8, device=where)
    found: list[list[float]] = [[] for _ in runs]
    for i in range(repeats + 2):
        pairs = []
        for run in runs:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if not warm:
                flush.zero_()
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        if i >= 2:
            for times, (start, end) in zip(found, pairs, strict=True):
                times.append(start.elapsed_time(end) / 1e3)
    return found


def _clock(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratio(ours: list[float], dense: list[float]) -> dict[str, float]:
    """Quartiles of ours / dense, pair by pair."""
    found = [a / b for a, b in zip(ours, dense, strict=True)]
    low, middle, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
    return {"low": round(low, 4), "median": round(middle, 4), "high": round(high, 4)}


def micros(times: list[float]) -> float:
    """The median, in microseconds."""
    return round(1e6 * statistics.median(times), 2)
