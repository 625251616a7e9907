"""Exported files: run again here, apart from the export's own check; and what cannot be exported leaves nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topkast
from topkast.compiler.export import parity
from topkast.tests.support.stated import assert_valid
from topkast.tests.support.truth.builders import CASES


def _run(path: Path, *tensors: Tensor) -> list[Tensor]:
    assert_valid(onnx.load(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feeds)]


def _reference(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        output = model(*args, **kwargs)
    return getattr(output, "logits", output)


@pytest.mark.long
@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm"])
def test_models(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = topkast.sparsify(case.model(), 0.7, min_size=1)
    ((inputs, target),) = case.batches(1)
    case.loss(model(*inputs), target).backward()  # BatchNorm's statistics move
    result = topkast.export(model, tmp_path / "model.onnx", inputs)
    assert model.training
    assert result.path == tmp_path / "model.onnx" and result.bytes == result.path.stat().st_size
    assert result.max_error is not None and result.max_error < 1e-4 and not result.notes
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    (shape,) = result.inputs.values()
    assert shape == ["batch", *inputs[0].shape[1:]]
    assert "max error" in str(result) and "[batch, " in str(result)
    more = torch.cat([inputs[0]] * 3)
    torch.testing.assert_close(_run(result.path, more)[0], _reference(model, more), rtol=1e-4, atol=1e-5)


def test_the_graph_reads_like_the_model(tmp_path: Path) -> None:
    model = topkast.sparsify(CASES["mlp"].model(), 0.7, min_size=1)
    topkast.export(model, tmp_path / "m.onnx", torch.randn(1, 20), format="dense")  # a batch of one stays dynamic
    graph = onnx.load(tmp_path / "m.onnx").graph
    weights = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    for key, value in topkast.dense_state_dict(model).items():
        assert torch.equal(weights[key], value)
    assert b"site-packages" not in (tmp_path / "m.onnx").read_bytes()
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


class Two(nn.Module):
    """Two inputs, a flag, and outputs of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 30), nn.Linear(7, 30)

    def forward(self, a: Tensor, mask: Tensor | None = None, *, pair: dict[str, Tensor], scale: float = 1.0) -> Any:
        hidden = scale * self.left(a) + self.right(pair["b"])
        if mask is not None:
            hidden = hidden.masked_fill(mask, 0.0)
        return {"hidden": F.gelu(hidden), "none": None, "best": [hidden.argmax(-1)]}


def test_nested_inputs_and_outputs(tmp_path: Path) -> None:
    model = topkast.sparsify(Two(), 0.5, min_size=1, include=["*.weight"])
    a, b, mask = torch.randn(4, 12), torch.randn(4, 7), torch.rand(4, 30) > 0.5
    kwargs = {"a": a, "pair": {"b": b}, "scale": 2.0, "mask": mask}
    result = topkast.export(model, tmp_path / "two.onnx", kwargs)
    assert list(result.outputs) == ["hidden", "best_0"]
    assert {"a", "pair_b", "mask"} == set(result.inputs)
    session = onnxruntime.InferenceSession(str(result.path))
    hidden, best = session.run(None, {"a": a.numpy(), "pair_b": b.numpy(), "mask": mask.numpy()})
    expected = _reference(model, **kwargs)
    torch.testing.assert_close(torch.from_numpy(hidden), expected["hidden"])
    assert torch.equal(torch.from_numpy(best), expected["best"][0])


@pytest.mark.long
def test_a_transformers_model_with_its_cache_on(tmp_path: Path) -> None:
    model = topkast.sparsify(CASES["gpt2"].model(), min_size=500)
    model.config.use_cache = True
    tokens = torch.randint(0, 41, (2, 12))
    example = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    result = topkast.export(model, tmp_path / "gpt2.onnx", example)
    assert list(result.inputs) == ["input_ids", "attention_mask"] and list(result.outputs) == ["logits"]
    assert result.inputs["input_ids"] == ["batch", 12] and not result.notes
    assert model.config.use_cache
    more = torch.randint(0, 41, (5, 12))
    given = _run(result.path, more, torch.ones_like(more))[0]
    torch.testing.assert_close(given, _reference(model, more), rtol=1e-4, atol=1e-5)


def test_sizes_that_the_user_names(tmp_path: Path) -> None:
    model = topkast.sparsify(CASES["encoder"].model(), min_size=500)
    shapes = {"x": {0: torch.export.Dim("rows", max=8), 1: torch.export.Dim("length", max=64)}}
    result = topkast.export(model, tmp_path / "e.onnx", (torch.randn(2, 7, 12),), dynamic_shapes=shapes)
    assert result.inputs == {"x": ["rows", "length", 12]}
    x = torch.randn(5, 11, 12)
    torch.testing.assert_close(_run(result.path, x)[0], _reference(model, x), rtol=1e-4, atol=1e-5)
    with pytest.raises(topkast.ExportError, match="no argument 'y'"):
        topkast.export(model, tmp_path / "e.onnx", (torch.randn(2, 7, 12),), dynamic_shapes={"y": None})


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


class Numbers(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * float(np.maximum(x.sum().numpy(), 1))


class Loop(Branch):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        while y.norm() > 1:
            y = y / 2
        return y


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 30)
        self.register_buffer("offset", torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.offset


def test_a_batch_size_in_the_code_is_noted(tmp_path: Path) -> None:
    model = topkast.sparsify(Fixed(), min_size=500)
    result = topkast.export(model, tmp_path / "f.onnx", torch.randn(4, 20))
    assert result.inputs == {"x": [4, 20]} and "fixed at 4" in str(result)


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = tmp_path / "m.onnx", torch.randn(3, 20)
    model = topkast.sparsify(CASES["mlp"].model(), 0.7, min_size=1)
    with pytest.raises(topkast.ConfigError, match=r"format='onnx': must be one of 'auto', .*'dense'"):
        topkast.export(model, path, x, format="onnx")
    with pytest.raises(topkast.ConfigError, match="opset=9"):
        topkast.export(model, path, x, opset=9)
    with pytest.raises(topkast.ModelError, match="not converted"):
        topkast.export(CASES["mlp"].model(), path, x)
    with pytest.raises(topkast.ExportError, match="example_inputs"):
        topkast.export(model, path, (x, x))
    with pytest.raises(topkast.ExportError, match="does not run on them"):
        topkast.export(model, path, torch.randn(3, 21))
    with pytest.raises(topkast.ExportError, match=r"folder .* does not exist"):
        topkast.export(model, tmp_path / "none" / "m.onnx", x)
    for kind in (Branch, Numbers, Loop):
        advice = (
            rf"could not trace {kind.__name__}: .*not branch on values .*torch\.where.*numpy arrays or Python numbers"
        )
        with pytest.raises(topkast.ExportError, match=advice):
            topkast.export(topkast.sparsify(kind(), min_size=500), path, x)
    monkeypatch.setattr(parity, "ROUNDINGS", 0)
    monkeypatch.setattr(parity, "NOISE", 0)
    with pytest.raises(topkast.ExportError, match="does not agree with PyTorch: output 'output' is off by"):
        topkast.export(model, path, torch.randn(64, 20))
    assert list(tmp_path.iterdir()) == []
    result = topkast.export(model, path, x, verify=False)
    assert result.max_error is None and "not verified" in str(result)


def test_checks_on_values_are_left_out(tmp_path: Path) -> None:
    """A file cannot raise an error, and ONNX has no operator for what asks whether to."""

    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            torch._check(torch._is_all_true(x.abs() < 100).item())
            return self.layer(x)

    model = topkast.sparsify(Checked(), min_size=1, example_inputs=(torch.randn(3, 6),))
    assert topkast.export(model, tmp_path / "m.onnx", (torch.randn(3, 6),), format="dense").notes == []


class Masked(nn.Module):
    """A decoder layer or an encoder, given a mask by name."""

    def __init__(self, inner: nn.Module, name: str, targets: bool) -> None:
        super().__init__()
        self.inner, self.name, self.targets = inner, name, targets

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.inner(*((x, x) if self.targets else (x,)), **{self.name: mask})


@pytest.mark.long
@pytest.mark.parametrize("kind", ["padding", "rows", "causal"])
def test_masks_of_torch_transformers(kind: str, tmp_path: Path) -> None:
    """Queries that see nothing are given zeros, not NaN, and nn.TransformerEncoder does not ask whether its mask is
    causal."""
    x, seen = torch.randn(5, 8), torch.tensor([0.0, 0.0, -torch.inf, 0.0, 0.0])
    if kind == "causal":
        layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)
        model, masks = Masked(layers, "mask", False), [nn.Transformer.generate_square_subsequent_mask(5)]
    elif kind == "padding":
        model = Masked(nn.TransformerDecoderLayer(8, 2, 16), "tgt_key_padding_mask", True)
        masks = [seen != 0, torch.ones(5, dtype=torch.bool)]
    else:
        model = Masked(nn.TransformerDecoderLayer(8, 2, 16), "tgt_mask", True)
        masks = [seen.expand(5, 5).clone(), torch.zeros(5, 5).index_fill(0, torch.tensor(1), -torch.inf)]
    sparse = topkast.sparsify(model, 0.5, min_size=1, example_inputs=(x, masks[0]))
    result = topkast.export(sparse, tmp_path / "m.onnx", (x, masks[0]))
    for mask in masks:
        wanted = _reference(sparse, x, mask)
        assert bool(wanted.isfinite().all())
        torch.testing.assert_close(_run(result.path, x, mask)[0], wanted, rtol=1e-4, atol=1e-5)
