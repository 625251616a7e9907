"""Static sparse training: the sets of the start are those of the end, and B = A."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from topkast.runtime.kernels.sets import largest

from .method import Method, Sets

if TYPE_CHECKING:
    from topkast.runtime.state.site import Site


class Static(Method):
    """Drawn at random."""

    name = "static"
    uses: ClassVar[tuple[str, ...]] = ()

    def start(self, site: Site, score: Tensor, step: int) -> Sets:
        fwd = largest(site.draw(score, step), site.n_fwd // site.groups)
        return fwd, fwd

    def renew(self, site: Site, score: Tensor, step: int) -> Sets:
        fwd = site.members()[0].view_as(score)
        return fwd, fwd

    def due(self, site: Site, step: int) -> bool:
        return False


class StaticMagnitude(Static):
    """The largest of the initial θ."""

    name = "static-magnitude"
    largest_first = True

    def start(self, site: Site, score: Tensor, step: int) -> Sets:
        fwd = largest(score, site.n_fwd // site.groups)
        return fwd, fwd
