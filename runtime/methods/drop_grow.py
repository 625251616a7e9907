"""Drop the smallest of A, grow as many elsewhere at zero: what SET and RigL share. B = A."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor

from .method import Sets, largest_inside
from .set_state import SetState
from .static import Static


class DropGrow(Static):
    """A starts at random. Every ``refresh_every`` steps the share ``drop_fraction`` of it is exchanged; with
    ``stop_exploring_after`` that share falls to zero by then, along half a cosine, and the sets stand still from there.

    Any unit that was not kept may grow, one just dropped too: it keeps its value and its optimizer state.
    """

    uses = ("refresh_every", "stop_exploring_after", "drop_fraction")
    enters_at_zero = True

    @abstractmethod
    def grow(self, state: SetState, kept: Tensor, count: int) -> Tensor:
        """``count`` units of every group outside ``kept``; bool [groups, units / groups]."""

    def renew(self, state: SetState, score: Tensor) -> Sets:
        old = state.members()[0].view_as(score)
        count = self.dropped(state)
        kept = largest_inside(score, old, state.fwd_per_group - count)
        fwd = kept | self.grow(state, kept, count)
        return fwd, fwd

    def dropped(self, state: SetState) -> int:
        """How many units of every group a refresh exchanges."""
        stop, share = state.rule.stop_exploring_after, state.rule.drop_fraction
        if stop is not None:
            share *= (1 + math.cos(math.pi * min(1.0, state.step / max(1, stop)))) / 2
        return round(share * state.fwd_per_group)

    def due(self, state: SetState) -> bool:
        every, stop = state.rule.refresh_every, state.rule.stop_exploring_after
        return state.step // every > state.refreshed_at // every and (stop is None or state.step < stop)
