"""Ways to train that FSDP2 allows: mixed precision, accumulation, clipping, checkpointed blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

import topkast
from topkast.tests.support.sharded import OPTIMIZERS, Run, batches, build, mesh_of, on_ranks

BUDGET = 1e-11
RUN = Run()


def _accumulated(model: Any, x: Tensor, y: Tensor) -> None:
    half = x.shape[0] // 2
    for part in (slice(half), slice(half, None)):
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(part.stop is None)
        (F.mse_loss(model(x[part]), y[part]) / 2).backward()


def _twice(model: Any, x: Tensor, y: Tensor) -> None:
    F.mse_loss(model(x) + model(-x), y).backward()


def _once(model: Any, x: Tensor, y: Tensor) -> None:
    F.mse_loss(model(x), y).backward()


def _checkpointed(model: Any) -> None:
    for block in model.blocks:
        given = block.forward
        block.forward = lambda x, given=given: checkpoint(given, x, use_reentrant=False)


# name -> (arguments of fully_shard, done to the model before, the work of a step, the largest norm of the gradient)
WAYS: dict[str, tuple[dict[str, Any], Any, Any, float | None]] = {
    "kept after a forward": ({"reshard_after_forward": False}, None, _once, None),
    "accumulated": ({}, None, _accumulated, None),
    "twice": ({}, None, _twice, None),
    "clipped": ({}, None, _once, 0.05),
    "checkpointed": ({}, _checkpointed, _once, None),
}


def _train(model: Any, way: str, rank: int, ranks: int) -> None:
    _, _, work, norm = WAYS[way]
    optimizer = OPTIMIZERS[RUN.optimizer](model.parameters())
    for x, y in batches():
        optimizer.zero_grad()
        work(model, x[rank::ranks], y[rank::ranks])
        if norm is not None:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], norm)
        optimizer.step()


def trained(ways: list[str]) -> dict[str, Any]:
    found = {}
    mesh = mesh_of(RUN)
    for way in ways:
        options, before, _, _ = WAYS[way]
        model = build(RUN, mesh=mesh)
        if before is not None:
            before(model)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)
        _train(model, way, dist.get_rank(), dist.get_world_size())
        sites = [module for module in model.modules() if hasattr(module, "n_fwd")]
        found[way] = {
            "theta": topkast.dense_state_dict(model, values="all", full=True),
            "sets": topkast.masks(model),
            "late": sum(site.late for site in sites),
        }
    return found


def _check(ways: list[str], found: list[dict[str, Any]]) -> None:
    for way in ways:
        model = build(RUN)
        _train(model, way, 0, 1)
        for module in model.modules():
            if hasattr(module, "refresh_if_due"):
                module.refresh_if_due()
        for rank in found:
            assert rank[way]["late"] == 0
            for key, pair in topkast.masks(model).items():
                assert all(map(torch.equal, rank[way]["sets"][key], pair)), f"{way}: sets of {key}"
        for key, value in topkast.dense_state_dict(model, values="all").items():
            assert float((found[0][way]["theta"][key] - value).abs().max()) < BUDGET, f"{way}: {key}"


def test_ways_equal_one_process(tmp_path: Path) -> None:
    _check(list(WAYS), on_ranks(2, tmp_path, trained, list(WAYS)))


def low_precision() -> dict[str, Any]:
    """bf16 products and fp32 values: the types at rest and in a forward, and that sets are chosen from fp32 values."""
    mesh = mesh_of(RUN)
    model = build(RUN, mesh=mesh).float()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    seen = []
    model.blocks[0].up.register_forward_pre_hook(lambda module, args: seen.append(module.weight.dtype))
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    losses = []
    for x, _ in [batches()[0]] * 40:
        optimizer.zero_grad()
        loss = (model(x.float()).float() - x[:, :7].float()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    theta = topkast.dense_state_dict(model, values="all", full=True)
    sets = topkast.masks(model)
    return {"seen": set(seen), "theta": theta, "sets": sets, "losses": losses, "dtype": model.blocks[0].up.weight.dtype}


def test_low_precision(tmp_path: Path) -> None:
    found = on_ranks(2, tmp_path, low_precision)
    assert found[0]["seen"] == {torch.bfloat16} and found[0]["dtype"] == torch.float32
    assert found[0]["losses"][-1] < 0.7 * found[0]["losses"][0]
    for key, (fwd, bwd) in found[0]["sets"].items():
        assert all(torch.equal(mine, other) for mine, other in zip((fwd, bwd), found[1]["sets"][key], strict=True))
        theta = found[0]["theta"][key]
        assert theta.dtype == torch.float32
        # The last step was step 40 and the last refresh step 39, so a weight of A may have moved a little since.
        assert float(theta.abs()[fwd].mean()) > float(theta.abs()[~bwd].max()) / 2
