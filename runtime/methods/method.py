"""The decisions of a method: which units are kept and which units grow, from which scores, and when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from topkast.runtime.reference.dense_gradient import Rows
from topkast.runtime.reference.selection import largest

from .intervals import ended
from .set_state import SetState

Sets = tuple[Tensor, Tensor]


class Method(ABC):
    """The rule that chooses A and B of one weight. An object belongs to one weight.

    A class of your own defines ``name``, ``says``, ``uses``, :meth:`start` and :meth:`renew`, and is registered by
    :func:`topkast.register_method`.

    Scores and sets have the shape [groups, units / groups]: one group, or one group for each block row of a balanced
    site. Every group has the same counts. ``score`` is the score of θ, see
    ``scores`` in ``topkast.runtime.reference.selection``.
    """

    name: ClassVar[str]
    says: ClassVar[str]  # the documentation's text about the method, after its name and a colon
    uses: ClassVar[tuple[str, ...]]  # the arguments of topkast.compile that not every method has
    bwd: ClassVar[float | None] = None  # B's sparsity if the user cannot choose it; None: B = A
    largest_first = False  # whether A is the largest of θ at first
    enters_at_zero = False  # whether a unit that enters B at a refresh loses its old value
    watches = False  # whether the method needs to see gradients
    at_step_end = False  # whether the method refreshes at the end of a step, instead of before the next forward

    @abstractmethod
    def start(self, state: SetState, score: Tensor) -> Sets:
        """(A, B) for θ without any earlier sets: at the start, or after all of θ was replaced."""

    @abstractmethod
    def renew(self, state: SetState, score: Tensor) -> Sets:
        """(A, B) at a refresh. The call does not change the method object."""

    def due(self, state: SetState) -> bool:
        """Whether an interval, or exploration, has ended since the last refresh."""
        last, rule = state.refreshed_at, state.rule
        moments = (rule.stop_exploring_after, rule.fwd_reached_after)
        return ended(rule, state.step) > ended(rule, last) or any(
            at is not None and last < at <= state.step for at in moments
        )

    def units(self, state: SetState) -> tuple[int, int]:
        """(A, B): the number of units of each group after ``state.step`` steps, if nothing else changes it."""
        return state.fwd_per_group, state.bwd_per_group

    def holds(self, state: SetState, fwd: int, bwd: int) -> bool:
        """Whether the method allows sets of ``fwd`` and ``bwd`` units; for checkpoints from other sources."""
        return fwd == state.n_fwd and bwd in (state.n_fwd, state.n_bwd)

    def forget(self) -> None:  # noqa: B027 (most methods remember nothing)
        """Forget all seen gradients, because the sets or θ have changed since the gradients were seen."""

    def saved(self, state: SetState) -> dict[str, Tensor]:
        """Tensors that a checkpoint needs so that the method continues in the same way. Names, shapes and dtypes never
        change, also before the first step."""
        return {}

    def restore(self, saved: dict[str, Tensor]) -> None:  # noqa: B027 (most methods save nothing)
        """Take the tensors of :meth:`saved` from a checkpoint."""

    def see(self, state: SetState, rows: Rows) -> None:  # noqa: B027 (most methods do not look)
        """Receive the dense gradient from a product of a backward; called only if ``watches`` is set."""


def largest_inside(score: Tensor, member: Tensor, size: int, count: int) -> Tensor:
    """The ``count`` largest of ``member``, which has ``size`` units in every group; bool [groups, n]."""
    # The size is given, so that the host does not wait for a GPU to count.
    places = torch.nonzero_static(member, size=member.shape[0] * size)[:, 1].view(-1, size)
    kept = largest(score.gather(1, places), count)
    return torch.zeros_like(member).scatter_(1, places, kept)
