"""LSTM and GRU in an exported file: sparse products with the library, the same results without, and who decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import topkast

HIDDEN = 64


class Layer(nn.Module):
    """A recurrent layer with states from outside, or from zeros."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = kind(48, HIDDEN, **options)
        self.is_lstm = kind is nn.LSTM

    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> Any:
        if h is None:
            return self.layer(x)
        return self.layer(x, (h, h.flip(-1)) if self.is_lstm else h)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of its inner graphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes(attribute.g)


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in nodes(onnx.load(path).graph))


def runs(path: Path, *inputs: torch.Tensor) -> list[list[np.ndarray]]:
    """The outputs without topkast's library, and with it."""
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {value.name: x.numpy() for value, x in zip(plain.get_inputs(), inputs, strict=True)}
    return [session.run(None, feeds) for session in (plain, topkast.onnx.session(path))]


CASES: list[tuple[Any, dict[str, Any], tuple[int, int]]] = [
    (nn.LSTM, {}, (4, 1)),
    (nn.LSTM, {"bidirectional": True, "num_layers": 2, "batch_first": True}, (1, 1)),
    (nn.LSTM, {"bias": False}, (16, 1)),
    (nn.GRU, {}, (4, 1)),
    (nn.GRU, {"bidirectional": True, "num_layers": 2}, (16, 1)),
    (nn.GRU, {"bias": False, "batch_first": True}, (1, 1)),
]
QUICK = [(1, True), (3, False)]


@pytest.mark.parametrize(
    ("kind", "options", "block", "states"),
    [
        pytest.param(*case, states, marks=() if (i, states) in QUICK else pytest.mark.long)
        for i, case in enumerate(CASES)
        for states in (False, True)
    ],
)
def test_the_weights_are_sparse_and_the_results_those_of_pytorch(
    kind: Any, options: dict[str, Any], block: tuple[int, int], states: bool, tmp_path: Path
) -> None:
    model = topkast.sparsify(Layer(kind, **options), fwd=0.9, min_size=100, block=block).eval()
    count = (2 if options.get("bidirectional") else 1) * options.get("num_layers", 1)
    inputs = [torch.randn(7, 7, 48)] + ([torch.randn(count, 7, HIDDEN)] if states else [])
    result = topkast.export(model, tmp_path / "model.onnx", tuple(inputs), format="custom")
    found = kinds(tmp_path / "model.onnx")
    assert found["Scan"] == count and found["SparseMatMul"] == 2 * count
    assert not {"LSTM", "GRU", "MatMul", "Gemm"} & set(found)
    names = {name for name, parameter in topkast.densify(model).named_parameters() if parameter.dim() == 2}
    assert {site.name for site in result.sites if site.format == "custom"} == names
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(model(*inputs))
    for given in runs(tmp_path / "model.onnx", *inputs):
        for y, tensor in zip(given, wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(y), tensor, rtol=1e-5, atol=1e-6)


def test_other_batches(tmp_path: Path) -> None:
    model = topkast.sparsify(Layer(nn.LSTM), fwd=0.9, min_size=100, block=(4, 1)).eval()
    axes = {"x": {1: "batch"}}  # torch.export fixes the number of steps
    result = topkast.export(
        model, tmp_path / "model.onnx", {"x": torch.randn(5, 3, 48)}, format="custom", dynamic_shapes=axes
    )
    assert result.inputs == {"x": [5, "batch", 48]}
    for batch in (1, 2, 33):
        x = torch.randn(5, batch, 48)
        with torch.no_grad():
            wanted = torch.utils._pytree.tree_leaves(model(x))
        for given in runs(tmp_path / "model.onnx", x):
            for y, tensor in zip(given, wanted, strict=True):
                torch.testing.assert_close(torch.from_numpy(y), tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("format", "hidden", "fwd", "scans"),
    [
        ("auto", 64, 0.9, 0),
        ("auto", 512, 0.9, 1),
        pytest.param("auto", 512, 0.5, 0, marks=pytest.mark.long),
        pytest.param("compact", 512, 0.9, 0, marks=pytest.mark.long),
        ("custom", 64, 0.5, 1),
    ],
)
def test_products_only_where_they_are_faster(format: str, hidden: int, fwd: float, scans: int, tmp_path: Path) -> None:
    """Small or dense recurrences stay ONNX's node, with weights in the smallest format."""
    torch.manual_seed(0)
    layer = topkast.sparsify(nn.LSTM(hidden, hidden), fwd=fwd, min_size=100, block=(4, 1)).eval()
    result = topkast.export(layer, tmp_path / "model.onnx", (torch.randn(3, 2, hidden),), format=format)
    found = kinds(tmp_path / "model.onnx")
    assert (found["Scan"], found["LSTM"]) == (scans, 1 - scans)
    stored = {site.format for site in result.sites if "weight" in site.name}
    assert stored == {"custom"} if scans else "custom" not in stored


def test_what_is_not_pytorchs_layer_stays(tmp_path: Path) -> None:
    """A recurrence whose matrix is dense gains nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(48, 64))
    topkast.sparsify(model, fwd=0.9, min_size=100, exclude="*hh*")
    topkast.export(model, tmp_path / "model.onnx", (torch.randn(3, 2, 48),), format="custom")
    assert kinds(tmp_path / "model.onnx")["LSTM"] == 1
