"""A model on the meta device, converted with a mesh: each rank makes its own part, and trains as one process."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import topkast
from topkast.tests.support.processes.sharded import OPTIMIZERS, REFRESH, Net, Run, mesh_of, on_ranks, train
from topkast.tools.bench.large import give_back_at_once

BUDGET = 1e-11  # float64; a step's gradient is summed in another order
WAYS: dict[str, dict[str, Any]] = {
    "rows": {"initial": "random"},
    "gathered blocks on the host": {"balanced": False, "block": (3, 1), "reservoir": "host"},
}


def made(options: dict[str, Any], mesh: Any = None) -> Any:
    with torch.device("meta"):
        model = Net().double()
    torch.manual_seed(0)
    given = {"fwd": 0.8, "bwd": 0.6, "refresh_every": REFRESH, "min_size": 1, "seed": 3, "mesh": mesh, **options}
    return topkast.sparsify(model, **given)


def trained() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, options in WAYS.items():
        mesh = mesh_of(Run())
        model = made(options, mesh)
        for use in (topkast.masks, nn.Module.state_dict, lambda model: model(torch.zeros(2, 10).double())):
            with pytest.raises(topkast.ModelError, match="call fully_shard with this mesh first"):
                use(model)
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        start = topkast.dense_state_dict(model, values="all", full=True)
        train(model, OPTIMIZERS["adamw"](model.parameters()), dist.get_rank(), dist.get_world_size())
        found[name] = start, topkast.dense_state_dict(model, values="all", full=True), topkast.masks(model)
    model = made({}, mesh)
    fully_shard(model, mesh=mesh_of(Run(shape=(2, 1))))
    with pytest.raises(topkast.ModelError, match=r"first.weight: fully_shard was called with a mesh .* same mesh"):
        topkast.masks(model)
    return found


def test_equals_one_process(tmp_path: Path) -> None:
    ranks = on_ranks(2, tmp_path, trained)
    for name, options in WAYS.items():
        model = made(options)
        start, end, _ = ranks[0][name]
        for key, value in topkast.dense_state_dict(model, values="all").items():
            assert torch.equal(start[key], value), f"{name}: {key}"
        train(model, OPTIMIZERS["adamw"](model.parameters()))
        for module in model.modules():
            if hasattr(module, "refresh_if_due"):
                module.refresh_if_due()
        for key, value in topkast.dense_state_dict(model, values="all").items():
            assert float((end[key] - value).abs().max()) < BUDGET, f"{name}: {key}"
        for key, pair in topkast.masks(model).items():
            assert all(all(map(torch.equal, rank[name][2][key], pair)) for rank in ranks), f"{name}: sets of {key}"


def _resident(field: str) -> int:
    return int(re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def resident(layers: int, width: int) -> tuple[int, int]:
    """Run on each rank: the peak of resident memory while the model is made and sharded, and the memory after it."""
    mesh = mesh_of(Run())
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    topkast.sparsify(model, fwd=0.9, bwd=0.8, seed=3, mesh=mesh)
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return _resident("VmHWM") - before, _resident("VmRSS") - before


def without_its_start(layers: int, width: int) -> tuple[int, int]:
    """Run on each rank: :func:`resident`, without what the first use of everything takes."""
    give_back_at_once()
    resident(1, 64)
    return resident(layers, width)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="Linux says what is resident")
def test_a_rank_has_no_more_than_its_part_and_one_weight(tmp_path: Path) -> None:
    layers, width = 12, 1536
    weight = 4 * width**2
    for peak, settled in on_ranks(2, tmp_path, without_its_start, layers, width):
        # θ, and two bytes for each of a fifth of the weights. Without parts: 12.6 weights, and 16.2 at the peak.
        part = 1.1 * layers / 2
        assert settled / weight < part + 2
        assert peak / weight < part + 5.4  # the weight that is made, its scores and their order
