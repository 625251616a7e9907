"""Where B's values are: a parameter of the module that owns the weight, under the weight's own name."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn


class Placed:
    """The part of a site that finds its values."""

    attribute: str
    owner: weakref.ref[nn.Module] | None
    geometry: Any
    groups: Any
    n_bwd: int

    def bind(self, owner: nn.Module) -> None:
        """The module whose parameter B's values are.

        Its table of parameters is remembered, which a copy of both has in common too. The module itself is not held, so
        that no cycle keeps a model alive; while it lives it is asked, for ``torch.onnx.export`` replaces the table.
        """
        self._table = owner._parameters
        self.owner = weakref.ref(owner)

    @property
    def table(self) -> dict[str, nn.Parameter | None]:
        """The owner's parameters by name."""
        owner = None if self.owner is None else self.owner()
        return self._table if owner is None else owner._parameters

    @property
    def original(self) -> nn.Parameter:
        """B's values as the module's parameter, of :attr:`value_shape`."""
        return self.table[self.attribute]  # type: ignore[return-value]

    @property
    def values(self) -> Tensor:
        """The same memory as a detached vector [values]."""
        return self.original.detach().view(-1)

    @property
    def value_shape(self) -> tuple[int, int]:
        """Shape of B's values: [block rows, values of a row], or [1, all of them] if rows differ.

        Never the shape of the weight itself, so that a dense tensor in the place of the values is known as such.
        """
        values = self.n_bwd * self.geometry.unit
        shape = (self.groups, values // self.groups)
        others = (shape for shape in (shape, (1, values), (values, 1)) if shape != self.geometry.shape)
        return next(others, shape)  # a weight of one element is read as the tensor that it is

    @property
    def attached(self) -> bool:
        """Whether a module still holds the values: not if its parameter was deleted, or replaced by a dense one."""
        values = self.table.get(self.attribute)
        return values is not None and tuple(values.shape) == self.value_shape
