"""SET (Mocanu et al. 2018): what is dropped grows again at random places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from topkast.runtime.kernels.sets import largest

from .drop_grow import DropGrow

if TYPE_CHECKING:
    from topkast.runtime.state.site import Site


class SET(DropGrow):
    name = "set"

    def grow(self, site: Site, kept: Tensor, count: int, step: int) -> Tensor:
        drawn = site.draw(kept, step, "grow")
        return largest(torch.where(kept, 0.0, drawn + 1), count)  # a draw may be 0: shifted above what is kept
