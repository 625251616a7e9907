"""Each way of training that would give ranks sets of their own, and its error. tests/support/processes/ranks.py runs
this on every rank.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable import replicate_with_fsdp
from torch.distributed._composable.replicate import replicate
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import topkast
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import sgd, sites_of

CASE = CASES["mlp"]
SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "min_size": 1, "backend": "eager"}


def converted() -> nn.Module:
    return topkast.compile(CASE.model(seed=0), **SPARSE)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for (x,), target in CASE.batches(steps):
        optimizer.zero_grad()
        CASE.loss(model(x), target).backward()
        optimizer.step()


def _fsdp(model: nn.Module, **options: Any) -> None:
    FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)


def _replicate(model: nn.Module) -> None:
    replicate(model)
    model(torch.randn(9, 20))


def _join(model: nn.Module, whole: bool) -> None:
    parallel = DistributedDataParallel(model)
    with Join([parallel]) if whole else parallel.join():
        raise AssertionError("not refused")


def _zero(model: nn.Module) -> None:
    parallel = DistributedDataParallel(model)
    train(parallel, ZeroRedundancyOptimizer(parallel.parameters(), torch.optim.SGD, lr=0.1))


def _zero_in_hook(model: nn.Module) -> None:
    parallel = DistributedDataParallel(model)
    zero = ZeroRedundancyOptimizer(parallel.parameters(), torch.optim.SGD, overlap_with_ddp=True, lr=0.1)

    def hook(state: Any, bucket: Any) -> Any:  # as hook_with_zero_step makes one, which refuses gloo
        zero.step()
        return allreduce_hook(state, bucket)

    parallel.register_comm_hook(None, hook)


def tools() -> dict[str, Callable[[nn.Module], Any]]:
    """name -> what is done to a converted model."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("replicate",))
    wraps = functools.partial(size_based_auto_wrap_policy, min_num_params=1)
    return {
        "FullyShardedDataParallel": _fsdp,
        "FullyShardedDataParallel use_orig_params": lambda model: _fsdp(model, use_orig_params=True),
        "FullyShardedDataParallel auto_wrap_policy": lambda model: _fsdp(model, auto_wrap_policy=wraps),
        "parallelize_module": lambda model: parallelize_module(model, mesh, {"0": ColwiseParallel()}),
        "parallelize_module rows": lambda model: parallelize_module(model, mesh, {"2": RowwiseParallel()}),
        "parallelize_module one": lambda model: distribute_module(model[0], mesh),
        "nn.DataParallel": lambda model: [module._replicate_for_data_parallel() for module in model.modules()],
        "join": lambda model: _join(model, False),
        "join many": lambda model: _join(model, True),
        "ZeroRedundancyOptimizer": _zero,
        "ZeroRedundancyOptimizer in a hook": _zero_in_hook,
        # On another model, because torch notes on a model that replicate was asked for.
        "replicate on a mesh": lambda model: replicate_with_fsdp.replicate(model, mesh=mesh),
        "replicate": _replicate,
    }


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def refused() -> dict[str, str]:
    """tool -> the error. Every tool finds the model as the one before has found it, and it trains after them all."""
    found = {}
    model = converted()
    before = bits(model)
    for name, do in tools().items():
        if name.startswith("replicate"):
            found["trains"] = trains(model)
            model = converted()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                do(model)
            found[name] = "nothing"
        except (topkast.ModelError, topkast.OptimizerError) as error:
            found[name] = f"{type(error).__name__}: {error}"
        after = bits(model)
        assert before.keys() == after.keys(), name
        assert all(torch.equal(before[key], after[key]) for key in before), f"{name} has changed the model"
        assert all(type(p) is nn.Parameter for p in model.parameters()), name
        assert not any(site.step for site in sites_of(model).values()), name
        dist.barrier()  # no rank waits for another one
    return found


def trains(model: nn.Module) -> str:
    """After refusals it is trained by what they advise, as if they had never been."""
    twin = converted()
    for each in (model, twin):
        parallel = DistributedDataParallel(each)
        assert FullyShardedDataParallel.fsdp_modules(parallel) == []  # torch's checkpoints ask so
        with parallel.join(enable=False):
            train(parallel, sgd(list(parallel.parameters())))
    mine, other = bits(model), bits(twin)
    return str(all(torch.equal(mine[key], other[key]) for key in mine))


def wrapped_before() -> dict[str, str]:
    """tool -> the error of a conversion of what is in it already."""
    found = {}
    plain = CASE.model(seed=0)
    DistributedDataParallel(copy.deepcopy(plain))
    kept = DistributedDataParallel(plain)
    sharded = _orig(CASE.model(seed=0))
    for name, model in {"module": plain, "wrapper": kept, "sharded": sharded.module}.items():
        try:
            topkast.compile(model, **SPARSE)
            found[name] = "nothing"
        except topkast.ModelError as error:
            found[name] = str(error)
    gone = DistributedDataParallel(CASE.model(seed=0)).module  # the wrapper is there no more
    topkast.compile(gone, **SPARSE)
    return found


def _orig(model: nn.Module) -> FullyShardedDataParallel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
