"""One step of the user is one step of a site, even if several optimizers are nested.

An optimizer may call another optimizer's step inside its own: sharded optimizers, Lookahead, SAM, a class whose
``step`` calls the ``step`` of its base class. torch's hooks run for each of these steps. Only the outermost step that
holds a site counts.

No hook is called if a step ends in an exception. So a step is identified by the frame that makes it: the step is active
as long as this frame is among the callers of the current code.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType

import torch

from topkast.runtime.state.site_module import SiteModule

# Modules whose functions are between the frame that makes a step and our hooks.
BETWEEN = ("torch._dynamo.", "torch._compile", "torch.utils._contextlib", __name__.rpartition(".")[0])

PRETENDED_WITHIN = 4  # frames from the hook to torch's function, including the wrapper of a learning-rate schedule


@dataclass(frozen=True)
class _Step:
    """An active step: its optimizer, the frame that makes it, and the sites that the step counts for."""

    optimizer: torch.optim.Optimizer
    frame: FrameType
    sites: list[SiteModule]


class _Open(threading.local):
    """A thread's active steps, the outermost step first."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []


_open = _Open()


def begin(optimizer: torch.optim.Optimizer, sites: Iterable[SiteModule]) -> list[SiteModule]:
    """Record the beginning of an optimizer's step; a hook of torch calls this function.

    Args:
        sites: the sites that the optimizer holds.

    Returns:
        The sites for which this is the outermost step.
    """
    _forget_failed()
    counted = {id(site) for step in _open.steps for site in step.sites}
    maker = _maker()
    own = [] if _is_pretended(maker) else [site for site in sites if id(site) not in counted]
    _open.steps.append(_Step(optimizer, maker, own))
    return own


def end(optimizer: torch.optim.Optimizer) -> list[SiteModule]:
    """Record the end of an optimizer's step, and return the sites for which it was the outermost step."""
    _forget_failed()
    for place, step in reversed(list(enumerate(_open.steps))):
        if step.optimizer is optimizer:
            del _open.steps[place:]
            return step.sites
    return []


def under_way() -> bool:
    """Whether this thread is inside an optimizer's step, for example in a closure."""
    if _open.steps:
        _forget_failed()
    return bool(_open.steps)


def _forget_failed() -> None:
    if _open.steps:
        running = set(_callers())
        _open.steps[:] = [step for step in _open.steps if step.frame in running]


def _maker() -> FrameType:
    """The frame that called the hook."""
    return next(frame for frame in _callers() if not str(frame.f_globals.get("__name__")).startswith(BETWEEN))


def _is_pretended(maker: FrameType) -> bool:
    """Whether torch's distributed checkpoints make a step with learning rate 0, to find out the optimizer's state."""
    frame: FrameType | None = maker
    for _ in range(PRETENDED_WITHIN):
        if frame is not None and frame.f_code.co_name == "_init_optim_state":
            return frame.f_globals.get("__name__") == "torch.distributed.checkpoint.state_dict"
        frame = frame and frame.f_back
    return False


def _callers() -> Iterable[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
