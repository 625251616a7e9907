"""Public functions on a sharded model: right on all ranks together, or an error that says what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import topkast
from topkast.tests.support.processes.sharded import OPTIMIZERS, Run, batches, build, mesh_of, on_ranks, sharded, train

RUNS = {"rows": Run("sgd"), "gathered": Run("sgd", {"balanced": False}), "without mesh": Run("sgd", mesh=False)}


def other_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    model = build(RUNS["rows"])
    return {key: torch.randn_like(value) for key, value in topkast.dense_state_dict(model, values="all").items()}


def functions(runs: dict[str, Run]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, run in runs.items():
        model, found[name] = sharded(run), {}
        optimizer = OPTIMIZERS[run.optimizer](model.parameters())
        train(model, optimizer, dist.get_rank(), dist.get_world_size(), slice(4))
        parts = {key: value.clone() for key, value in topkast.dense_state_dict(model, values="all").items()}
        whole = topkast.dense_state_dict(model, values="all", full=True)
        of_a = topkast.dense_state_dict(model, full=True)
        assert all(isinstance(value, DTensor) for value in parts.values()), name
        for key, value in parts.items():
            every = value.full_tensor()
            assert not whole or torch.equal(every, whole[key]), key
        sets = topkast.masks(model)
        for key, (fwd, _) in sets.items():
            assert not of_a or torch.equal(of_a[key], torch.where(fwd, whole[key], 0)), key
        found[name]["report"] = topkast.report(model)
        with torch.no_grad():
            model(batches()[0][0])  # the root's parameters stay gathered
        topkast.refresh(model)
        found[name]["refreshed"] = (topkast.masks(model), topkast.dense_state_dict(model, values="all", full=True))
        assert not whole or all(torch.equal(value, whole[key]) for key, value in found[name]["refreshed"][1].items())
        topkast.load_dense_state_dict(model, other_weights())
        loaded = topkast.dense_state_dict(model, values="all", full=True)
        assert not loaded or all(torch.equal(value, loaded[key]) for key, value in other_weights().items()), name
        topkast.load_dense_state_dict(model, parts)
        back = topkast.dense_state_dict(model, values="all", full=True)
        assert not back or all(torch.equal(value, back[key]) for key, value in whole.items()), name
        found[name]["loaded"] = topkast.masks(model)
    return found


def _check(runs: dict[str, Run], found: list[dict[str, Any]]) -> None:
    for name, run in runs.items():
        model = build(run)
        _check_reports([rank[name]["report"] for rank in found], model, run)
        theta = found[0][name]["refreshed"][1]
        topkast.load_dense_state_dict(model, theta)
        for rank in found:
            for when in (rank[name]["refreshed"][0], rank[name]["loaded"]):
                for key, pair in topkast.masks(model).items():
                    assert all(map(torch.equal, when[key], pair)), f"{name}: {key}"


def _check_reports(reports: list[Any], model: nn.Module, run: Run) -> None:
    """Every rank reports its own bytes and the same sums, and the rest as one process does."""
    optimizer = OPTIMIZERS[run.optimizer](model.parameters())
    train(model, optimizer, steps=slice(4))
    for module in model.modules():
        if hasattr(module, "refresh_if_due"):
            module.refresh_if_due()
    alone = topkast.report(model)
    own, ranks = [one.totals["bytes"] for one in reports], reports[0].totals["bytes"]["ranks"]
    assert ranks["number"] == len(reports)
    for one in reports:
        assert one.totals["bytes"]["ranks"] == ranks
        assert one.totals["parameters"] == alone.totals["parameters"]
        assert one.warnings == alone.warnings
        for row, other in zip(one.sites, alone.sites, strict=True):
            for key in ("density_a", "density_b", "ever_active"):
                assert row[key] == other[key], key
            for mine, entry in zip(row["churn"], other["churn"], strict=True):
                assert mine == pytest.approx(entry)
        text = str(one.details())
        assert f"on all {len(reports)} ranks" in text and "on this rank" in text
    assert ranks["places"] == [one["places"]["now"] for one in own]
    assert all(sum(one["sites"][key] for one in own) == ranks["sites"][key] for key in ranks["sites"])
    # What one process has, the ranks have together: each has its part.
    for key in ("values", "gradient", "optimizer", "reservoir", "dense"):
        assert ranks["sites"][key] == alone.totals["bytes"]["sites"][key]
    assert max(one["sites"]["values"] for one in own) < ranks["sites"]["values"]


def test_functions_work_on_all_ranks_together(tmp_path: Path) -> None:
    runs = {"rows": RUNS["rows"]}
    _check(runs, on_ranks(2, tmp_path, functions, runs))


@pytest.mark.long
def test_functions_work_in_every_way(tmp_path: Path) -> None:
    runs = {name: run for name, run in RUNS.items() if name != "rows"}
    _check(runs, on_ranks(2, tmp_path, functions, runs))


def _sharded_after(change: Callable[[Any], Any] | None = None, **options: Any) -> None:
    run = Run("sgd", options)
    model = build(run, mesh=mesh_of(run))
    kept = change(model) if change else None
    fully_shard(model, mesh=mesh_of(run))
    del kept


def _other_weights_on_rank_1() -> None:
    torch.manual_seed(dist.get_rank())
    topkast.sparsify(nn.Sequential(nn.Linear(20, 30)), min_size=1, mesh=mesh_of(Run()))


def _values_alone() -> None:
    run = Run()
    model = build(run, mesh=mesh_of(run))
    fully_shard(model, mesh=mesh_of(run), ignored_params={model.first.sparse_state.weight.cols})
    topkast.masks(model)


def _gathered_now() -> None:
    model = sharded(RUNS["rows"])
    model(batches()[0][0])
    for module in model.modules():
        if hasattr(module, "n_fwd"):
            module.refresh()


def refused() -> dict[str, str]:
    model = sharded(RUNS["rows"])
    asked: dict[str, Callable[[], Any]] = {
        "densify": lambda: topkast.densify(model),
        "export": lambda: topkast.export(model, "never.onnx", batches()[0][0]),
        "background": lambda: _sharded_after(refresh_in_background=True),
        "copies": lambda: _sharded_after(copy.deepcopy),
        "other weights": _other_weights_on_rank_1,
        "values alone": _values_alone,
        "gathered": _gathered_now,
        "mesh": lambda: build(RUNS["rows"], mesh=2),
    }
    found = {}
    for name, do in asked.items():
        try:
            do()
            found[name] = "nothing"
        except (topkast.ModelError, topkast.ConfigError, topkast.RefreshError) as error:
            found[name] = f"{type(error).__name__}: {error}"
        dist.barrier()
    return found


SAID = {
    "densify": "ModelError: .*topkast.densify needs the whole weight; topkast.dense_state_dict",
    "export": "ModelError: .*needs the whole weight; topkast.dense_state_dict",
    "background": "ModelError: .*refresh_in_background=False",
    "copies": "ModelError: .*the model has copies",
    "other weights": "ModelError: .*rank 1 starts from other weights than rank 0",
    "values alone": "ModelError: first.weight: its values are sharded and its positions are not",
    "gathered": "RefreshError: .*are gathered for a forward.*call reshard",
    "mesh": "ConfigError: mesh=2: must be a DeviceMesh",
}


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    for rank in on_ranks(2, tmp_path, refused):
        assert rank.keys() == SAID.keys()
        for name, pattern in SAID.items():
            with pytest.raises(AssertionError, match=pattern):
                raise AssertionError(rank[name])
