"""``topkast.load(..., inference=True)``: A only, the same bits as the trained model, and no way to train by mistake."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import topkast
from topkast.compiler.backend import topkast_aot_eager
from topkast.compiler.checkpoint.tensor_file import SUMS
from topkast.runtime.state.model import sites
from topkast.tests.support.truth.builders import CASES


class Net(nn.Module):
    """Convolutions (one grouped), norms, linear layers, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv = nn.Conv2d(32, 64, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(64)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)
        self.again = nn.Linear(64, 256)
        self.again.weight = self.up.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.conv(self.stem(x).relu())).relu().mean((2, 3))
        return self.again(self.down(self.up(h).relu())).tanh()


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "B is A": {"bwd": 0.9},
    "B is everything": {"bwd": 0.0},
    "A is everything": {"fwd": 0.0, "bwd": 0.0},
    "4x1": {"block": (4, 1)},
    "16x16": {"block": (16, 16), "fwd": 0.7, "bwd": 0.5},
    "3x5, padded": {"block": (3, 5), "balanced": False},
    "unbalanced": {"balanced": False},
    "include": {"include": "*.weight", "exclude": ["down.*"]},
    "exclude": {"exclude": "conv.*"},
    "by layer": {"distribution": {"up.*": (0.5, 0.2)}},
    "on disk": {"reservoir": "disk"},
    "exploration has ended": {"stop_exploring_after": 2},
    "gradual pruning": {"method": "gmp", "stop_exploring_after": 4},
    "rigl": {"method": "rigl", "exclude": "up.*"},
    "straight-through": {"method": "magnitude-ste"},
    "static": {"method": "static", "refresh_every": 100},
}


def trained(options: dict[str, Any], path: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model after three steps and a refresh, saved to ``path`` with its optimizer, in evaluation mode."""
    torch.manual_seed(0)
    model = topkast.sparsify(Net().to(dtype), min_size=500, **{"fwd": 0.9, "refresh_every": 2, **options})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        model(X.to(dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    topkast.save(model, path, optimizer)
    return model.eval()


def plain(device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(5)
    with torch.device(device):
        return Net().to(dtype)


def loaded(path: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    model = plain(device, dtype)
    topkast.load(model, path, inference=True)
    return model


def nbytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_forward_is_that_of_the_trained_model_bit_for_bit(name: str, device: str, tmp_path: Path) -> None:
    model = trained(OPTIONS[name], tmp_path / "run")
    with torch.no_grad():
        wanted = model(X)
        ours = loaded(tmp_path / "run", device)
        assert torch.equal(ours(X), wanted)
    assert not ours.training
    assert ours.again.weight.equal(ours.up.weight) and ours.up._parameters["weight"] is ours.again._parameters["weight"]
    for name, site in sites(ours).items():
        assert (
            site.original.numel()
            == sites(model)[name].row_fwd.sub(sites(model)[name].row_ptr[:-1]).sum() * site.geometry.unit
        )
        assert (site.reservoir.numel(), site.ever.numel(), site.original.grad) == (0, 0, None)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bfloat16(device: str, tmp_path: Path) -> None:
    model, x = trained({"block": (4, 1)}, tmp_path / "run", torch.bfloat16), X.bfloat16()
    ours = loaded(tmp_path / "run", device, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(ours(x), model(x))
        assert ours(x).dtype == torch.bfloat16
    before = plain()
    with pytest.raises(topkast.CheckpointError, match=r"bfloat16 .* in the file, float32 .* in the model"):
        topkast.load(before, tmp_path / "run", inference=True)
    assert before.up.weight.equal(plain().up.weight) and type(before.up) is nn.Linear


@pytest.mark.parametrize("case", ["tied", "bilstm", "attention", "conv_transpose", "experts", "hf_conv1d"])
def test_other_models(case: str, tmp_path: Path) -> None:
    model = topkast.sparsify(CASES[case].model(0), min_size=500).eval()
    topkast.save(model, tmp_path / "run")
    ours = CASES[case].model(1)
    topkast.load(ours, tmp_path / "run", inference=True)
    ((inputs, _),) = CASES[case].batches(1)
    with torch.no_grad():
        assert torch.equal(ours(*inputs), model(*inputs))


def test_compiled(tmp_path: Path) -> None:
    trained({"block": (4, 1)}, tmp_path / "run")
    ours = loaded(tmp_path / "run", "meta")
    compiled = torch.compile(ours, backend=topkast_aot_eager)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), ours(X))
    with pytest.raises(topkast.ModelError, match=r"weight: a gradient was asked for.* inference=True"):
        compiled(X).sum().backward()


def test_it_takes_the_memory_of_a_alone(tmp_path: Path) -> None:
    model, dense = trained({}, tmp_path / "run"), nbytes(plain())
    ours = loaded(tmp_path / "run", "meta")
    entries = sum(site.original.numel() for site in sites(ours).values())
    index = sum(tensor.nbytes for site in sites(ours).values() for tensor in site.index)
    sparse = sum(site.geometry.numel for site in sites(ours).values())
    assert nbytes(ours) == dense - 4 * sparse + 4 * entries + index
    assert nbytes(ours) < 0.3 * nbytes(model), "the training model holds all of θ"
    totals = topkast.report(ours).totals["bytes"]
    assert totals["model"]["sparse"] == nbytes(ours) - sum(buffer.nbytes for buffer in ours.norm.buffers())
    assert totals["sites"]["gradient"] == totals["sites"]["reservoir"] == totals["sites"]["optimizer"] == 0
    shown = str(topkast.report(ours))
    assert "loaded for inference only" in shown and "refresh" not in shown


TRAINING: dict[str, Callable[[nn.Module, Path], Any]] = {
    "a gradient": lambda model, path: model(X).sum().backward(),
    "all of": lambda model, path: topkast.dense_state_dict(model, values="all"),
    "a change": lambda model, path: topkast.refresh(model),
    "a change of its sets or values": lambda model, path: topkast.load_dense_state_dict(model, plain().state_dict()),
    "a checkpoint": lambda model, path: topkast.save(model, path.with_name("other")),
    "a checkpoint to train on": lambda model, path: topkast.load(model, path),
    "an optimizer step": lambda model, path: topkast.step(model),
}


@pytest.mark.parametrize("wanted", TRAINING)
def test_training_is_refused(wanted: str, tmp_path: Path) -> None:
    trained({}, tmp_path / "run")
    ours = loaded(tmp_path / "run")
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(topkast.ModelError, match=f"weight: {wanted}.* was asked for.* inference=True .* A only"):
        TRAINING[wanted](ours, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_a_frozen_model_lets_gradients_through(tmp_path: Path) -> None:
    """As the base of an adapter: the inputs get gradients, the weights do not."""
    model = trained({}, tmp_path / "run")
    x, other = X.clone().requires_grad_(), X.clone().requires_grad_()
    for ours, given in ((loaded(tmp_path / "run"), x), (topkast.densify(model), other)):
        ours.requires_grad_(False)(given).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_what_else_a_user_does_with_a_model(tmp_path: Path) -> None:
    model = trained({"block": (4, 1)}, tmp_path / "run")
    ours = loaded(tmp_path / "run", "meta")
    with torch.no_grad():
        wanted = model(X)
        others = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), topkast.densify(ours)]
        assert all(torch.equal(other(X), wanted) for other in others)
        assert all(map(torch.equal, topkast.dense_state_dict(ours).values(), topkast.dense_state_dict(model).values()))
        third = loaded(tmp_path / "run", "meta")
        third.load_state_dict(ours.state_dict())
        assert torch.equal(third(X), wanted)
        assert ours.double()(X.double()).dtype == torch.float64
    result = topkast.export(others[0], tmp_path / "model.onnx", (X,), format="custom")
    assert result.max_error is not None and result.max_error < 1e-5


class Scaled(Net):
    """Has a buffer that no state dict holds, and that nothing initialises."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3), persistent=False)


def test_what_does_not_fit_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    model = trained({}, tmp_path / "run")
    with torch.device("meta"):
        scaled = Scaled()
    small = plain()
    small.down = nn.Linear(256, 32)
    refused: list[tuple[nn.Module, type[Exception], str]] = [
        (model, topkast.ModelError, "already converted"),
        (nn.Linear(64, 64), topkast.CheckpointError, "another model.*conv.weight: not in the model"),
        (small, topkast.CheckpointError, r"down.bias: float32 \[64\] in the file, float32 \[32\] in the model"),
        (scaled, topkast.ModelError, "nothing initialises scale"),
    ]
    for given, error, text in refused:
        before = {key: (value.device, value.detach().clone()) for key, value in given.state_dict().items()}
        with pytest.raises(error, match=text):
            topkast.load(given, tmp_path / "run", inference=True)
        after = given.state_dict()
        assert list(after) == list(before)
        for key, (device, value) in before.items():
            assert after[key].device == device and (value.is_meta or torch.equal(after[key], value))
    assert type(scaled.up) is nn.Linear and all(parameter.is_meta for parameter in scaled.parameters())
    with pytest.raises(topkast.ConfigError, match=r"optimizer: .* cannot be trained"):
        topkast.load(plain(), tmp_path / "run", torch.optim.SGD(plain().parameters()), inference=True)


def _changed(path: Path, tensors: dict[str, torch.Tensor], entry: dict[str, Any]) -> Path:
    """The file with other tensors of the site ``up.weight`` (a number stands for a tensor that is full of it), or with
    other fields of its header."""
    with safe_open(path, framework="pt") as file:
        header = {key: value for key, value in file.metadata().items() if key != SUMS}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = json.loads(header["sites"])
    described["up.weight"].update(entry)
    for name, tensor in tensors.items():
        found[name] = tensor if tensor.dim() else torch.full_like(found[name], int(tensor))
    changed = path.with_name("changed")
    save_file(found, changed, {**header, "sites": json.dumps(described)})
    return changed


@pytest.mark.parametrize(
    ("tensors", "entry", "text"),
    [
        ({"up.sparse_state.weight.cols": torch.tensor(250)}, {}, "a column is outside"),
        ({"up.sparse_state.weight.row_ptr": torch.zeros(3, dtype=torch.int64)}, {}, "an index of the shapes"),
        ({"up.weight": torch.zeros(7)}, {}, r"values of shape \(7,\)"),
        ({}, {"shape": [64, 256]}, "in the model"),
        ({}, {"perm": [0, 0]}, "in the model"),
        ({}, {"lead": 2}, "in the model"),
        ({}, {"block": [0, 1]}, "in the model"),
        ({}, {"block": "wide"}, "has another form"),
    ],
)
def test_a_hostile_file_is_refused(
    tensors: dict[str, torch.Tensor], entry: dict[str, Any], text: str, tmp_path: Path
) -> None:
    trained({"balanced": True}, tmp_path / "run")
    with pytest.raises(topkast.CheckpointError, match=text):
        topkast.load(plain(), _changed(tmp_path / "run", tensors, entry), inference=True)
