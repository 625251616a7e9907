"""RigL (Evci et al. 2020): dropped units are replaced by the units with the largest dense gradient.

The gradient comes from the last backward before a refresh, so the refresh comes at the end of a step. The method sees a
few rows of the gradient at a time. It keeps only the units with the largest scores, as many units as A has: these
include all units that can grow.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from topkast.runtime.errors import ModelError
from topkast.runtime.reference.dense_gradient import Rows, best_units
from topkast.runtime.reference.selection import largest

from .drop_grow import DropGrow
from .method import Sets
from .set_state import SetState


class RigL(DropGrow):
    name = "rigl"
    says = (
        'as ``"set"``, but the weights with the largest gradient enter, at the end of the step (Evci et al. 2020); '
        "this needs a single process, and a weight may be in only one product of a backward."
    )
    watches = at_step_end = True

    def __init__(self) -> None:
        self.backward = -1  # the engine's number of the last backward that was seen
        self.forget()

    def forget(self) -> None:
        self.seen: tuple[Tensor, Tensor] | None = None  # units and their scores

    def see(self, state: SetState, rows: Rows) -> None:
        """Receive the dense gradient from one product of a backward, as ``rows(begin, end)`` of its matrix.

        Raises:
            ModelError: a second product of the same backward. The gradient is the sum of both, and the method would
                have to hold the whole sum.
        """
        backward = torch._C._current_graph_task_id()
        if backward != -1 and backward == self.backward:
            raise ModelError(
                f"{state.name}: takes part in several products of one backward; method='rigl' grows by the gradient of "
                "one, for their sum would have to be held whole: exclude this weight, or use another method"
            )
        self.backward = backward
        if self.due(replace(state, step=state.step + 1)):
            self.seen = best_units(rows, state.geometry, state.fwd_per_group, state.rule.balanced)

    def renew(self, state: SetState, score: Tensor) -> Sets:
        if self.seen is None:  # a refresh by hand, or a weight without a gradient: no units to grow are known
            fwd = state.members()[0].view_as(score)
            return fwd, fwd
        return super().renew(state, score)

    def grow(self, state: SetState, kept: Tensor, count: int) -> Tensor:
        assert self.seen is not None
        units, scores = (tensor.to(kept.device) for tensor in self.seen)
        score = torch.full(kept.shape, -1.0, dtype=scores.dtype, device=kept.device)
        score.view(-1)[units] = scores
        return largest(score.masked_fill_(kept, -1.0), count)
