"""Activations in the forms that exporters write go into our nodes, and near misses do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import helper, numpy_helper

from topkast.passes.onnx.convert import Wanted
from topkast.runtime import native
from topkast.tests.support.models.product_files import dense_file, session, sparse_matrix
from topkast.tests.support.protobuf import convert
from topkast.tests.support.stated import assert_stated

pytestmark = pytest.mark.skipif(native.path() is None, reason="the ONNX Runtime library is not built")
ROOT = math.sqrt(2 / math.pi)
ERF = ("Add", ("Erf", ("Div", "h", math.sqrt(2))), 1.0)
CUBIC = ("Mul", ("Pow", "h", 3.0), 0.044715)
TANH = ("Add", 1.0, ("Tanh", ("Mul", ("Add", CUBIC, "h"), ROOT)))


@pytest.mark.parametrize("dims", [(), (1,), (1, 1)])
@pytest.mark.parametrize(
    "expression, ending",
    [
        (("Relu", "h"), "Relu"),
        (("Mul", ("Sigmoid", "h"), "h"), "Silu"),
        (("Mul", "h", ("Mul", ERF, 0.5)), "Gelu"),
        (("Mul", ERF, ("Mul", "h", 0.5)), "Gelu"),
        (("Mul", ("Mul", ERF, "h"), 0.5), "Gelu"),
        (("Mul", ("Mul", 0.5, TANH), "h"), "GeluTanh"),
        (("Mul", ("Mul", 0.5, "h"), TANH), "GeluTanh"),
        (("Mul", 0.5, ("Mul", "h", TANH)), "GeluTanh"),
        (("Mul", "h", ("Mul", ERF, 0.51)), None),
        (("Mul", "h", ("Mul", ("Add", ("Erf", ("Div", math.sqrt(2), "h")), 1.0), 0.5)), None),
        (("Mul", "h", "h"), None),
    ],
)
def test_forms(expression: tuple, ending: str | None, dims: tuple[int, ...]) -> None:
    """A constant of more dimensions than one could add some to the result, so its activation stays."""
    model = dense_file(sparse_matrix(16, 24, (1, 1), 0.2), np.ones(16, np.float32))
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "product"
    model.graph.node[1].output[0] = "h"
    constants = 0

    def add(part: tuple | float | str, name: str) -> str:
        nonlocal constants
        if isinstance(part, str):
            return part
        if isinstance(part, float):
            constants += 1
            model.graph.initializer.append(numpy_helper.from_array(np.full(dims, part, np.float32), name))
        else:
            operands = [add(operand, f"{name}.{i}") for i, operand in enumerate(part[1:])]
            model.graph.node.append(helper.make_node(part[0], operands, [name]))
        return name

    add(expression, "y")
    x = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    (plain,) = session(model).run(None, {"x": x})
    convert(model, Wanted("custom"))
    fused = ending is not None and not (constants and len(dims) > 1)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == [f"SparseMatMul{ending}"] if fused else kinds[0] == "SparseMatMul"
    assert_stated(model, {"x": x})
    np.testing.assert_allclose(session(model).run(None, {"x": x})[0], plain, rtol=1e-5, atol=1e-5)
