"""Why AdamW under FSDP2 in float32 can be further from one process than the rest: Adam divides a gradient by its own
size, so the rounding of a gradient near eps becomes a step. The gradients themselves are as near as plain FSDP2's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import topkast
from topkast.tests.support.processes.sharded import BATCH, Net, Run, batches, mesh_of, on_ranks

LR, EPS = 3e-3, 1e-8
NEAR = 100 * EPS
ROUNDING = torch.finfo(torch.float32).eps
WIDE = 700  # so many weights that the gradients of some are near zero

Step = dict[str, tuple[Tensor, Tensor]]


def _step(model: Any, x: Tensor, y: Tensor, sparse: bool) -> Step:
    """The gradients of one step and the values after the step, by parameter."""
    rank, ranks, mesh = dist.get_rank(), dist.get_world_size(), mesh_of(Run())
    if sparse:
        topkast.sparsify(model, fwd=0.5, bwd=0.25, block=(16, 16), refresh_every=2, min_size=1, seed=3, mesh=mesh)
    fully_shard(model, mesh=mesh)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, eps=EPS)
    F.mse_loss(model(x[rank::ranks].float()), y[rank::ranks].float()).backward()
    gradients = {name: p.grad.full_tensor().clone() for name, p in trained.items()}
    optimizer.step()
    return {name: (gradients[name].double(), p.full_tensor().detach().double()) for name, p in trained.items()}


def first_steps() -> dict[str, Step]:
    """Run on each rank: the first step of three models."""
    found = {}
    for kind in ("dense", "sparse"):
        torch.manual_seed(0)
        found[kind] = _step(Net(), *batches()[0], kind == "sparse")
    torch.manual_seed(0)
    x, y = torch.randn(2, BATCH, WIDE)
    found["wide and dense"] = _step(nn.Sequential(nn.Linear(WIDE, WIDE)), x, y, False)
    return found


def _distances(one: Step, other: Step) -> tuple[float, Tensor, Tensor]:
    """The largest distance of two gradients, and for every weight its distance and the size of its gradient.

    A weight may be no further than Adam brings it from these two gradients: lr * g / (|g| + eps).
    """
    largest, distances, sizes = 0.0, [], []
    for name, (gradient, value) in one.items():
        its, there = other[name]
        largest = max(largest, float((gradient - its).abs().max()))
        distance = (value - there).abs()
        steps = [LR * g / (g.abs() + EPS) for g in (gradient, its)]
        allowed = (steps[0] - steps[1]).abs() + 4 * ROUNDING * (value.abs() + LR)
        assert bool((distance <= allowed).all()), name
        distances.append(distance.flatten())
        sizes.append(torch.minimum(gradient.abs(), its.abs()).flatten())
    return largest, torch.cat(distances), torch.cat(sizes)


@pytest.mark.long
def test_only_gradients_near_eps_exceed_the_budget(tmp_path: Path) -> None:
    folders = [tmp_path / str(ranks) for ranks in (1, 2)]
    for folder in folders:
        folder.mkdir()
    one, two = (on_ranks(ranks, folder, first_steps)[0] for ranks, folder in zip((1, 2), folders, strict=True))
    found = {kind: _distances(one[kind], two[kind]) for kind in one}
    largest = max(float(gradient.abs().max()) for gradient, _ in one["dense"].values())
    assert 0 < found["sparse"][0] <= 2 * found["dense"][0] + ROUNDING * largest
    # What a distance can be where no gradient is near eps: the steps differ by LR * EPS * difference / gradient².
    ordinary = max(
        float(distances[sizes >= NEAR].max()) for _, distances, sizes in found.values() if bool((sizes >= NEAR).any())
    )
    for kind, (_, distances, sizes) in found.items():
        assert bool((sizes[distances > ordinary] < NEAR).all()), kind
    # Plain FSDP2 has such weights too, and they are as far.
    distances = found["wide and dense"][1]
    assert float(distances.max()) > 10 * ordinary and math.isclose(ordinary, 0, abs_tol=1e-6)
