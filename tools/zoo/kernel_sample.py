"""A sample of the zoo for the kernels that users run: models at equal distances, blocks assigned in turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import topkast

from .model_entry import Entry

BLOCKS = ((1, 1), (4, 1), (16, 1), (16, 16))
TOO_LARGE = "larger than every weight that could be sparse"


def sample(entries: Sequence[Entry], kernel: str, every: int, start: int, blocks: bool) -> list[Entry]:
    """Every ``every``-th entry from position ``start`` on, for ``kernel``; with ``blocks`` the next of :data:`BLOCKS`
    each, without them as the entry is."""
    turn = itertools.cycle(BLOCKS)
    chosen = [replace(entry, kernel=kernel) for entry in entries[start::every]]
    return [replace(one, options={**one.options, "block": next(turn)}) for one in chosen] if blocks else chosen


def name(block: tuple[int, int]) -> str:
    """As tables and records have it."""
    return "x".join(map(str, block))


def fitting(state: dict[str, Any], start: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """``start(state)`` with the entry's block, or with the next smaller one if no weight of the model has its size;
    what the record says of the kernel and the block."""
    while True:
        entry = state["entry"]
        block = entry.options.get("block", BLOCKS[0])
        try:
            start(state)
        except topkast.ConfigError as error:
            smaller = [other for other in BLOCKS if other < block]
            if TOO_LARGE not in str(error) or not smaller:
                raise
            state["entry"] = replace(entry, options={**entry.options, "block": smaller[-1]})
        else:
            return {} if entry.kernel == "dense" else {"block": name(block)}
