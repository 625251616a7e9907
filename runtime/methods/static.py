"""Static sparse training: the sets never change after the start, and B = A."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .method import Method, Sets
from .set_state import SetState


class Static(Method):
    """Sets that are drawn at random."""

    name = "static"
    says = "drawn at random once."
    uses: ClassVar[tuple[str, ...]] = ()

    def start(self, state: SetState, score: Tensor) -> Sets:
        fwd = state.largest(state.draw(score, ""), state.fwd_per_group)
        return fwd, fwd

    def renew(self, state: SetState, score: Tensor) -> Sets:
        fwd = state.members()[0].view_as(score)
        return fwd, fwd

    def due(self, state: SetState) -> bool:
        return False


class StaticMagnitude(Static):
    """The largest units of the initial θ."""

    name = "static-magnitude"
    says = "the largest at the start, once."
    largest_first = True

    def start(self, state: SetState, score: Tensor) -> Sets:
        fwd = state.largest(score, state.fwd_per_group)
        return fwd, fwd
