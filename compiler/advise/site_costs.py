"""Time and memory that a sparse weight costs outside of its products, beside the same weight trained dense.

One weight of each kind is copied, converted and freed. A model with a hundred weights has a handful of kinds, so the
memory of one weight is enough, where a converted copy of the model needed as much as the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from topkast.compiler.config import Config
from topkast.compiler.convert.attach import attach
from topkast.compiler.convert.distribute import Count
from topkast.compiler.report.cost import count_bytes
from topkast.runtime.layout import Geometry
from topkast.runtime.planner import interleave
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.site_module import SiteModule

RUNS = 2  # of an optimizer's step; the first makes its state and does not count
MOST = 2**22  # entries of the tensor on which a step over all dense parameters is timed


@dataclass(frozen=True)
class SiteCost:
    """The costs of one weight.

    Args:
        step: seconds of an AdamW step over the weight, "dense" and "sparse" (with the decay of explored weights).
        refresh: seconds of one refresh.
        bytes: values, gradient, AdamW's state, index and reservoir, "dense" and "sparse".
    """

    step: dict[str, float]
    refresh: float
    bytes: dict[str, int]


def site_cost(weight: Tensor, geometry: Geometry, count: Count, config: Config) -> SiteCost:
    """Convert a copy of one weight and time what a step does with it.

    Args:
        weight: the dense weight. It is not changed.
        geometry: how the weight is cut into blocks.
        count: how many blocks A and B keep.
        config: the options.
    """
    owner = nn.Module()
    owner.weight = nn.Parameter(weight.detach().clone())
    dense = _adamw_step(owner.weight)
    owner.weight.grad = None
    fwd, bwd, balanced = count
    site = SiteModule(owner.weight, "weight", geometry, fwd, bwd, config.rule(balanced), Family(owner))
    site.adopt(owner, "weight")
    attach(owner, "weight", site)
    optimizer = torch.optim.AdamW([site.original])
    sparse = _adamw_step(site.original, optimizer)
    refresh = seconds_of(site.refresh)  # once, because a step's share of a refresh is a hundredth
    found = count_bytes({"weight": site})
    return SiteCost({"dense": dense, "sparse": sparse}, refresh, {side: found[side] for side in ("dense", "sparse")})


def rest_step(parameters: list[nn.Parameter]) -> float:
    """Seconds of an AdamW step over parameters that stay dense: scaled from one tensor and from one small tensor."""
    if not parameters:
        return 0.0
    numel, like = sum(p.numel() for p in parameters), parameters[0]
    timed = min(numel, MOST)
    whole, small = (_adamw_step(nn.Parameter(like.detach().new_zeros(size))) for size in (timed, 1))
    return numel / timed * whole + (len(parameters) - 1) * small


def _adamw_step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer | None = None) -> float:
    optimizer = optimizer or torch.optim.AdamW([parameter])
    parameter.grad = torch.zeros_like(parameter)
    return min([seconds_of(optimizer.step) for _ in range(RUNS)][1:])


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of a call, with all that the call starts on a GPU."""
    if not torch.cuda.is_available():
        return interleave.seconds_of(work)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start
