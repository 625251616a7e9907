"""Checkpoints: resuming is bit for bit, in another process too, and what does not fit is refused whole."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import topkast
from topkast.compiler.checkpoint.tensor_file import SUMS
from topkast.compiler.checkpoint.validate import check_sites
from topkast.tests.support.truth.builders import CASES

RESUME = """
import sys
import torch
from topkast.tests.compiler.checkpoint.test_checkpoint import made, state_of, train
model, optimizer = made(sys.argv[1], sys.argv[2], seed=99)
import topkast
topkast.load(model, sys.argv[3], optimizer)
train(sys.argv[1], model, optimizer, 7, 14)
torch.save(state_of(model, optimizer), sys.argv[4])
"""

# With explore="random" and no seed in the config, the seed must come out of the file.
OPTIONS: dict[str, Any] = {"min_size": 500, "refresh_every": 4, "explore": "random", "stop_exploring_after": 12}


def made(case: str, optimizer: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer, as the loop of a user would make them."""
    model = topkast.sparsify(CASES[case].model(seed), **OPTIONS)
    if optimizer == "AdamW":
        groups = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in model.parameters()]
        return model, torch.optim.AdamW(groups, lr=torch.tensor(1e-2), amsgrad=True)
    return model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True)


def train(case: str, model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for inputs, target in CASES[case].batches(14)[start:stop]:
        CASES[case].loss(model(*inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def same(one: Any, other: Any) -> bool:
    """Equal bit for bit, and of equal types."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(("case", "optimizer"), [("mlp", "AdamW"), pytest.param("tied", "SGD", marks=pytest.mark.long)])
def test_a_new_process_goes_on_bit_for_bit(case: str, optimizer: str, tmp_path: Path) -> None:
    model, opt = made(case, optimizer)
    train(case, model, opt, 0, 7)  # in the middle of the second interval
    topkast.save(model, tmp_path / "half.safetensors", opt)
    train(case, model, opt, 7, 14)  # two refreshes, and the end of exploration
    script = [RESUME, case, optimizer, str(tmp_path / "half.safetensors")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here, see conftest.py: two sum in another order
    subprocess.run([sys.executable, "-c", *script, str(tmp_path / "end.pt")], check=True, env=one_thread)
    resumed = torch.load(tmp_path / "end.pt")
    assert same(resumed, state_of(model, opt))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_state_of_every_kind_survives(tmp_path: Path) -> None:
    model, opt = made("tied", "AdamW")
    train("tied", model, opt, 0, 3)
    opt.param_groups[0]["note"] = ("x", 1, [None, True], {2: torch.float16})
    for state in opt.state.values():  # wider than its parameter: torch alone would cast it
        state["exp_avg"] = state["exp_avg"].double()
    topkast.save(model, tmp_path / "c", opt)
    other, fresh = made("tied", "AdamW")
    topkast.load(other, tmp_path / "c", fresh)
    assert same(state_of(other, fresh), state_of(model, opt))
    # A refresh right after loading carries the state along.
    topkast.refresh(model)
    topkast.refresh(other)
    assert same(state_of(other, fresh), state_of(model, opt))


def test_the_header_is_readable_and_ties_are_stored_once(tmp_path: Path) -> None:
    model, opt = made("tied", "SGD")
    train("tied", model, opt, 0, 5)
    topkast.save(model, tmp_path / "c", opt)
    with safe_open(tmp_path / "c", "pt") as file:
        header, names = file.metadata(), list(file.keys())
    assert (header["format"], header["format_version"], header["step"]) == ("topkast", "2", "5")
    assert json.loads(header["config"])["fwd"] == 0.9
    assert json.loads(header["sites"])["first.weight"]["shape"] == [24, 24]
    assert json.loads(header["optimizer"])["class"] == "torch.optim.sgd.SGD"
    assert "first.weight" in names
    assert "second.weight" not in names


def test_a_wrapper_saves_and_loads(tmp_path: Path) -> None:
    model, opt = made("mlp", "SGD")
    topkast.save(torch.compile(model, backend="eager"), tmp_path / "c", opt)
    topkast.load(torch.compile(made("mlp", "SGD")[0], backend="eager"), tmp_path / "c")


def _rewrite(path: Path, drop: str = "", **changes: str) -> None:
    with safe_open(path, "pt") as file:
        header = {key: value for key, value in {**file.metadata(), **changes}.items() if key != SUMS}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys() if name != drop}  # noqa: SIM118
    save_file(tensors, path, header)


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c"
    model, opt = made("mlp", "SGD")
    train("mlp", model, opt, 0, 3)

    def refused(message: str, target: Any = None, optimizer: Any = None) -> None:
        target = made("mlp", "SGD")[0] if target is None else target
        before = copy.deepcopy(target.state_dict())
        with pytest.raises(topkast.CheckpointError, match=message):
            topkast.load(target, path, optimizer)
        assert same(target.state_dict(), before)

    refused("no such file")
    path.write_bytes(b"no tensors here")
    refused("not a whole safetensors file")
    save_file({"x": torch.zeros(2)}, path)
    refused("not written by topkast")

    topkast.save(model, path)
    refused("holds no optimizer", model, opt)
    topkast.save(model, path, opt)
    refused("refresh_every: file 4, model 9", topkast.sparsify(CASES["mlp"].model(), **OPTIONS | {"refresh_every": 9}))
    refused("0.weight: sparse in the file, not in the model", topkast.sparsify(CASES["tied"].model(), **OPTIONS))
    refused("missing: 4.extra", _with_buffer())
    refused("float32 .* in the file, float64", made("mlp", "SGD")[0].double())
    other = made("mlp", "SGD")[0]
    refused("SGD in the file, .*Adagrad given", other, torch.optim.Adagrad(other.parameters()))
    refused(r"parameters per group: \[6\]", other, torch.optim.SGD([other[0].bias]))
    refused("parameter 0: ", other, torch.optim.SGD(list(other.parameters())[::-1]))

    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("not a whole safetensors file")
    path.write_bytes(whole)
    _rewrite(path, format_version="3")
    refused("format version 3, this topkast .* reads up to 2")
    path.write_bytes(whole)
    _rewrite(path, sites="{")
    refused("header's 'sites' is missing or broken")
    path.write_bytes(whole)
    _rewrite(path, drop="0.sparse_state.weight.cols")
    refused("missing: 0.sparse_state.weight.cols")
    path.write_bytes(whole)
    _rewrite(path, drop="optimizer/1/momentum_buffer")
    refused("missing tensors: optimizer/1/momentum_buffer", other, torch.optim.SGD(other.parameters(), momentum=0.9))


def _with_buffer() -> nn.Module:
    model = made("mlp", "SGD")[0]
    model[4].register_buffer("extra", torch.zeros(1))
    return model


def test_a_broken_index_is_refused(tmp_path: Path) -> None:
    model, _ = made("mlp", "SGD")
    topkast.save(model, tmp_path / "c")
    with safe_open(tmp_path / "c", "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        header = {key: value for key, value in file.metadata().items() if key != SUMS}
    tensors["0.sparse_state.weight.cols"].view(torch.uint16)[0, 0] = 60_000
    save_file(tensors, tmp_path / "c", header)
    with pytest.raises(topkast.CheckpointError, match=r"0.weight: a column is outside"):
        topkast.load(model, tmp_path / "c")


@pytest.mark.parametrize(("option", "value"), [("distribution", "global"), ("initial", "dense")])
def test_a_value_that_is_gone_is_named_with_the_version_that_wrote_it(option: str, value: str, tmp_path: Path) -> None:
    model, _ = made("mlp", "SGD")
    topkast.save(model, tmp_path / "c")
    with safe_open(tmp_path / "c", "pt") as file:
        config = json.loads(file.metadata()["config"])
    _rewrite(tmp_path / "c", config=json.dumps({**config, option: value}), topkast_version="0.0.9")
    before = copy.deepcopy(model.state_dict())
    message = f"{option}='{value}': must be one of .* no longer supported, and topkast 0.0.9 wrote it"
    with pytest.raises(topkast.CheckpointError, match=message):
        topkast.load(model, tmp_path / "c")
    assert same(model.state_dict(), before)


def test_an_option_that_came_later_has_its_default(tmp_path: Path) -> None:
    model, _ = made("mlp", "SGD")
    topkast.save(model, tmp_path / "c")
    with safe_open(tmp_path / "c", "pt") as file:
        config = json.loads(file.metadata()["config"])
    del config["exploration_decay"]
    _rewrite(tmp_path / "c", config=json.dumps(config))
    topkast.load(made("mlp", "SGD")[0], tmp_path / "c")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    model, opt = made("mlp", "SGD")
    topkast.save(model, tmp_path / "c", opt)
    before = (tmp_path / "c").read_bytes()
    opt.param_groups[0]["thing"] = object()
    with pytest.raises(topkast.CheckpointError, match="thing: a object cannot be written"):
        topkast.save(model, tmp_path / "c", opt)
    assert (tmp_path / "c").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("steps", [3, 4, 5])
def test_plain_state_dicts_resume_bit_for_bit(steps: int) -> None:
    """At step 4 a refresh is due: the first forward makes it before anybody knows the optimizer that was loaded."""
    options: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "min_size": 1, "refresh_every": 4}
    made = [topkast.sparsify(CASES["mlp"].model(seed), **options) for seed in (0, 5)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in made]
    train("mlp", made[0], optimizers[0], 0, steps)
    saved = state_of(made[0], optimizers[0])
    train("mlp", made[0], optimizers[0], steps, 12)
    stateful: tuple[Any, ...] = (made[1], optimizers[1])
    for thing, state in zip(stateful, saved, strict=True):
        thing.load_state_dict(state)
    train("mlp", made[1], optimizers[1], steps, 12)
    assert same(state_of(made[1], optimizers[1]), state_of(made[0], optimizers[0]))


@pytest.mark.parametrize("field", ["shape", "perm", "lead", "block", "n_fwd", "n_bwd"])
def test_a_site_that_differs_in_one_field_is_refused(field: str) -> None:
    site = {"shape": [8, 8], "perm": [0, 1], "lead": 1, "block": [1, 1], "n_fwd": 6, "n_bwd": 12}
    check_sites(Path("file"), {"w": site}, {"w": dict(site)})
    with pytest.raises(topkast.CheckpointError, match=f"w: {field} 7 in the file"):
        check_sites(Path("file"), {"w": site}, {"w": {**site, field: 7}})
