"""Marks the sites of one model."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn


class Family:
    """Marks the sites of one model. A forward of any part of the model refreshes all of them. A copy of the model has a
    copy of the mark.

    Args:
        root: the model. None: the model is not known, for example for a copy.
    """

    def __init__(self, root: nn.Module | None = None) -> None:
        self.root = None if root is None else weakref.ref(root)

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        memo[id(self)] = twin = Family()
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return Family, ()
