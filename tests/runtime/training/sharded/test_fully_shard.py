"""FSDP2 on several processes equals one process on the union of their batches: θ, the sets, the optimizer's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import topkast
from topkast.tests.support.sharded import OPTIMIZERS, Run, alone, on_ranks, sharded, train

BUDGET = 1e-11  # float64; a step's gradient is summed in another order

QUICK = {
    "adamw": Run(),
    "sgd in blocks": Run("sgd", {"block": (16, 16), "fwd": 0.5, "bwd": 0.25}),
}


def trained(runs: dict[str, Run]) -> dict[str, Any]:
    """Run on each rank: what the ranks hold together after each of the runs."""
    found = {}
    for name, run in runs.items():
        model = sharded(run)
        optimizer = OPTIMIZERS[run.optimizer](model.parameters())
        train(model, optimizer, dist.get_rank(), dist.get_world_size())
        sites = [module for module in model.modules() if hasattr(module, "n_fwd")]
        found[name] = {
            "theta": topkast.dense_state_dict(model, values="all", full=True),
            "sets": topkast.masks(model),
            "held": {site.name: [site.reservoir.numel(), site.own_columns.numel()] for site in sites},
            "whole": {site.name: [site.theta().numel(), site.n_bwd] for site in sites},
            "refreshes": {len(site.churn) for site in sites},
            "state": [
                value.full_tensor() if hasattr(value, "full_tensor") else value
                for parameter in model.parameters()
                for value in optimizer.state[parameter].values()
            ],
        }
    return found


def check(runs: dict[str, Run], found: list[dict[str, Any]]) -> None:
    for name, run in runs.items():
        theta, sets, optimizer = alone(run)
        ranks = [rank[name] for rank in found]
        for other in ranks:
            assert other["refreshes"] == {3}
            for key, pair in sets.items():
                assert all(map(torch.equal, other["sets"][key], pair)), f"{name}: sets of {key}"
        assert list(ranks[0]["theta"]) == list(theta)
        assert all(not rank["theta"] for rank in ranks[1:])
        for key, value in theta.items():
            assert float((ranks[0]["theta"][key] - value).abs().max()) < BUDGET, f"{name}: {key}"
        state = [
            value for group in optimizer.param_groups for p in group["params"] for value in optimizer.state[p].values()
        ]
        assert len(state) == len(ranks[0]["state"]) > 0
        for mine, other in zip(state, ranks[0]["state"], strict=True):
            mine, other = torch.as_tensor(mine).reshape(-1), torch.as_tensor(other).reshape(-1)
            assert float((mine - other).abs().max()) < BUDGET, f"{name}: state"
        for key, (numel, slots) in ranks[0]["whole"].items():
            held = [rank["held"][key] for rank in ranks]
            assert sum(columns for _, columns in held) == slots, f"{name}: {key}"
            assert max(columns for _, columns in held) < slots or slots < len(ranks), f"{name}: {key} is on one rank"
            assert sum(outside for outside, _ in held) < numel


def test_equals_one_process(tmp_path: Path) -> None:
    check(QUICK, on_ranks(2, tmp_path, trained, QUICK))
