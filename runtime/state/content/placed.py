"""The place of B's values: a parameter of the module that owns the weight, under the weight's own name."""

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
        """Set the module whose parameter holds B's values.

        The site remembers the module's table of parameters. A deep copy of module and site shares one table, too. The
        site has only a weak reference to the module, so that no cycle keeps a model alive. While the module lives, the
        table is read from it, because ``torch.onnx.export`` replaces the table.
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

    def taken(self, stored: Tensor) -> Tensor:
        """The numbers to work on, of a tensor with one number for each value."""
        return stored

    def taken_theta(self, theta: Tensor) -> Tensor:
        """The entries to work on, of all of θ."""
        return theta

    def put(self, stored: Tensor, new: Tensor) -> None:
        """Store new numbers in a tensor that :meth:`taken` got."""
        stored.copy_(new)

    @property
    def value_shape(self) -> tuple[int, int]:
        """Shape of B's values: [block rows, values of a row], or [blocks, values of a block] if the rows differ in
        length. So ``fully_shard`` can cut the values along their first dimension.

        The shape is never the shape of the weight itself, so that a dense tensor in the place of the values is noticed.
        """
        values = self.n_bwd * self.geometry.unit
        slots = (self.n_bwd, self.geometry.unit)
        shapes = [slots if self.groups == 1 else (self.groups, values // self.groups), slots, (1, values), (values, 1)]
        return next(
            (shape for shape in shapes if shape != self.geometry.shape), shapes[0]
        )  # one element: no other shape

    @property
    def attached(self) -> bool:
        """Whether a module holds the values. False if its parameter was deleted or replaced by a dense parameter."""
        values = self.table.get(self.attribute)
        return values is not None and tuple(values.shape) == self.value_shape
