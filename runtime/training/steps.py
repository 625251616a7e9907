"""One step of the user is one step of a site, however many optimizers stand inside each other.

An optimizer may make another one's step inside its own: sharded ones, Lookahead, SAM, a class whose ``step`` calls that
of its base. torch's hooks run for each of them, and the outermost that holds a site is the one that counts.

Nothing tells that a step has ended in an exception. So a step is known by the frame that makes it: it goes on as long
as that frame is one of those that called whoever asks.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType

import torch

from topkast.runtime.state.site import Site

# Modules whose functions stand between the frame that makes a step and our hooks.
BETWEEN = ("torch._dynamo.", "torch.utils._contextlib", __name__.rpartition(".")[0])

PRETENDED_WITHIN = 4  # frames from the hook to torch's function, with a learning-rate schedule's wrapper between them


@dataclass(frozen=True)
class _Step:
    """A step that goes on: whose it is, the frame that makes it, and the sites that it counts for."""

    optimizer: torch.optim.Optimizer
    frame: FrameType
    sites: list[Site]


class _Open(threading.local):
    """A thread's steps, the outermost first."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []


_open = _Open()


def begin(optimizer: torch.optim.Optimizer, sites: Iterable[Site]) -> list[Site]:
    """An optimizer's step begins, called by a hook of torch's.

    Args:
        sites: what the optimizer holds.

    Returns:
        Those for which this is the outermost step.
    """
    _forget_failed()
    counted = {id(site) for step in _open.steps for site in step.sites}
    maker = _maker()
    own = [] if _is_pretended(maker) else [site for site in sites if id(site) not in counted]
    _open.steps.append(_Step(optimizer, maker, own))
    return own


def end(optimizer: torch.optim.Optimizer) -> list[Site]:
    """An optimizer's step has ended: the sites for which it was the outermost."""
    _forget_failed()
    for place, step in reversed(list(enumerate(_open.steps))):
        if step.optimizer is optimizer:
            del _open.steps[place:]
            return step.sites
    return []


def under_way() -> bool:
    """Whether this thread is inside an optimizer's step, as a closure is."""
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
    """Whether torch's distributed checkpoints make a step at learning rate 0, to see which state there is."""
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
