"""Checkpoints that are damaged or hostile: refused before anything changes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import topkast
from topkast.compiler.checkpoint.tensor_file import SUMS

from .test_checkpoint import same, state_of


def made(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 8))
    model = topkast.sparsify(model, 0.7, 0.4, min_size=1, refresh_every=2)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    for _ in range(3):
        model(torch.ones(2, 12)).sum().backward()
        optimizer.step()
    return model, optimizer


def refused(path: Path, message: str) -> None:
    model, optimizer = made(1)
    before = state_of(model, optimizer)
    with pytest.raises(topkast.CheckpointError, match=message):
        topkast.load(model, path, optimizer)
    assert same(state_of(model, optimizer), before)


def metadata_of(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    found: dict[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return {key: value for key, value in found.items() if key != SUMS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model, optimizer = made()
    topkast.save(model, tmp_path / "file", optimizer)
    return tmp_path / "file"


def test_every_changed_byte_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    for at in (*range(size, len(whole), (len(whole) - size) // 12), size // 2, size - size // 3):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        refused(path, "damaged: the checksum of|not a whole safetensors file|missing or broken")


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("optimizer/0/exp_avg", lambda t: t.reshape(-1)[:-1].clone(), "exp_avg is float32"),
        ("optimizer/0/exp_avg_sq", lambda t: t.to(torch.int32), "exp_avg_sq is int32"),
        ("optimizer/0/exp_avg", lambda t: t.double(), "exp_avg is float64"),
        ("optimizer/0/step", lambda t: t * float("nan"), "step=tensor"),
        ("0.sparse_state.weight.clock", lambda t: -t, "the clock says step -3"),
    ],
)
def test_the_optimizers_state_and_the_clock_are_checked(path: Path, name: str, changed: Any, message: str) -> None:
    tensors, metadata = load_file(path), metadata_of(path)
    save_file({**tensors, name: changed(tensors[name])}, path, metadata)
    refused(path, message)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("sites", {"0.weight": {"shape": "no"}}),
        ("sites", []),
        ("config", 3),
        ("extra", {"x": {"dtype": "load"}}),
        ("aliases", {"0.weight": 3}),
        ("optimizer", {"class": "torch.optim.adamw.AdamW", "params": 3}),
        ("optimizer", "[" * 5000),
        # Times were read after the model had changed: the file was refused, and the model was the file's.
        ("times", "[" * 5000),
        ("times", ""),
    ],
)
def test_the_header_has_a_schema(path: Path, part: str, value: Any) -> None:
    metadata = metadata_of(path)
    metadata[part] = value if isinstance(value, str) else json.dumps(value)
    save_file(load_file(path), path, metadata)
    refused(path, f"the header's '{part}' is")


def replaced(value: Any, name: str, new: Any) -> Any:
    """A packed dict's content with another value under a name, at whatever depth."""
    if isinstance(value, list) and len(value) == 2 and value[0] == name:
        return [name, new]
    if isinstance(value, dict):
        return {key: replaced(item, name, new) for key, item in value.items()}
    return [replaced(item, name, new) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("name", "new"), [("lr", None), ("betas", None), ("exp_avg", -1), ("exp_avg_sq", None)])
@pytest.mark.parametrize("stepped", [True, False])
def test_a_plain_value_in_the_place_of_a_number_or_a_tensor(path: Path, name: str, new: Any, stepped: bool) -> None:
    """The next step failed in torch: 'int' object has no attribute 'lerp_'."""
    metadata = metadata_of(path)
    packed = json.loads(metadata["optimizer"])
    changed = {**packed, "state": replaced(packed["state"], name, new)}
    assert changed != packed
    save_file(load_file(path), path, {**metadata, "optimizer": json.dumps(changed)})
    model, optimizer = made(1)
    if not stepped:
        optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    before = state_of(model, optimizer)
    with pytest.raises(topkast.CheckpointError, match=f"{name}={new}"):
        topkast.load(model, path, optimizer)
    assert same(state_of(model, optimizer), before)


def test_paths_that_no_file_has() -> None:
    model, _ = made()
    with pytest.raises(topkast.CheckpointError, match="cannot be read"):
        topkast.load(model, "x" * 5000)
    for call in (topkast.load, topkast.save, lambda model, path: topkast.export(model, path, torch.ones(2, 12))):
        with pytest.raises(topkast.ConfigError, match="no path holds a zero byte"):
            call(model, "a\0b")


def test_no_name_of_the_file_is_looked_up_in_torch(path: Path) -> None:
    metadata = metadata_of(path)
    optimizer = json.loads(metadata["optimizer"])
    optimizer["state"]["dict"].append(["note", {"dtype": "load"}])
    save_file(load_file(path), path, {**metadata, "optimizer": json.dumps(optimizer)})
    refused(path, "'optimizer' is broken")


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    model, _ = made()
    with pytest.raises(topkast.CheckpointError, match="only a regular file is replaced"):
        topkast.save(model, tmp_path / "pipe")
    with pytest.raises(topkast.ExportError, match="only a regular file is replaced"):
        topkast.export(model, tmp_path / "pipe", torch.ones(2, 12))
    with pytest.raises(topkast.CheckpointError, match="cannot be written"):
        topkast.save(model, tmp_path / "no folder" / "file")
    topkast.save(model, tmp_path / ("n" * 250))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["n" * 250, "pipe"]
