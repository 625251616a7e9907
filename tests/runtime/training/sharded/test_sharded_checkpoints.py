"""One checkpoint for any number of ranks: what one process, FSDP2 or DistributedDataParallel saves, each of them reads.

Both ways to save: ``torch.distributed.checkpoint``, and ``topkast.save``. A chain of stages trains one run. Each stage
has another number of ranks, and begins with the checkpoint of the stage before.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

import topkast
from topkast.tests.support.processes.sharded import OPTIMIZERS, STEPS, Run, alone, build, on_ranks, sharded, train

BUDGET = 1e-11  # float64; a step's gradient is summed in another order
FREE = {"balanced": False}
BLOCKS = {"block": (16, 16), "fwd": 0.5, "bwd": 0.25}


@dataclass(frozen=True)
class Stage:
    """A part of a run: the kind of training, the number of ranks, and the step after which the stage saves."""

    kind: str  # "fsdp", "two replicas" of ranks under FSDP2, "ddp" or "alone"
    ranks: int
    end: int


# A refresh is due after steps 2, 4 and 6. One process saves before this refresh, ranks of FSDP2 after it.
QUICK = [Stage("alone", 1, 2), Stage("fsdp", 2, 4), Stage("alone", 1, STEPS)]
CHAIN = [
    Stage("fsdp", 2, 1),
    Stage("fsdp", 4, 2),
    Stage("alone", 1, 4),
    Stage("fsdp", 3, 5),
    Stage("ddp", 2, 6),
    Stage("two replicas", 4, 6),
    Stage("fsdp", 4, STEPS),
]
RUNS = {
    "gathered": Run(options=FREE | {"block": (3, 1)}),
    "rows": Run(),
    "gathered blocks on the host": Run(options=BLOCKS | FREE | {"reservoir": "host"}),
    "not explored": Run("sgd", FREE | {"block": (3, 1), "bwd": 0.0}),
}
IN_CHAIN = ("rows", "gathered blocks on the host", "not explored")
SHARDED = ("fsdp", "two replicas")
WAYS = ("dcp", "file", "async")  # the stages of a chain save in turn


def made(run: Run, stage: Stage, mesh: Any, group: Any) -> tuple[Any, Any]:
    if stage.kind in SHARDED:
        model: Any = sharded(run, mesh)
    elif stage.kind == "ddp":
        model = DistributedDataParallel(build(run), process_group=group)
    else:
        model = build(run)
    return model, OPTIMIZERS[run.optimizer](model.parameters())


def save(way: str, path: str, model: nn.Module, optimizer: Any, group: Any) -> Any:
    """Save; returns what must be waited for."""
    if way == "file":
        return topkast.save(model, path, optimizer)
    of_model, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": of_model, "optimizer": of_optimizer}
    if way == "async":
        return dcp.async_save(state, checkpoint_id=path, process_group=group)
    return dcp.save(state, checkpoint_id=path, process_group=group)


def load(way: str, path: str, model: nn.Module, optimizer: Any, group: Any) -> None:
    if way == "file":
        return topkast.load(model, path, optimizer)
    of_model, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": of_model, "optimizer": of_optimizer}
    dcp.load(state, checkpoint_id=path, process_group=group)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def train_stage(run: Run, stages: list[Stage], number: int, first: int, folder: str, mesh: Any, group: Any) -> Any:
    stage, start = stages[number], stages[number - 1].end if number else 0
    before, way = (WAYS[(first + place) % len(WAYS)] for place in (number - 1, number))
    model, optimizer = made(run, stage, mesh, group)
    place = (dist.get_rank(), stage.ranks) if stage.ranks > 1 else (0, 1)
    if number:
        train(model, optimizer, *place, slice(STEPS - 1, None))  # so that nothing is right by chance
        load(before, f"{folder}/{number - 1}", model, optimizer, group)
    train(model, optimizer, *place, slice(start, stage.end))
    if number < len(stages) - 1:
        # One file, which one rank of equal ones writes.
        if way != "file" or stage.kind in SHARDED or place[0] == 0:
            waited = save(way, f"{folder}/{number}", model, optimizer, group)
            with suppress(AttributeError):
                waited.result()
        return None
    for module in model.modules():
        if hasattr(module, "refresh_if_due"):
            module.refresh_if_due()
    return topkast.dense_state_dict(model, values="all", full=True), topkast.masks(model)


def chain(stages: list[Stage], runs: dict[str, int], folder: str) -> dict[str, Any]:
    """Run on each rank: all stages of all runs; the ranks that a stage does not need wait.

    Args:
        runs: names of runs; each with the place in ``WAYS`` of the way in which the first stage saves.
    """
    found, meshes = {}, {(stage.kind == "two replicas", stage.ranks): None for stage in stages}
    for replicas, ranks in meshes:
        shape, names = ((2, -1), ("replicas", "parts")) if replicas else ((-1,), ("parts",))
        meshes[replicas, ranks] = DeviceMesh("cpu", torch.arange(ranks).view(shape), mesh_dim_names=names)
    for name, first in runs.items():
        place = Path(folder) / name
        if dist.get_rank() == 0:
            place.mkdir()
        for number, stage in enumerate(stages):
            dist.barrier()
            mesh: Any = meshes[stage.kind == "two replicas", stage.ranks]
            group = mesh.get_group() if mesh.ndim == 1 and dist.get_rank() < stage.ranks else None
            if dist.get_rank() < stage.ranks:
                found[name] = train_stage(RUNS[name], stages, number, first, str(place), mesh, group)
    return found


def check(found: list[dict[str, Any]]) -> None:
    for case, (theta, sets) in found[0].items():
        wanted, wanted_sets, _ = alone(RUNS[case])
        for key, value in wanted.items():
            assert float((theta[key] - value).abs().max()) < BUDGET, f"{case}: {key}"
        for key, pair in wanted_sets.items():
            assert all(map(torch.equal, sets[key], pair)), f"{case}: sets of {key}"


def test_one_process_and_two_ranks_read_each_others_checkpoints(tmp_path: Path) -> None:
    check(on_ranks(2, tmp_path, chain, QUICK, {"gathered": 0, "rows": 2}, str(tmp_path)))


@pytest.mark.long
def test_a_chain_of_all_kinds_and_numbers_of_ranks(tmp_path: Path) -> None:
    runs = {name: number for number, name in enumerate(IN_CHAIN)}
    check(on_ranks(4, tmp_path, chain, CHAIN, runs, str(tmp_path)))


WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def as_written(folder: str) -> Any:
    """Train half of a run, save the model and the optimizer themselves, and their whole state dicts on rank 0."""
    model = sharded(RUNS["rows"])
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer, dist.get_rank(), dist.get_world_size(), slice(4))
    dcp.save({"model": model, "optim": optimizer}, checkpoint_id=f"{folder}/as-written")
    return get_model_state_dict(model, options=WHOLE), get_optimizer_state_dict(model, optimizer, options=WHOLE)


def resumed(folder: str, whole: Any) -> dict[str, Any]:
    """Load each of the two with another number of ranks, and train the other half."""
    found = {}
    for way in ("as written", "whole"):
        model = sharded(RUNS["rows"])
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        train(model, optimizer, dist.get_rank(), dist.get_world_size(), slice(1))
        if way == "as written":
            dcp.load({"model": model, "optim": optimizer}, checkpoint_id=f"{folder}/as-written")
        else:
            options = StateDictOptions(full_state_dict=True)
            set_model_state_dict(model, whole[0], options=options)
            set_optimizer_state_dict(model, optimizer, whole[1], options=options)
        train(model, optimizer, dist.get_rank(), dist.get_world_size(), slice(4, None))
        found[way] = topkast.dense_state_dict(model, values="all", full=True)
    return found


def test_model_and_optimizer_as_they_are(tmp_path: Path) -> None:
    """``dcp.save({"model": model, "optim": opt})`` on two ranks, read by one."""
    saved, read = tmp_path / "saved", tmp_path / "read"
    saved.mkdir(), read.mkdir()
    whole = on_ranks(2, saved, as_written, str(tmp_path))[0]
    for theta in on_ranks(1, read, resumed, str(tmp_path), whole)[0].values():
        for key, value in alone(RUNS["rows"])[0].items():
            assert float((theta[key] - value).abs().max()) < BUDGET, key
