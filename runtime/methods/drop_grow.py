"""Drop the smallest units of A and grow the same number of other units at zero. SET and RigL share this. B = A."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor

from .intervals import ended
from .method import Sets, largest_inside
from .set_state import SetState
from .static import Static


class DropGrow(Static):
    """A starts at random. Every ``refresh_every`` steps the share ``drop_fraction`` of A is exchanged. With
    ``stop_exploring_after`` the share falls to zero at that step, along half a cosine, and then the sets do not change.

    Any unit that was not kept may grow, also a unit that was just dropped: it keeps its value and its optimizer state.
    """

    uses = ("refresh_every", "refresh_growth", "stop_exploring_after", "drop_fraction")
    enters_at_zero = True

    @abstractmethod
    def grow(self, state: SetState, kept: Tensor, count: int) -> Tensor:
        """Choose ``count`` units in every group, outside ``kept``; bool [groups, units / groups]."""

    def renew(self, state: SetState, score: Tensor) -> Sets:
        old = state.members()[0].view_as(score)
        count = self.dropped(state)
        kept = largest_inside(score, old, state.fwd_per_group, state.fwd_per_group - count)
        fwd = kept | self.grow(state, kept, count)
        return fwd, fwd

    def dropped(self, state: SetState) -> int:
        """How many units of every group a refresh exchanges."""
        stop, share = state.rule.stop_exploring_after, state.rule.drop_fraction
        if stop is not None:
            share *= (1 + math.cos(math.pi * min(1.0, state.step / max(1, stop)))) / 2
        return round(share * state.fwd_per_group)

    def due(self, state: SetState) -> bool:
        rule, stop = state.rule, state.rule.stop_exploring_after
        return ended(rule, state.step) > ended(rule, state.refreshed_at) and (stop is None or state.step < stop)
