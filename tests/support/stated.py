"""What a file states of its values: held to ONNX's own inference, and to what really comes out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from topkast.passes.onnx.check_file import check

Array = np.ndarray


def assert_valid(model: onnx.ModelProto, **shapes: tuple[int, ...]) -> None:
    """The full check, as the export makes it of every file: sparse constants count as dense inputs.

    Args:
        model: stays as it is.
        shapes: of inputs and outputs in a run, by name, to be stated of them for the check.
    """
    if shapes:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for value in [*copy.graph.input, *copy.graph.output]:
            if value.name in shapes:
                kind = value.type.tensor_type.elem_type
                value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shapes[value.name]))
        model = copy
    sparse = bool(model.graph.sparse_initializer)
    if not sparse:
        onnx.checker.check_model(model, full_check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        onnx.save(model, path)
        check(path, sparse)


def assert_stated(model: onnx.ModelProto, feeds: dict[str, Array], where: str = "") -> None:
    """Valid; and every value of which the file states a shape has that shape when the file runs."""
    assert_valid(model)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {value.name for value in watched.graph.output}
    watched.graph.output.extend(value for value in model.graph.value_info if value.name not in given)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4  # 3 would tell of shapes that differ, and go on
    made = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in made.get_inputs()}
    found = made.run(None, {name: array for name, array in feeds.items() if name in names})
    sizes = dict[str, int]()
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, np.shape(feeds.get(value.name, ())), strict=False):
            if dim.dim_param:
                sizes[dim.dim_param] = size
    for value, array in zip(watched.graph.output, found, strict=True):
        if not value.type.tensor_type.HasField("shape"):
            continue
        dims = value.type.tensor_type.shape.dim
        assert len(dims) == array.ndim, f"{value.name}: of another rank {where}"
        for dim, size in zip(dims, array.shape, strict=True):
            said = dim.dim_value if dim.HasField("dim_value") else sizes.get(dim.dim_param, size)
            assert said == size, f"{value.name}: {said} is stated, {size} comes out {where}"
