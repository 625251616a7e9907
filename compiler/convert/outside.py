"""Functions of other rooms that a conversion or a load calls. Those rooms import this one, so this one cannot import
them; they add their functions to the lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

# Called after each conversion.
CONVERTED: list[Callable[[], None]] = []

# Called as (module, state dict, prefix) before a state dict is loaded into a sparse model. A function that knows the
# place of the sparse state writes it into the state dict and returns True.
DENSE_STATES: list[Callable[[nn.Module, dict[str, Any], str], bool]] = []
