"""Ways to train that FSDP2 allows: compiled blocks, mixed precision, accumulation, clipping, checkpointed blocks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

import topkast
from topkast.compiler.backend import compile_module, topkast_aot_eager, topkast_backend
from topkast.tests.support.processes.sharded import OPTIMIZERS, STEPS, Run, batches, build, mesh_of, on_ranks

BUDGET = 1e-11

Work = Callable[[Any, torch.optim.Optimizer, Tensor, Tensor], None]


def _once(model: Any, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    F.mse_loss(model(x), y).backward()
    optimizer.step()


def _accumulated_and_clipped(model: Any, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    half = x.shape[0] // 2
    for part in (slice(half), slice(half, None)):
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(part.stop is None)
        (F.mse_loss(model(x[part]), y[part]) / 2).backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 0.05)
    optimizer.step()


def _twice(model: Any, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    F.mse_loss(model(x) + model(-x), y).backward()
    optimizer.step()


def _scaled_with_an_overflow(model: Any, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """The gradient of one rank overflows in one step, which all ranks must skip."""
    if torch.equal(y[-1], batches()[3][1][-1]):
        y = y * torch.inf
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(F.mse_loss(model(x), y)).backward()
    scaler.step(optimizer)


def _checkpointed(model: Any) -> None:
    for block in model.blocks:
        given = block.forward
        block.forward = lambda x, given=given: checkpoint(given, x, use_reentrant=False)


def _compiled(model: Any) -> None:
    for block in model.blocks:
        block.compile(backend=topkast_aot_eager, fullgraph=True)


def _compiled_by_inductor(model: Any) -> None:
    model.blocks[0].compile(backend=topkast_backend, fullgraph=True)  # seconds of a C++ compiler for each block
    model.blocks[1].compile(backend=topkast_aot_eager, fullgraph=True)


def _compiled_by_topkast(model: Any) -> None:
    compile_module(model, "aot_eager", {})


def _compiled_as_a_whole(model: Any) -> None:
    model.compile(backend=topkast_aot_eager)


@dataclass(frozen=True)
class Way:
    """A way to train.

    Args:
        shard: arguments of ``fully_shard``.
        before, after: done to the model before and after ``fully_shard``.
        work: a step of the training.
        shape: of the mesh.
        compiled: whether the products of the blocks must come from compiled graphs, and only from these.
        options: of ``topkast.sparsify``.
        mesh: whether ``sparsify`` is told the mesh.
    """

    shard: dict[str, Any] = field(default_factory=dict)
    before: Callable[[Any], None] | None = None
    after: Callable[[Any], None] | None = None
    work: Work = _once
    shape: tuple[int, ...] | None = None
    compiled: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    mesh: bool = True

    @property
    def run(self) -> Run:
        return Run(options=self.options, mesh=self.mesh, shape=self.shape)


QUICK = {"compiled blocks": Way(before=_compiled, compiled=True)}
WAYS = {
    "kept after a forward, compiled": Way({"reshard_after_forward": False}, before=_compiled, compiled=True),
    "accumulated and clipped": Way(work=_accumulated_and_clipped),
    "accumulated and clipped, kept": Way({"reshard_after_forward": False}, work=_accumulated_and_clipped),
    "twice": Way(work=_twice),
    "twice, compiled": Way(before=_compiled, work=_twice, compiled=True),
    "checkpointed": Way(before=_checkpointed),
    "values in host memory": Way({"offload_policy": CPUOffloadPolicy(pin_memory=False)}),
    "scaled, with an overflow": Way(work=_scaled_with_an_overflow),
    "compiled after": Way(after=_compiled, compiled=True),
    "compiled blocks, gathered": Way(before=_compiled, compiled=True, options={"balanced": False}),
    "compiled blocks, without mesh": Way(before=_compiled, compiled=True, mesh=False),
    "compiled by Inductor": Way(before=_compiled_by_inductor, compiled=True),
    "compiled by topkast": Way(before=_compiled_by_topkast, compiled=True),
    "compiled as a whole": Way(after=_compiled_as_a_whole, compiled=True),
}
FOUR = {"two replicas, compiled": Way(shape=(2, 2), before=_compiled, compiled=True)}


def _train(model: Any, way: Way, rank: int, ranks: int) -> None:
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for x, y in batches():
        optimizer.zero_grad()
        way.work(model, optimizer, x[rank::ranks], y[rank::ranks])


def trained(ways: dict[str, Way]) -> dict[str, Any]:
    found = {}
    for name, way in ways.items():
        torch._dynamo.reset()
        mesh = mesh_of(way.run)
        model = build(way.run, **({"mesh": mesh} if way.mesh else {}))
        if way.before is not None:
            way.before(model)
        with warnings.catch_warnings():
            warnings.simplefilter("default" if way.mesh else "ignore")
            for block in model.blocks:
                fully_shard(block, mesh=mesh, **way.shard)
            fully_shard(model, mesh=mesh, **way.shard)
        if way.after is not None:
            way.after(model)
        _train(model, way, dist.get_rank(), dist.get_world_size())
        sites = [module for module in model.modules() if hasattr(module, "n_fwd")]
        found[name] = {
            "theta": topkast.dense_state_dict(model, values="all", full=True),
            "sets": topkast.masks(model),
            "late": sum(site.late for site in sites),
            "steps": {site.step for site in sites},
            "refreshes": {len(site.churn) for site in sites},
            "ran": {site.name: dict(site.ran) for site in sites if site.name.startswith("blocks")},
        }
    return found


def _alone(way: Way, known: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """θ and the sets after the same steps in one process. Most ways make the same steps: ``known`` has their ends."""
    key = f"{way.work.__name__} {way.options}"
    if key not in known:
        model = build(way.run)
        _train(model, way, 0, 1)
        for module in model.modules():
            if hasattr(module, "refresh_if_due"):
                module.refresh_if_due()
        known[key] = topkast.dense_state_dict(model, values="all"), topkast.masks(model)
    return known[key]


def _check(ways: dict[str, Way], found: list[dict[str, Any]]) -> None:
    known: dict[str, Any] = {}
    for name, way in ways.items():
        theta, sets = _alone(way, known)
        for rank in found:
            assert rank[name]["late"] == 0
            assert min(rank[name]["refreshes"]) >= 3
            assert rank[name]["steps"] == {STEPS - 1 if "overflow" in name else STEPS}
            for key, pair in sets.items():
                assert all(map(torch.equal, rank[name]["sets"][key], pair)), f"{name}: sets of {key}"
            for site, ran in rank[name]["ran"].items() if way.compiled else ():
                products = {product: runs for (product, _, why), runs in ran.items() if why != "eager"}
                assert set(products) == {"forward", "input gradient", "weight gradient"}, f"{name}: {site}: {ran}"
                assert min(products.values()) >= STEPS and len(ran) == len(products), f"{name}: {site}: {ran}"
        for key, value in theta.items():
            assert float((found[0][name]["theta"][key] - value).abs().max()) < BUDGET, f"{name}: {key}"


def test_compiled_blocks_equal_one_process(tmp_path: Path) -> None:
    _check(QUICK, on_ranks(2, tmp_path, trained, QUICK))


@pytest.mark.long
def test_ways_equal_one_process(tmp_path: Path) -> None:
    _check(WAYS, on_ranks(2, tmp_path, trained, WAYS))


@pytest.mark.long
def test_ways_with_replicas_equal_one_process(tmp_path: Path) -> None:
    _check(FOUR, on_ranks(4, tmp_path, trained, FOUR))


def low_precision() -> dict[str, Any]:
    """bf16 products and fp32 values: the types at rest and in a forward, and that sets are chosen from fp32 values."""
    mesh = mesh_of(Run())
    model = build(Run(), mesh=mesh).float()
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


@pytest.mark.long
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
