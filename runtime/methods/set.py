"""SET (Mocanu et al. 2018): dropped units are replaced by random units."""

from __future__ import annotations

import torch
from torch import Tensor

from .drop_grow import DropGrow
from .set_state import SetState


class SET(DropGrow):
    name = "set"
    says = "random at the start; each refresh exchanges the smallest for random ones (Mocanu et al. 2018)."

    def grow(self, state: SetState, kept: Tensor, count: int) -> Tensor:
        drawn = state.draw(kept, "grow")
        return state.largest(torch.where(kept, 0.0, drawn + 1), count)  # a draw may be 0: + 1 puts it above kept units
