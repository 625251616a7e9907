"""Ways of plain PyTorch that round in other places, for the budget of a program that sums in an order of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from .lockstep import without_onednn
from .rounded import Rounded
from .shuffled import Shuffled


def _nothing(model: nn.Module) -> None:
    pass


@dataclass(frozen=True)
class Way:
    """What is done to an oracle's model, and the context in which it is trained.

    Args:
        change: of the model.
        around: makes the context of a step.
    """

    change: Callable[[nn.Module], Any] = _nothing
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    def __call__(self, model: nn.Module) -> None:
        self.change(model)


WITHOUT_ONEDNN = {"without oneDNN": Way(around=without_onednn)}
# A native kernel sums in an order that no product of plain PyTorch has. These are orders that are as good as any.
ORDERS = {f"shuffled {seed}": Way(around=partial(Shuffled, seed)) for seed in range(1, 5)}
SUMS = {**WITHOUT_ONEDNN, **ORDERS}
# A sum of a few numbers has few orders, and all may be right by luck: these say how wrong a right sum may be.
ROUNDED = {f"rounded {seed}": Way(around=partial(Rounded, seed)) for seed in range(1, 5)}
