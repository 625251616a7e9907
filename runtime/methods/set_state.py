"""The state of a site as a method sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from topkast.runtime.layout import Geometry
from topkast.runtime.reference.dense_gradient import Rows, best_units
from topkast.runtime.rule import Rule


@dataclass(frozen=True, slots=True)
class SetState:
    """Everything that a method may read about the weight whose sets it chooses. A method changes none of these.

    Args:
        name: the name of the weight, for errors.
        rule: the options that the user gave.
        geometry: how the weight is cut into units.
        n_fwd, n_bwd: the number of units in A and in B.
        groups: the number of groups with equal counts in which units are chosen: 1, or one group for each block row of
            a balanced site.
        step: the number of completed optimizer steps at which the sets are chosen.
        refreshed_at: the step of the last refresh.
        members: () -> (A, B) as stored, bool [units].
        draw: (tensor with the wanted shape and device, purpose) -> random numbers in [0, 1). They depend only on seed,
            site, step and purpose, not on the device.
        largest: (score [groups, n], not negative, count) -> the ``count`` largest of each group, bool [groups, n];
            among equal scores the lower index comes first.
    """

    name: str
    rule: Rule
    geometry: Geometry
    n_fwd: int
    n_bwd: int
    groups: int
    step: int
    refreshed_at: int
    members: Callable[[], tuple[Tensor, Tensor]]
    draw: Callable[[Tensor, str], Tensor]
    largest: Callable[[Tensor, int], Tensor]

    def gradient_scores(self, rows: Rows) -> Tensor:
        """The score of each unit by a gradient, float32 [units]: the absolute value of a single weight, the squared
        L2 norm of a block.

        Args:
            rows: the gradient, as :meth:`Method.see` receives it.
        """
        return best_units(rows, self.geometry, self.geometry.units, balanced=False)[1].float()

    @property
    def exploration_ended(self) -> bool:
        """Whether B = A from this step on."""
        return self.rule.stop_exploring_after is not None and self.step >= self.rule.stop_exploring_after

    @property
    def fwd_per_group(self) -> int:
        """The number of units of each group in A."""
        return self.n_fwd // self.groups

    @property
    def bwd_per_group(self) -> int:
        """The number of units of each group in B."""
        return self.n_bwd // self.groups
