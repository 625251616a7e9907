"""Names of inputs, outputs and axes: the model's own or those that the caller gives, in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import topkast
from topkast.passes.onnx.formats import AUTO, FORMATS


class Net(nn.Module):
    """Returns an argument as it is, under the argument's own name; half of its units are dead."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 32)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.b(self.a(tokens).relu()) * mask[..., None]
        return {"hidden": h, "pooled": self.c(h.mean(1)), "mask": mask}


AXES = {"tokens": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}}
EXAMPLES = {"tokens": torch.randn(2, 5, 64), "mask": torch.rand(2, 5)}


def made(block: tuple[int, int]) -> nn.Module:
    model = topkast.sparsify(Net(), fwd=0.9, min_size=100, block=block)
    state = topkast.dense_state_dict(model, values="all")
    state["a.weight"][::2] = 0
    topkast.load_dense_state_dict(model, state)
    return model


def named(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs, outputs = ({v.name: v.shape for v in side} for side in (session.get_inputs(), session.get_outputs()))
    return inputs, outputs


@pytest.mark.parametrize(
    "format",
    [AUTO, "custom", *(pytest.param(name, marks=pytest.mark.long) for name in FORMATS if name != "custom")],
)
def test_every_format_keeps_names(format: str, tmp_path: Path) -> None:
    model = made((16, 16) if format == "block" else (4, 1))
    result = topkast.export(model, tmp_path / "own.onnx", EXAMPLES, format=format, dynamic_shapes=AXES)
    batch: list[int | str] = ["batch", "sequence"]
    inputs, outputs = named(tmp_path / "own.onnx")
    assert (inputs, outputs) == (result.inputs, result.outputs)
    assert inputs == {"tokens": [*batch, 64], "mask": batch}
    assert outputs == {"hidden": [*batch, 64], "pooled": ["batch", 32], "mask_out": batch}
    assert "the output 'mask' is called 'mask_out' in the file: an input has its name" in result.notes
    assert sum(one.rows for one in result.shrunk) > 0, "units were removed"
    weights = {tensor.name for tensor in onnx.load(tmp_path / "own.onnx").graph.initializer}
    assert {"b.bias", "c.bias"} <= weights

    # Names that torch's exporter itself gives to values inside the graph, and names of weights.
    topkast.export(
        model,
        tmp_path / "given.onnx",
        EXAMPLES,
        format=format,
        input_names=["relu", "a.weight"],
        output_names=["linear", "b.bias", "model.b.bias"],
        dynamic_shapes=AXES,
    )
    inputs, outputs = named(tmp_path / "given.onnx")
    assert inputs == {"relu": [*batch, 64], "a.weight": batch}
    assert outputs == {"linear": [*batch, 64], "b.bias": ["batch", 32], "model.b.bias": batch}
    feeds = [tensor.numpy() for tensor in EXAMPLES.values()]
    ran = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            None, dict(zip(names, feeds, strict=True))
        )
        for path, names in (
            (tmp_path / "own.onnx", ["tokens", "mask"]),
            (tmp_path / "given.onnx", ["relu", "a.weight"]),
        )
    ]
    assert all(map(np.array_equal, *ran))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"input_names": ["x"]}, "input_names: 1 names for 2, which are tokens, mask"),
        ({"input_names": "xy"}, "input_names='xy': must be a list of names"),
        ({"input_names": ["x", ""]}, "must be a list of names"),
        ({"input_names": ["x", 3]}, "must be a list of names"),
        ({"input_names": ["x", "x"]}, "input_names: 'x' occurs twice"),
        ({"output_names": ["x"]}, "output_names: 1 names for 3, which are hidden, pooled, mask"),
        ({"output_names": ["x", "y", "tokens"]}, "output_names: 'tokens' is the name of an input too"),
    ],
)
def test_names_that_do_not_fit(names: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(topkast.ConfigError, match=text):
        topkast.export(made((4, 1)), tmp_path / "model.onnx", EXAMPLES, **names)
    assert list(tmp_path.iterdir()) == []
