"""Top-KAST (Jayakumar et al. 2020, section 2): A and B are the largest of θ, chosen again at every refresh."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from topkast.runtime.kernels.sets import largest

from .method import Method, Sets

if TYPE_CHECKING:
    from topkast.runtime.state.site import Site


class TopKAST(Method):
    name = "topkast"
    largest_first = True
    uses: ClassVar[tuple[str, ...]] = (
        "bwd", "refresh_every", "refresh_in_background", "stop_exploring_after", "explore", "exploration_l2",
        "exploration_decay",
    )  # fmt: skip

    def start(self, site: Site, score: Tensor, step: int) -> Sets:
        fwd = largest(score, site.n_fwd // site.groups)
        if site.stopped_at(step):
            return fwd, fwd
        if site.rule.explore == "random":
            score = torch.where(fwd, 2.0, site.draw(score, step))
        return fwd, largest(score, site.n_bwd // site.groups)

    def renew(self, site: Site, score: Tensor, step: int) -> Sets:
        return self.start(site, score, step)
