"""Stock ``onnxruntime.quantization.quantize_dynamic`` on exported files, as the page about export says."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

import topkast

ACCEPTED = ["dense", "compact", "block", "custom"]


class Net(nn.Module):
    """Convolutions with a bias, a depthwise one among them, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.depthwise = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.conv = nn.Conv2d(32, 64, 3, padding=1)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(self.depthwise(self.stem(x).relu()).relu()).relu().mean((2, 3))
        return self.down(self.up(h).relu())


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """onnxruntime.quantization logs advice at every call."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def exported(path: Path, format: str, precision: str) -> np.ndarray:
    """The file, and the model's result."""
    model = topkast.sparsify(Net(), fwd=0.9, block=(32, 32) if format == "block" else (4, 1))
    topkast.export(model, path, (X,), format=format, precision=precision)
    with torch.no_grad():
        return model(X).numpy()


def run(path: Path, library: bool = False) -> np.ndarray:
    if library:
        session = topkast.onnx.session(path)
    else:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


CASES = list(itertools.product(ACCEPTED, ["fp32", "fp16"], ["as it is", "quant_pre_process"]))
QUICK = [("custom", "fp32", "as it is"), ("block", "fp16", "quant_pre_process")]


@pytest.mark.parametrize(
    "format, precision, before",
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.long) for case in CASES],
)
def test_the_quantised_file_runs_and_is_close(format: str, precision: str, before: str, tmp_path: Path) -> None:
    source, given, quantised = (tmp_path / name for name in ("model.onnx", "given.onnx", "int8.onnx"))
    y = exported(source, format, precision)
    if before == "quant_pre_process":
        quant_pre_process(source, given)
    else:
        given = source
    quantize_dynamic(given, quantised)
    for library in (False, True):
        assert np.abs(run(quantised, library) - y).max() < 0.1 * np.abs(y).max()
    found, ours = operators(quantised), {"SparseMatMul", "SparseMatMulRelu", "SparseConvRelu"}
    assert found["ConvInteger"] >= 1
    if before == "quant_pre_process":  # ONNX Runtime puts the functions in the place of our nodes, and folds weights
        assert (found["ConvInteger"], found["MatMulInteger"]) == (3, 2) and not ours & set(found)
    elif format == "custom":  # passed over without a word: our nodes stay float
        assert found["MatMulInteger"] == 0 and set(found) >= ours
    else:  # products with a weight that nodes compute stay float
        assert found["MatMulInteger"] == (2 if precision == "fp32" and format != "compact" else 0)


@pytest.mark.parametrize("format", ["compact", "dense"])
def test_onnxruntime_joins_the_bias_again(format: str, tmp_path: Path) -> None:
    """A bias that stands alone for the sake of quantize_dynamic costs nothing when the file runs."""
    exported(tmp_path / "model.onnx", format, "fp16")
    assert operators(tmp_path / "model.onnx")["Add"] == 1, "of the convolution whose weight is computed"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    assert operators(tmp_path / "optimised.onnx")["Add"] == 0
    convolutions = [n for n in onnx.load(tmp_path / "optimised.onnx").graph.node if n.op_type.endswith("Conv")]
    assert [len(node.input) for node in convolutions] == [3, 3, 3]


def test_sparse_constants_are_unknown_to_the_quantiser(tmp_path: Path) -> None:
    """The message is onnxruntime's own. The result of the export says the reason beforehand."""
    model = topkast.sparsify(Net(), fwd=0.9)
    result = topkast.export(model, tmp_path / "model.onnx", (X,), format="sparse_initializer")
    assert any("onnxruntime.quantization cannot read" in note for note in result.notes)
    with pytest.raises(ValueError, match="Invalid tensor name to quantize"):
        quantize_dynamic(tmp_path / "model.onnx", tmp_path / "int8.onnx")
