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
        "bwd", "refresh_every", "refresh_in_background", "stop_exploring_after", "explore", "exploration_l2",
        "exploration_decay",
    )  # fmt: skip

    def start(self, state: SetState, score: Tensor) -> Sets:
        fwd = state.largest(score, state.fwd_per_group)
        if state.exploration_ended:
            return fwd, fwd
        if state.rule.explore == "random":
            score = torch.where(fwd, 2.0, state.draw(score, ""))
        return fwd, state.largest(score, state.bwd_per_group)

    def renew(self, state: SetState, score: Tensor) -> Sets:
        return self.start(state, score)
