"""Several sides measured in one loop, each round in another order, and the ratios within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from .pairs import Spread, spread

Times = dict[str, list[float]]


def measure_rounds(
    sides: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Run every side once a round, and begin each round with the next side.

    Args:
        sides: name -> what is timed.
        repeats: rounds that count.
        warmup: rounds before them that do not.
        clock: gives seconds.

    Returns:
        The seconds of each side, round by round.
    """
    names = list(sides)
    times: Times = {name: [] for name in names}
    for i in range(warmup + repeats):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            sides[name]()
            seconds = clock() - start
            if i >= warmup:
                times[name].append(seconds)
    return times


def ratios(times: Times, base: str) -> dict[str, Spread]:
    """Quartiles of each side's time over the time of ``base`` in the same round."""
    return {name: spread(t / b for t, b in zip(own, times[base], strict=True)) for name, own in times.items()}
