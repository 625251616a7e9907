"""Weights in int8: the rounding, and the proof that ONNX Runtime's integer product never saturates with them."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from topkast.passes.onnx.quantise import LIMIT, PAIR, quantise
from topkast.runtime.errors import ConfigError


def integer_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x uint8 [..., M, K] by int8 [..., K, N] in ONNX Runtime."""
    values = [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)]
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, None)
    graph = helper.make_graph([node], "product", values, [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    made = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return made.run(None, {"x": x})[0]


def exact(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x.astype(np.int64) @ weight.astype(np.int64)


SHAPES = [(1, 7, 1), (1, 64, 16), (1, 65, 33), (2, 2, 16), (5, 500, 33), (33, 64, 7), (64, 301, 64)]


def worst(rows: int, columns: int, sign: int) -> np.ndarray:
    """Neighbours that are as large as they can be, and of one sign; some pairs the other way round, some uneven."""
    matrix = np.full((rows, columns), float(sign), np.float32)
    matrix[rows // 2 :, ::2] *= 0.37
    matrix[:, 4::6] *= -1
    return matrix


@pytest.mark.parametrize("m, k, n", SHAPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_no_sum_of_two_products_saturates(m: int, k: int, n: int, sign: int) -> None:
    """Also on CPUs that add two products in 16 bits: x is as large as it can be."""
    found = quantise(worst(n, k, sign), "w")
    x = np.full((m, k), 255, np.uint8)
    weight = np.ascontiguousarray(found.values.T)
    assert np.array_equal(integer_product(x, weight), exact(x, weight))
    batched = np.stack([weight, weight[::-1]]) if k % 2 == 0 else np.stack([weight, weight])
    assert np.array_equal(integer_product(np.stack([x, x]), batched), exact(np.stack([x, x]), batched))


@pytest.mark.parametrize("m, k, n", SHAPES)
def test_a_cpu_that_saturates_adds_the_columns_2j_and_2j_plus_1(m: int, k: int, n: int) -> None:
    """The rule of the quantiser rests on that: a pair that begins at an odd column never saturates, an even one may."""
    x = np.full((m, k), 255, np.uint8)
    for i in range(min(k - 1, 12)):
        weight = np.zeros((k, n), np.int8)
        weight[i : i + 2] = 127
        wrong = not np.array_equal(integer_product(x, weight), exact(x, weight))
        assert not (wrong and i % 2), f"columns {i} and {i + 1}"


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.data())
def test_any_matrix(data: st.DataObject) -> None:
    rows, columns, seed = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40)), data.draw(st.integers(0, 10**6))
    size, zeros = data.draw(st.sampled_from([1e-30, 1e-20, 1.0, 3e37])), data.draw(st.floats(0, 1))
    rng = np.random.default_rng(seed)
    # Magnitudes between 1 and 3: no row loses too much.
    matrix = rng.uniform(1, 3, (rows, columns)) * rng.choice([-1, 1], (rows, columns)) * size
    matrix = (matrix * (rng.random((rows, columns)) >= zeros)).astype(np.float32)
    found = quantise(matrix, "w")
    q = found.values.astype(np.int64)
    assert np.array_equal(q == 0, matrix == 0) and np.abs(q).max(initial=0) <= 127
    pairs = np.pad(q, ((0, 0), (0, columns % 2))).reshape(rows, -1, 2)
    assert np.abs(pairs.clip(min=0).sum(axis=2)).max() <= PAIR and np.abs(pairs.clip(max=0).sum(axis=2)).max() <= PAIR
    error = np.abs(q * found.scale.astype(np.float64)[:, None] - matrix)
    assert (error <= found.scale[:, None] * 0.501).all()
    # A scale is as small as the two rules allow.
    wide = np.pad(np.abs(matrix), ((0, 0), (0, columns % 2))).astype(np.float64)
    most = np.maximum(wide.max(axis=1) / 127, wide.reshape(rows, -1, 2).sum(axis=2).max(axis=1) / PAIR)
    assert (found.scale <= np.maximum(most * 1.000001, np.finfo(np.float32).tiny) + (most == 0)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_int8_has_not(value: float) -> None:
    matrix = np.ones((3, 4), np.float32)
    matrix[1, 2] = value
    with pytest.raises(ConfigError, match=re.escape("layer.weight holds NaN or infinities; keep_float='layer.weight'")):
        quantise(matrix, "layer.weight")


def test_a_row_that_loses_too_much() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((8, 400)).astype(np.float32)
    usual = np.median(np.abs(matrix[5]))
    matrix[5, 7] = 40 * usual
    quantise(matrix, "w")
    matrix[5, 7] = 400 * usual
    with pytest.raises(ConfigError, match=r"w, row 5: its largest weight is .*keep_float='w'"):
        quantise(matrix, "w")
    assert LIMIT == 0.1
    quantise(np.array([[1000, 1]], np.float32), "w")  # the larger one is the usual one too


def test_what_has_no_scale() -> None:
    for shape in ((2, 0), (0, 3), (2, 3)):
        found = quantise(np.zeros(shape, np.float32), "w")
        assert found.values.shape == shape and np.array_equal(found.scale, np.ones(shape[0], np.float32))
