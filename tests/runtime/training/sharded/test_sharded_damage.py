"""A sharded model and bad checkpoints, and a rank that dies: all others get an error, and nothing is half done."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_model_state_dict

import topkast
from topkast.compiler.checkpoint import together
from topkast.compiler.checkpoint.tensor_file import SUMS
from topkast.runtime.state.content.shards.shard import Shard
from topkast.tests.support.processes.sharded import OPTIMIZERS, Run, build, on_ranks, sharded, start, train

RUN = Run()
COLUMNS = "blocks.0.up.sparse_state.weight.cols"


def _changed(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
    with safe_open(path, "pt") as file:
        header = {key: value for key, value in file.metadata().items() if key != SUMS}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(tensors)
    changed = path.with_name(f"changed-{len(list(path.parent.iterdir()))}")
    save_file(tensors, changed, header)
    return str(changed)


def _full(file: Any, data: Any) -> None:
    raise OSError("no space left")


def _save_to_a_full_disk(model: Any, optimizer: Any, path: str) -> None:
    given = together._NewFile._write
    together._NewFile._write = _full
    try:
        topkast.save(model, path, optimizer)
    finally:
        together._NewFile._write = given


def _load_other_columns(model: Any, rank: int) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if rank == 1:
        state[COLUMNS].to_local().fill_(255)
    model.load_state_dict(state)


def _load_without(model: Any, folder: str) -> None:
    state = {**get_model_state_dict(model), "another": torch.zeros(3)}
    dcp.load({"model": state}, checkpoint_id=f"{folder}/dcp")


def refused(folder: str, changed: dict[str, str]) -> dict[str, str]:
    rank = dist.get_rank()
    model = sharded(RUN)
    optimizer = OPTIMIZERS[RUN.optimizer](model.parameters())
    train(model, optimizer, rank, 2, slice(4))
    kept = Path(folder) / "kept"
    topkast.save(model, kept, optimizer)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=f"{folder}/dcp")
    train(model, optimizer, rank, 2, slice(4, 6))
    before, bytes_before = topkast.dense_state_dict(model, values="all", full=True), kept.read_bytes()
    cases: dict[str, Callable[[], Any]] = {
        **{name: (lambda path=path: topkast.load(model, path, optimizer)) for name, path in changed.items()},
        "file on one rank": lambda: topkast.load(model, kept if rank == 0 else f"{kept}s", optimizer),
        "no folder": lambda: topkast.save(model, f"{folder}/none/c", optimizer),
        "full disk": lambda: _save_to_a_full_disk(model, optimizer, str(kept)),
        "columns on one rank": lambda: _load_other_columns(model, rank),
        "missing entry": lambda: _load_without(model, folder),
    }
    found = {}
    for name, do in cases.items():
        try:
            do()
            found[name] = "nothing"
        except (topkast.CheckpointError, RuntimeError, dcp.api.CheckpointException) as error:
            found[name] = f"{type(error).__name__}: {error}"
        now = topkast.dense_state_dict(model, values="all", full=True)
        assert all(torch.equal(value, before[key]) for key, value in now.items()), name
        assert kept.read_bytes() == bytes_before, name
    left = sorted(path.name for path in Path(folder).iterdir() if path.name.startswith(".kept"))
    assert not left, left
    topkast.load(model, kept, optimizer)
    train(model, optimizer, rank, 2, slice(4, 6))
    now = topkast.dense_state_dict(model, values="all", full=True)
    assert all(torch.equal(value, before[key]) for key, value in now.items())
    return found


SAID = {
    "no tensor": "CheckpointError: .*missing: blocks.0.up.bias",
    "broken index": "CheckpointError: .*blocks.0.up.weight: a column is outside",
    "no state": "CheckpointError: .*missing tensors: optimizer/",
    "file on one rank": "CheckpointError: .*kepts: no such file",
    "no folder": "CheckpointError: .*none/c: cannot be written",
    "full disk": "CheckpointError: .*kept: cannot be written .*no space left",
    "columns on one rank": "(?s)RuntimeError: .*the index is broken: ",
    "missing entry": "(?s)CheckpointException: .*Missing key in checkpoint state_dict: model.another",
}


def test_every_rank_gets_the_error_and_nothing_has_changed(tmp_path: Path) -> None:
    model = build(RUN)
    optimizer = OPTIMIZERS[RUN.optimizer](model.parameters())
    train(model, optimizer, steps=slice(3))
    topkast.save(model, tmp_path / "one", optimizer)
    changed = {
        "no tensor": _changed(tmp_path / "one", lambda tensors: tensors.pop("blocks.0.up.bias")),
        "broken index": _changed(tmp_path / "one", lambda tensors: tensors[COLUMNS][-1].fill_(255)),
        "no state": _changed(tmp_path / "one", lambda tensors: tensors.pop("optimizer/2/exp_avg")),
    }
    found = on_ranks(2, tmp_path, refused, str(tmp_path), changed)
    for rank in found:
        assert rank.keys() == SAID.keys()
        for name, pattern in SAID.items():
            with pytest.raises(AssertionError, match=pattern):
                raise AssertionError(rank[name])


def _die_at(call: int, given: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; its n-th call on rank 1 ends the process."""
    calls = [0]

    def function(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and dist.get_rank() == 1:
            os._exit(0)
        return given(*args, **options)

    return function


def dying(rank: int, folder: str, where: str) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{where}", rank=rank, world_size=2, timeout=patience)
    run = Run(options={"balanced": False})
    model = sharded(run)
    optimizer = OPTIMIZERS[run.optimizer](model.parameters())
    train(model, optimizer, rank, 2, slice(2))
    topkast.save(model, f"{folder}/{where}.kept", optimizer)
    text = "nothing"
    try:
        if where == "refresh":
            Shard.gather = _die_at(5, Shard.gather)
            train(model, optimizer, rank, 2, slice(2, 6))
        else:
            dist.send = _die_at(5, dist.send)
            topkast.save(model, f"{folder}/{where}.kept", optimizer)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    Path(folder, f"{where}.said").write_text(text)
    os._exit(0)


@pytest.mark.long
@pytest.mark.parametrize("where", ["refresh", "save"])
def test_a_rank_that_dies_leaves_the_last_checkpoint_whole(where: str, tmp_path: Path) -> None:
    start(2, dying, str(tmp_path), where)
    assert "Error" in (said := (tmp_path / f"{where}.said").read_text()), said
    run = Run(options={"balanced": False})
    model = build(run)
    optimizer = OPTIMIZERS[run.optimizer](model.parameters())
    topkast.load(model, tmp_path / f"{where}.kept", optimizer)
    train(model, optimizer, steps=slice(2, 4))
    assert not list(tmp_path.glob(".*.part"))
