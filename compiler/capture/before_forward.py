"""The work before each forward of a converted model, compiled or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from topkast.runtime.state.find_sites import members
from topkast.runtime.state.model import find
from topkast.runtime.state.refresh import refresh_due
from topkast.runtime.state.snapshots import restore_snapshots
from topkast.runtime.training.sharded.refused import refuse_engine
from topkast.runtime.training.standing_clock import notice_standing


def refresh_before_forward(model: nn.Module, args: Any) -> None:
    """Forward pre-hook of the root: do each refresh that is due before anything runs, and check that steps are counted
    and that DeepSpeed does not train the model.

    The sites cannot do this themselves under re-entrant checkpointing: they are read only without gradients, or inside
    a backward.
    """
    if not torch.compiler.is_compiling() and not torch._C._is_tracing():
        if model.training and torch.is_grad_enabled():
            refuse_engine()
        found = members([find(model)[1].family])
        restore_snapshots(found)
        refresh_due(found)
        if torch.is_grad_enabled():
            notice_standing(found)
