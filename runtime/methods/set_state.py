"""What a method sees of a site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from topkast.runtime.layout import Geometry
from topkast.runtime.rule import Rule


@dataclass(frozen=True, slots=True)
class SetState:
    """All that a method may ask about the weight whose sets it chooses. A method changes none of these.

    Args:
        name: of the weight, for errors.
        rule: the options that the user gave.
        geometry: how the weight is cut into units.
        n_fwd, n_bwd: units in A and in B.
        groups: in how many groups of equal counts the units are chosen: 1, or one for each block row of a balanced
            site.
        step: completed optimizer steps, as of which the sets are chosen.
        refreshed_at: the step of the last refresh.
        members: () -> (A, B) as they are stored, bool [units].
        draw: (tensor of the wanted shape and device, purpose) -> random numbers in [0, 1), the same for one seed, site,
            step and purpose on any device.
        largest: (score [groups, n], not negative, count) -> the ``count`` largest of each group, bool [groups, n];
            among equals the lower index.
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

    @property
    def exploration_ended(self) -> bool:
        """Whether B = A from this step on."""
        return self.rule.stop_exploring_after is not None and self.step >= self.rule.stop_exploring_after

    @property
    def fwd_per_group(self) -> int:
        """Units of each group in A."""
        return self.n_fwd // self.groups

    @property
    def bwd_per_group(self) -> int:
        """Units of each group in B."""
        return self.n_bwd // self.groups
