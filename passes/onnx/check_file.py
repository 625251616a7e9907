"""Whether a file is what ONNX allows, and whether the shapes it states are those of what it computes."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper


def check(path: Path, sparse: bool = False) -> None:
    """onnx.checker's full check of a file: types and shapes are inferred anew and must be those that the file states.

    Inference enters the functions that the file carries, so the check covers the results of topkast's operators too.

    Args:
        path: of the file.
        sparse: whether the file holds sparse constants. No operator takes these, if ONNX is to infer its result; they
            count as dense inputs of their shape, which a runtime makes of them.

    Raises:
        Whatever the checker raises.
    """
    onnx.checker.check_model(str(path), full_check=not sparse)
    if sparse:
        model = onnx.load(str(path), load_external_data=False)
        for tensor in model.graph.sparse_initializer:
            name, kind = tensor.values.name, tensor.values.data_type
            model.graph.input.append(helper.make_tensor_value_info(name, kind, tensor.dims))
        del model.graph.sparse_initializer[:]
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
