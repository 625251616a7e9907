"""Gradual magnitude pruning (Zhu and Gupta 2017): dense at first, pruned along a cubic until a given step.

A = B at any time; both shrink inside index tensors made for all units, so the memory of values, gradient and optimizer
state stays that of the dense model, while the work of the products follows the density. A pruned weight keeps its value
and comes back if what was kept falls below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from topkast.runtime.kernels.sets import largest

from .method import Method, Sets

if TYPE_CHECKING:
    from topkast.runtime.state.site import Site


class GMP(Method):
    name = "gmp"
    uses = ("refresh_every", "stop_exploring_after")
    bwd = 0.0

    def start(self, site: Site, score: Tensor, step: int) -> Sets:
        assert site.rule.stop_exploring_after is not None
        done = min(1.0, step / max(1, site.rule.stop_exploring_after))
        units, last = score.shape[1], site.n_fwd // site.groups
        fwd = largest(score, units - round((units - last) * (1 - (1 - done) ** 3)))
        return fwd, fwd

    def renew(self, site: Site, score: Tensor, step: int) -> Sets:
        return self.start(site, score, step)

    def due(self, site: Site, step: int) -> bool:
        stop = site.rule.stop_exploring_after
        assert stop is not None
        return site.refreshed_at < stop and super().due(site, step)

    def holds(self, site: Site, fwd: int, bwd: int) -> bool:
        return site.n_fwd <= fwd == bwd <= site.n_bwd
