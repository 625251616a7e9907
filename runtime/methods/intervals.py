"""When the intervals between two refreshes end: after equal numbers of steps, or after numbers that grow."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from topkast.runtime.rule import Rule


def ended(rule: Rule, step: int) -> int:
    """How many intervals have ended after ``step`` steps."""
    if rule.refresh_growth == 1:
        return step // rule.refresh_every
    return _ended(rule.refresh_every, rule.refresh_growth, step)


def next_end(rule: Rule, step: int) -> int:
    """The first step after ``step`` at which an interval ends."""
    if rule.refresh_growth == 1:
        return (step // rule.refresh_every + 1) * rule.refresh_every
    return next(end for end in _ends(rule.refresh_every, rule.refresh_growth) if end > step)


@functools.lru_cache(maxsize=64)  # each site of a model asks for the same step, several times
def _ended(every: int, growth: float, step: int) -> int:
    return sum(1 for _ in itertools.takewhile(lambda end: end <= step, _ends(every, growth)))


def _ends(every: int, growth: float) -> Iterator[int]:
    end, length = 0, float(every)
    while True:
        end += round(min(length, 2.0**62))
        length *= growth
        yield end
