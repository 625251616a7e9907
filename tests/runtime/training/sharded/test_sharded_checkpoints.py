"""torch.distributed.checkpoint saves a sharded model; the same or another number of ranks reads the same bits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import topkast
from topkast.tests.support.sharded import OPTIMIZERS, STEPS, Run, on_ranks, sharded, train

SAVED_AT = 3
RUNS = {"rows": Run(), "gathered": Run("sgd", {"balanced": False})}


def _held(model: Any) -> dict[str, Any]:
    sites = [module for module in model.modules() if hasattr(module, "n_fwd")]
    return {
        "theta": topkast.dense_state_dict(model, values="all", full=True),
        "sets": topkast.masks(model),
        "clocks": {(site.step, site.refreshed_at) for site in sites},
        "marks": sum(int(((site.ever >> bit) & 1).sum()) for site in sites for bit in range(8)),
    }


def _made(run: Run) -> tuple[Any, torch.optim.Optimizer]:
    model = sharded(run)
    return model, OPTIMIZERS[run.optimizer](model.parameters())


def save(folder: str) -> dict[str, Any]:
    """Train, save in the middle, go on."""
    found: dict[str, Any] = {}
    for name, run in RUNS.items():
        model, optimizer = _made(run)
        place = dist.get_rank(), dist.get_world_size()
        train(model, optimizer, *place, slice(SAVED_AT))
        state, of_optimizer = get_state_dict(model, optimizer)
        dcp.save({"model": state, "optimizer": of_optimizer}, checkpoint_id=f"{folder}/{name}")
        found[name] = {"then": _held(model)}
        train(model, optimizer, *place, slice(SAVED_AT, None))
        found[name]["end"] = _held(model)
    return found


def load(folder: str) -> dict[str, Any]:
    """Read what :func:`save` wrote into a new model, and go on."""
    found: dict[str, Any] = {}
    for name, run in RUNS.items():
        model, optimizer = _made(run)
        place = dist.get_rank(), dist.get_world_size()
        train(model, optimizer, *place, slice(STEPS - 4, None))  # so that nothing is right by chance
        state, of_optimizer = get_state_dict(model, optimizer)
        read = {"model": state, "optimizer": of_optimizer}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(read, checkpoint_id=f"{folder}/{name}")
        set_state_dict(model, optimizer, model_state_dict=read["model"], optim_state_dict=read["optimizer"])
        found[name] = {"then": _held(model)}
        train(model, optimizer, *place, slice(SAVED_AT, None))
        found[name]["end"] = _held(model)
    return found


def _equal(one: dict[str, Any], other: dict[str, Any], budget: float) -> None:
    assert one["clocks"] == other["clocks"]
    for key, pair in one["sets"].items():
        assert all(map(torch.equal, pair, other["sets"][key])), key
    for key, value in one["theta"].items():
        assert float((value - other["theta"][key]).abs().max()) <= budget, key


def _check(saved: list[dict[str, Any]], loaded: list[dict[str, Any]], budget: float) -> None:
    for name in RUNS:
        before, after = saved[0][name], loaded[0][name]
        assert before["then"]["theta"]
        _equal(before["then"], after["then"], 0)
        _equal(before["end"], after["end"], budget)
        for when in ("then", "end"):
            marks = [sum(rank[name][when]["marks"] for rank in ranks) for ranks in (saved, loaded)]
            assert marks[0] == marks[1] > 0


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    saved = on_ranks(2, tmp_path / "a", save, str(tmp_path))
    _check(saved, on_ranks(2, tmp_path / "b", load, str(tmp_path)), 0)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_resumes_on_another_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    saved = on_ranks(2, tmp_path / "a", save, str(tmp_path))
    _check(saved, on_ranks(ranks, tmp_path / "b", load, str(tmp_path)), 1e-11)
