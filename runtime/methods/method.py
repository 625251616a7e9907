"""What a method decides: which units are kept and which grow, from what scores, on which schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from topkast.runtime.reference.dense_gradient import Rows
from topkast.runtime.reference.selection import largest

from .set_state import SetState

Sets = tuple[Tensor, Tensor]


class Method(ABC):
    """The rule of one site; an object belongs to one site.

    Scores and sets have the shape [groups, units / groups]: one group, or one for each block row of a balanced site;
    every group has the same counts. ``score`` is that of θ, see :func:`topkast.runtime.reference.selection.scores`.
    """

    name: ClassVar[str]
    says: ClassVar[str]  # what the documentation says of it, after its name and a colon
    uses: ClassVar[tuple[str, ...]]  # the arguments of topkast.compile that not every method has
    bwd: ClassVar[float | None] = None  # B's sparsity if the user has no say in it; None: B = A
    largest_first = False  # whether A is at first the largest of θ
    enters_at_zero = False  # whether a unit that enters B at a refresh forgets its old value
    watches = False  # whether it wants to see gradients
    at_step_end = False  # whether it refreshes when a step ends, and not before the next forward

    @abstractmethod
    def start(self, state: SetState, score: Tensor) -> Sets:
        """(A, B) for a θ that nothing is known of: at first, or when all of θ was replaced."""

    @abstractmethod
    def renew(self, state: SetState, score: Tensor) -> Sets:
        """(A, B) at a refresh; the method itself does not change."""

    def due(self, state: SetState) -> bool:
        """Whether the completed steps are past the end of an interval, or of exploration, that no refresh saw."""
        every, stop = state.rule.refresh_every, state.rule.stop_exploring_after
        last = state.refreshed_at
        return state.step // every > last // every or (stop is not None and last < stop <= state.step)

    def holds(self, state: SetState, fwd: int, bwd: int) -> bool:
        """Whether sets of ``fwd`` and ``bwd`` units are possible, for a checkpoint from outside."""
        return fwd == state.n_fwd and bwd in (state.n_fwd, state.n_bwd)

    def forget(self) -> None:  # noqa: B027 (most methods remember nothing)
        """The sets, or θ, are others than those that gradients were seen of."""

    def see(self, state: SetState, rows: Rows) -> None:  # noqa: B027 (most methods do not look)
        """A product of a backward can give the dense gradient; called only if ``watches`` is set."""


def largest_inside(score: Tensor, member: Tensor, count: int) -> Tensor:
    """The ``count`` largest of ``member``, which has equally many in every group; bool [groups, n]."""
    places = member.nonzero()[:, 1].view(member.shape[0], -1)
    kept = largest(score.gather(1, places), count)
    return torch.zeros_like(member).scatter_(1, places, kept)
