"""Top-KAST (Jayakumar et al. 2020, section 2): A and B are the largest weights of θ, chosen again at every refresh."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .method import Method, Sets
from .set_state import SetState


class TopKAST(Method):
    name = "topkast"
    says = "A and B are the largest weights."
    largest_first = True
    uses: ClassVar[tuple[str, ...]] = (
        "bwd", "refresh_every", "refresh_growth", "refresh_in_background", "stop_exploring_after", "fwd_start",
        "fwd_reached_after", "explore", "exploration_l2", "exploration_decay",
    )  # fmt: skip

    def units(self, state: SetState) -> tuple[int, int]:
        last, room = super().units(state)
        fwd, bwd, rule = last, room, state.rule
        if rule.fwd_start is not None:
            first = min(room, max(last, round((1 - rule.fwd_start) * state.geometry.units / state.groups)))
            left = (1 - min(1.0, state.step / rule.fwd_reached_after)) ** 3
            fwd = last + round((first - last) * left)
            bwd = max(fwd, round(room * fwd / first))
        return fwd, fwd if state.exploration_ended else bwd

    def holds(self, state: SetState, fwd: int, bwd: int) -> bool:
        if state.rule.fwd_start is None:
            return super().holds(state, fwd, bwd)
        return state.n_fwd <= fwd <= bwd <= state.n_bwd

    def start(self, state: SetState, score: Tensor) -> Sets:
        in_a, in_b = self.units(state)
        fwd = state.largest(score, in_a)
        if in_b == in_a:
            return fwd, fwd
        if state.rule.explore == "random":
            score = torch.where(fwd, 2.0, state.draw(score, ""))
        return fwd, state.largest(score, in_b)

    def renew(self, state: SetState, score: Tensor) -> Sets:
        return self.start(state, score)
