"""Gradual magnitude pruning (Zhu and Gupta 2017): dense at first, pruned along a cubic curve until a given step.

A = B at any time. Both sets shrink inside index tensors that have room for all units. So the memory of values, gradient
and optimizer state stays the memory of the dense model, while the work of the products follows the density. A pruned
weight keeps its value, and comes back if the kept weights fall below this value.
"""

from __future__ import annotations

from torch import Tensor

from .method import Method, Sets
from .set_state import SetState


class GMP(Method):
    name = "gmp"
    says = "dense at first, then pruned by size along a cubic (Zhu and Gupta 2017), with the memory of the dense model."
    uses = ("refresh_every", "refresh_growth", "stop_exploring_after")
    bwd = 0.0

    def units(self, state: SetState) -> tuple[int, int]:
        assert state.rule.stop_exploring_after is not None
        done = min(1.0, state.step / max(1, state.rule.stop_exploring_after))
        all_of, last = state.bwd_per_group, state.fwd_per_group
        fwd = all_of - round((all_of - last) * (1 - (1 - done) ** 3))
        return fwd, fwd

    def start(self, state: SetState, score: Tensor) -> Sets:
        fwd = state.largest(score, self.units(state)[0])
        return fwd, fwd

    def renew(self, state: SetState, score: Tensor) -> Sets:
        return self.start(state, score)

    def due(self, state: SetState) -> bool:
        stop = state.rule.stop_exploring_after
        assert stop is not None
        return state.refreshed_at < stop and super().due(state)

    def holds(self, state: SetState, fwd: int, bwd: int) -> bool:
        return state.n_fwd <= fwd == bwd <= state.n_bwd
