"""Drop the smallest of A, grow as many elsewhere at zero: what SET and RigL share. B = A."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from .method import Sets, largest_inside
from .static import Static

if TYPE_CHECKING:
    from topkast.runtime.state.site import Site


class DropGrow(Static):
    """A starts at random. Every ``refresh_every`` steps the share ``drop_fraction`` of it is exchanged; with
    ``stop_exploring_after`` that share falls to zero by then, along half a cosine, and the sets stand still from there.

    Any unit that was not kept may grow, one just dropped too: it keeps its value and its optimizer state.
    """

    uses = ("refresh_every", "stop_exploring_after", "drop_fraction")
    enters_at_zero = True

    @abstractmethod
    def grow(self, site: Site, kept: Tensor, count: int, step: int) -> Tensor:
        """``count`` units of every group outside ``kept``; bool [groups, units / groups]."""

    def renew(self, site: Site, score: Tensor, step: int) -> Sets:
        old = site.members()[0].view_as(score)
        count = self.dropped(site, step)
        kept = largest_inside(score, old, site.n_fwd // site.groups - count)
        fwd = kept | self.grow(site, kept, count, step)
        return fwd, fwd

    def dropped(self, site: Site, step: int) -> int:
        """How many units of every group a refresh after ``step`` steps exchanges."""
        stop, share = site.rule.stop_exploring_after, site.rule.drop_fraction
        if stop is not None:
            share *= (1 + math.cos(math.pi * min(1.0, step / max(1, stop)))) / 2
        return round(share * (site.n_fwd // site.groups))

    def due(self, site: Site, step: int) -> bool:
        every, stop = site.rule.refresh_every, site.rule.stop_exploring_after
        return step // every > site.refreshed_at // every and (stop is None or step < stop)
