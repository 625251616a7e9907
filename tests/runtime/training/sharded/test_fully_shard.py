"""FSDP2 on several processes equals one process on the union of their batches: θ, the sets, the optimizer's state."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import topkast
from topkast.runtime.methods import METHODS
from topkast.tests.support.processes.sharded import OPTIMIZERS, Run, alone, mesh_of, on_ranks, sharded, train
from topkast.tools.common.transport import bytes_sent

BUDGET = 1e-11  # float64; a step's gradient is summed in another order

DENSE_BLOCKS = {"block": (16, 16), "fwd": 0.5, "bwd": 0.25}
FREE = {"balanced": False}


class Wandering(topkast.Method):
    """A method of a user's own, which draws B's rest."""

    name = "wandering"
    says = "A is the largest weights, B is drawn."
    uses = ("bwd", "refresh_every")
    largest_first = True

    def start(self, state: topkast.SetState, score: Tensor) -> tuple[Tensor, Tensor]:
        fwd = state.largest(score, state.fwd_per_group)
        drawn = state.draw(score, "rest") * torch.arange(1, score.shape[1] + 1)
        return fwd, state.largest(torch.where(fwd, 2.0 * score.shape[1], drawn.to(score.dtype)), state.bwd_per_group)

    renew = start


QUICK = {"adamw": Run(), "gathered": Run("sgd", FREE)}
# A run has several options at once if they have nothing to do with each other.
MATRIX = {
    "sgd in blocks": Run("sgd", DENSE_BLOCKS),
    "adamw in blocks": Run(options=DENSE_BLOCKS),
    "gathered, adamw in blocks": Run(options=DENSE_BLOCKS | FREE),
    "gathered, without mesh": Run(options=FREE, mesh=False),
    "blocks, without mesh": Run("sgd", DENSE_BLOCKS, mesh=False),
    "the paper's penalty": Run("sgd", {"exploration_decay": 0.0, "exploration_l2": 0.01}),
    "the paper's penalty, gathered": Run("sgd", {"exploration_decay": 0.0, "exploration_l2": 0.01, **FREE}),
    "a rate of decay": Run("sgd", {"exploration_decay": 0.1}),
    "random, host": Run(options={"explore": "random", "reservoir": "host"}),
    "random, gathered, disk": Run(options={"explore": "random", "reservoir": "disk", **FREE}),
    "end of exploration": Run(options={"stop_exploring_after": 3}),
    "set": Run(options={"method": "set", "bwd": None}),
    "gmp": Run(options={"method": "gmp", "bwd": None, "stop_exploring_after": 5}),
    "falling density": Run(options={"bwd": None, "fwd_start": 0.5, "fwd_reached_after": 4}),
    "falling density, gathered": Run("sgd", {"bwd": 0.3, "fwd_start": 0.5, "fwd_reached_after": 4, **FREE}),
    "magnitude-ste": Run(options={"method": "magnitude-ste", "bwd": None}),
    "dense": Run(options={"fwd": 0.0, "bwd": 0.0}),
    "a user's method": Run(options={"method": Wandering.name}),
    "a user's method, gathered": Run("sgd", {"method": Wandering.name, **FREE}),
}
# With 4 ranks, the last ranks hold no rows of several weights.
FOUR = {
    **QUICK,
    "sgd in blocks": Run("sgd", DENSE_BLOCKS),
    "two replicas": Run(shape=(2, 2)),
    "two replicas, gathered": Run(options=FREE, shape=(2, 2)),
}


def trained(runs: dict[str, Run]) -> dict[str, Any]:
    """Run on each rank: what the ranks hold together after each of the runs."""
    found = {}
    topkast.register_method(Wandering)
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
        assert len({str(other["refreshes"]) for other in ranks}) == 1
        assert min(ranks[0]["refreshes"]) >= 3
        for other in ranks:
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
            copies = run.shape[0] if run.shape else 1
            assert sum(columns for _, columns in held) == slots * copies, f"{name}: {key}"
            if run.mesh:  # without it, values of rows that differ are one row of a parameter, which one rank holds
                assert max(columns for _, columns in held) < slots, f"{name}: {key} is on one rank"
            assert sum(outside for outside, _ in held) < numel * copies


def test_equals_one_process(tmp_path: Path) -> None:
    check(QUICK, on_ranks(2, tmp_path, trained, QUICK))


@pytest.mark.long
def test_equals_one_process_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, Wandering.name, Wandering)
    check(MATRIX, on_ranks(2, tmp_path, trained, MATRIX))


@pytest.mark.long
@pytest.mark.parametrize("ranks", [4])
def test_equals_one_process_on_more_ranks(ranks: int, tmp_path: Path) -> None:
    runs = {name: run for name, run in FOUR.items() if run.shape is None or ranks == 4}
    check(runs, on_ranks(ranks, tmp_path, trained, runs))


def sent(ways: dict[str, dict[str, Any] | None]) -> dict[str, list[int]]:
    """Run on each rank: the bytes of a step without a refresh, and of a step with one. Options None: a dense model."""
    os.environ.pop("TOPKAST_COMPARE_RANKS")
    found = {}
    for name, options in ways.items():
        model: Any = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        if options is not None:
            topkast.sparsify(model, fwd=0.9, bwd=0.8, refresh_every=3, seed=0, mesh=mesh_of(Run()), **options)
        fully_shard(model, mesh=mesh_of(Run()))
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        steps = []
        for _ in range(3):
            dist.barrier()
            before = bytes_sent()
            optimizer.zero_grad()
            model(torch.randn(4, 128)).square().mean().backward()
            optimizer.step()
            steps.append(bytes_sent() - before)
        found[name] = steps[1:]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the bytes of each socket")
def test_bytes_that_are_sent(tmp_path: Path) -> None:
    """A step sends less than 0.3 of dense FSDP2's bytes at 0.9/0.8, and a refresh of whole rows nothing."""
    for found in on_ranks(2, tmp_path, sent, {"dense": None, "rows": {}, "gathered": FREE}):
        dense = found["dense"][0]
        for way in ("rows", "gathered"):
            assert 0.1 * dense < found[way][0] < 0.3 * dense
        assert found["rows"][0] == found["rows"][1]
        assert found["gathered"][0] < found["gathered"][1]
