"""A dense checkpoint is read into a sparse model on the meta device, one tensor at a time."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import topkast
from topkast.compiler.convert.meta import from_file
from topkast.runtime.errors import CheckpointError, ConfigError
from topkast.runtime.memory_pages import trim_heap
from topkast.runtime.state.model import sites

CONVERT: dict[str, Any] = {"fwd": 0.9, "bwd": 0.8, "min_size": 1, "seed": 0}


class Net(nn.Module):
    """Two linear layers, a norm with a buffer in its state dict, and a computed buffer that is not in it."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 16)
        self.register_buffer("shift", torch.arange(16.0), persistent=False)

    def reset_parameters(self) -> None:
        self.shift.copy_(torch.arange(16.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.into(x)).relu()) + self.shift


def trained() -> Net:
    torch.manual_seed(0)
    model = Net()
    model.norm.running_mean.fill_(0.5)
    return model


def on_meta() -> Net:
    with torch.device("meta"):
        return Net()


def shards(state: dict[str, torch.Tensor], folder: Path) -> None:
    names = {key: f"model-{i % 2}.safetensors" for i, key in enumerate(state)}
    for file in set(names.values()):
        save_file({key: state[key] for key, name in names.items() if name == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize("form", ["file", "folder", "shards"])
def test_equals_the_conversion_of_the_dense_model(tmp_path: Path, form: str) -> None:
    model = trained()
    if form == "shards":
        shards(model.state_dict(), tmp_path)
    else:
        save_file(model.state_dict(), tmp_path / "model.safetensors")
    source = tmp_path / "model.safetensors" if form == "file" else tmp_path
    loaded = topkast.sparsify(on_meta(), **CONVERT, init=source)
    expected = topkast.sparsify(model, **CONVERT)
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in expected.state_dict().items())
    assert torch.equal(loaded.shift, torch.arange(16.0))
    for name, site in sites(expected).items():
        assert torch.equal(site.theta(), sites(loaded)[name].theta())


def test_one_weight_is_dense_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a weight is read, each weight that was read before is sparse by now."""
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(5)))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = nn.Sequential(*(nn.Linear(32, 32) for _ in range(5)))
    dense: list[int] = []
    fill = from_file.FromFile._fill

    def counted(self: Any, tensor: torch.Tensor, key: str) -> None:
        if not tensor.is_meta and key.endswith("weight"):
            made = [layer._parameters["weight"] for layer in empty]
            dense.append(sum(not weight.is_meta and tuple(weight.shape) == (32, 32) for weight in made))
        fill(self, tensor, key)

    monkeypatch.setattr(from_file.FromFile, "_fill", counted)
    topkast.sparsify(empty, **CONVERT, init=tmp_path)
    assert dense == [1] * 5


def test_a_base_model_with_a_new_head(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    base = transformers.BertModel(config)
    base.save_pretrained(tmp_path)
    with torch.device("meta"):
        whole, again = transformers.BertForSequenceClassification(config), transformers.BertModel(config)
    with pytest.warns(UserWarning, match=r"does not hold classifier\.weight, classifier\.bias: initialised anew"):
        topkast.sparsify(whole, **CONVERT, init=tmp_path)
    topkast.sparsify(again, **CONVERT, init=tmp_path)
    name = "encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(sites(whole)[f"bert.{name}"].theta(), base.get_parameter(name))
    assert torch.equal(sites(again)[name].theta(), base.get_parameter(name))
    assert torch.equal(again.embeddings.position_ids, base.embeddings.position_ids)


def wrong_shape(folder: Path) -> None:
    state = trained().state_dict()
    save_file({**state, "into.weight": torch.zeros(3, 3)}, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    save_file(trained().state_dict(), folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def other_keys(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")


def missing_shard(folder: Path) -> None:
    shards(trained().state_dict(), folder)
    (folder / "model-1.safetensors").unlink()


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def not_a_number(folder: Path) -> None:
    state = trained().state_dict()
    state["out.weight"][0, 0] = torch.nan
    save_file(state, folder / "model.safetensors")


BAD = {
    wrong_shape: r"into\.weight: shape \(3, 3\) in the checkpoint, \(32, 16\) in the model",
    cut_short: "not a whole safetensors file",
    other_keys: "no parameter of the model",
    missing_shard: r"model-1\.safetensors: no such file",
    broken_index: "broken",
    not_a_number: "NaN",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_bad_checkpoints_leave_the_model_on_meta(tmp_path: Path, damage: Any) -> None:
    damage(tmp_path)
    model = on_meta()
    with pytest.raises(topkast.TopkastError, match=BAD[damage]) as raised:
        topkast.sparsify(model, **CONVERT, init=tmp_path)
    assert isinstance(raised.value, CheckpointError) or damage is not_a_number
    assert all(parameter.is_meta for parameter in model.parameters())
    assert "_topkast" not in vars(model)


def test_a_model_with_values_takes_no_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="init: only for a model on the meta device"):
        topkast.sparsify(trained(), **CONVERT, init=tmp_path)


def test_a_whole_checkpoint_gives_no_warning(tmp_path: Path) -> None:
    save_file(trained().state_dict(), tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        topkast.sparsify(on_meta(), **CONVERT, init=str(tmp_path))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells and resets the peak of memory")
def test_takes_the_memory_of_one_layer_beside_the_sets_on_disk(tmp_path: Path) -> None:
    """12 weights of 4 MiB. The peak is about 40 MiB. It was 143 MiB with untrimmed heap and the reservoir's pages."""

    def mebibytes(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024

    count, width = 12, 1024
    save_file({f"{i}.weight": torch.randn(width, width) for i in range(count)}, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(count)))
    topkast.sparsify(nn.Linear(128, 128), fwd=0.9)  # what the first conversion imports
    trim_heap()
    Path("/proc/self/clear_refs").write_text("5")
    before = mebibytes("VmRSS")
    topkast.sparsify(model, fwd=0.9, bwd=0.8, reservoir="disk", init=tmp_path)
    assert mebibytes("VmHWM") - before < 80
