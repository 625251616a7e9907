"""Add the bias of a convolution by a node of its own if the convolution's weight is computed.

``onnxruntime.quantization.quantize_dynamic`` refuses a convolution with a bias whose weight is no constant. ONNX
Runtime joins the two nodes again while it loads the file, once it has folded the weight.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .graph import Builder, array_of, constant


def split_conv_bias(model: ir.Model) -> None:
    """Change ``model`` in place."""
    for node in list(model.graph):
        if node.op_type != "Conv" or node.domain or len(node.inputs) < 3:
            continue
        x, weight, bias = node.inputs[:3]
        if x is None or weight is None or weight.is_initializer() or constant(bias) is None or weight.shape is None:
            continue
        assert bias is not None and bias.name is not None
        builder = Builder(model.graph, str(node.name or node.outputs[0].name))
        ones = [1] * (weight.shape.rank() - 2)
        array = np.reshape(array_of(bias), (1, -1, *ones))
        plain = builder.op("Conv", [x, weight], dict(node.attributes), name=f"{builder.label}.plain")
        builder.replace([node], builder.node("Add", plain, builder.constant(f"{bias.name}.{len(ones)}d", array)))
