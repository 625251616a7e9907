"""topkast.SparseMatMulInt8 and SparseConvInt8: the bits of the reference on each instruction set, and hostile files."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from topkast.passes.onnx.blocks import encode
from topkast.runtime import native
from topkast.runtime.reference.int8 import spmm_int8
from topkast.tests.runtime.native.test_native import AVAILABLE
from topkast.tests.support.at_once import wrong_at_once
from topkast.tests.support.damaged import run_damaged
from topkast.tests.support.models.product_files import session, sparse_matrix
from topkast.tests.support.truth.product_layouts import BLOCKS

pytestmark = pytest.mark.skipif(native.path() is None, reason="the ONNX Runtime library is not built")
ACTIVATIONS = {
    "": lambda y: y,
    "Relu": torch.relu,
    "Relu6": F.relu6,
    "Silu": F.silu,
    "Gelu": F.gelu,
    "GeluTanh": lambda y: F.gelu(y, approximate="tanh"),
}
SETS = pytest.mark.parametrize("isa", AVAILABLE)
Parts = dict[str, np.ndarray]


def use(isa: str) -> None:
    """A node keeps the kernels of the instruction set that is in use when its session is made."""
    library = native.library()
    assert library is not None and library.tk_set_isa(native.ISAS.index(isa)) == 0


@pytest.fixture(autouse=True)
def best_again() -> Any:
    yield
    use(AVAILABLE[-1])


def random_weight(rows: int, columns: int, block: tuple[int, int], density: float, seed: int = 0) -> np.ndarray:
    """int8 [rows, columns] over the whole range, -128 too; the first block row is empty, the last is full."""
    kept = sparse_matrix(rows, columns, block, density, seed) != 0
    values = np.random.default_rng(seed).integers(-128, 128, (rows, columns))
    return np.where(kept, values, 0).astype(np.int8)


def parts(weight: np.ndarray, block: tuple[int, int], wide: bool = False, biased: bool = True) -> Parts:
    """The inputs of a node except x."""
    rng = np.random.default_rng(1)
    blocks = encode(weight.astype(np.float32), block)
    found = {
        "values": blocks.values.reshape(-1).astype(np.int8),
        "row_ptr": blocks.row_ptr,
        "cols": blocks.cols.astype(np.int32 if wide else np.uint16),
        "scale": rng.uniform(1e-4, 1, len(weight)).astype(np.float32),
    }
    return found | {"bias": rng.standard_normal(len(weight)).astype(np.float32)} if biased else found


def node_file(kind: str, given: Parts, constant: bool = True, **attributes: Any) -> onnx.ModelProto:
    """One node, its inputs as constants of the file or as inputs of the graph."""
    node = helper.make_node(kind, ["x", *given], ["y"], domain="topkast", **attributes)
    tensors = [numpy_helper.from_array(array, name) for name, array in given.items()]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    others = [helper.make_tensor_value_info(t.name, t.data_type, [None] * len(t.dims)) for t in tensors]
    graph = helper.make_graph([node], "g", [x, *([] if constant else others)], [y], tensors if constant else [])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("topkast", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def product_file(weight: np.ndarray, block: tuple[int, int], given: Parts, act: str = "") -> onnx.ModelProto:
    rows, columns = weight.shape
    return node_file(f"SparseMatMulInt8{act}", given, rows=rows, columns=columns, block=list(block))


def expected(x: np.ndarray, weight: np.ndarray, given: Parts) -> torch.Tensor:
    """The reference, of x [..., columns]."""
    bias = torch.from_numpy(given["bias"]) if "bias" in given else None
    flat = torch.from_numpy(x.reshape(-1, x.shape[-1]))
    y = spmm_int8(flat, torch.from_numpy(weight), torch.from_numpy(given["scale"]), bias)
    return y.reshape(*x.shape[:-1], len(weight))


def check(y: np.ndarray, x: np.ndarray, weight: np.ndarray, given: Parts, where: str = "") -> None:
    assert y.dtype == np.float32 and np.array_equal(y, expected(x, weight, given).numpy(), equal_nan=True), where


@SETS
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block(isa: str, block: tuple[int, int]) -> None:
    """Sizes that are a multiple of nothing, from no row of x to several tiles and chunks."""
    use(isa)
    rng = np.random.default_rng(1)
    weight = random_weight(131, 203, block, 0.2)
    for wide, biased in [(False, True), (True, False)]:
        given = parts(weight, block, wide, biased)
        made = session(product_file(weight, block, given))
        for lead in [(0,), (2, 0), (), (1,), (2,), (3,), (2, 2), (5,), (7,), (15,), (2, 3, 5), (40,), (150,), (1100,)]:
            x = rng.standard_normal((*lead, 203)).astype(np.float32)
            (y,) = made.run(None, {"x": x})
            check(y, x, weight, given, f"{block} {lead} {wide} {biased}")


def rows_of_x(draw: Any, m: int, columns: int) -> np.ndarray:
    """Rows of all kinds: ordinary ones, ones of one sign, far from zero, and numbers that floats barely hold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((m, columns))
    for i in range(m):
        kind = draw(st.sampled_from(["", "", "positive", "negative", "zero", "halves", "tiny", "least", "huge", "far"]))
        if kind in ("positive", "negative"):
            x[i] = abs(x[i]) * (1 if kind == "positive" else -1)
        elif kind == "zero":
            x[i] = rng.choice([0.0, -0.0], columns)
        elif kind == "halves":  # the scale is 1, and every second number lies between two whole ones
            x[i] = rng.integers(0, 511, columns) / 2
            x[i, 0], x[i, -1] = 0, 255
        elif kind == "tiny":
            x[i] *= 1e-38
        elif kind == "least":  # multiples of the smallest number; the scale is rounded to one of them, or to none
            x[i] = rng.integers(-300, 300, columns) * 2.0**-149
        elif kind == "huge":
            x[i] = np.clip(x[i] * 1e38, -1.6e38, 1.6e38)
        elif kind == "far":
            x[i] = x[i] * 1e-3 + 100
    with np.errstate(under="ignore"):
        return x.astype(np.float32)


@pytest.mark.long
@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    draw = data.draw
    rows, columns = draw(st.integers(1, 150)), draw(st.integers(1, 300))
    block = draw(st.sampled_from([*BLOCKS, (12, 1), (24, 1), (7, 2), (1, 64)]))
    weight = random_weight(rows, columns, block, draw(st.floats(0, 1)), columns)
    given = parts(weight, block, draw(st.booleans()), draw(st.booleans()))
    threads, m = draw(st.sampled_from([1, 2])), draw(st.integers(1, 70))
    use(draw(st.sampled_from(AVAILABLE)))
    x = rows_of_x(draw, m, columns)
    (y,) = session(product_file(weight, block, given), threads).run(None, {"x": x})
    check(y, x, weight, given, f"{rows} x {columns} {block} m={m}")


@SETS
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 1), (32, 32)])
def test_nothing_saturates(isa: str, block: tuple[int, int]) -> None:
    """The largest products there are, all of one sign: pairs and quads of them leave 16 bits, sums come near 2^31."""
    use(isa)
    columns = 65_792
    for value in (-128, 127):
        weight = np.full((32, columns), value, np.int8)
        given = parts(weight, block, wide=True)
        made = session(product_file(weight, block, given))
        for m in (1, 3, 17):
            for sign in (1, -1):
                x = np.full((m, columns), sign, np.float32)
                (y,) = made.run(None, {"x": x})
                check(y, x, weight, given, f"{value} {m} {sign}")


def test_rows_whose_sum_could_overflow_are_refused() -> None:
    for columns, fits in [(65_793, True), (65_794, False)]:
        weight = np.full((1, columns), -128, np.int8)
        model = product_file(weight, (1, 1), parts(weight, (1, 1), wide=True))
        if fits:
            session(model)
            continue
        with pytest.raises(Exception, match="a row holds 65794 entries"):
            session(model)


@SETS
@pytest.mark.parametrize("m", [1, 3, 40])
def test_rows_that_are_not_finite_give_nan_and_harm_no_other(isa: str, m: int) -> None:
    use(isa)
    for block in [(1, 1), (4, 1), (16, 1)]:
        weight = random_weight(48, 100, block, 0.3)
        given = parts(weight, block)
        made = session(product_file(weight, block, given))
        x = np.random.default_rng(0).standard_normal((m, 100)).astype(np.float32)
        for bad in ([np.nan], [-np.nan], [np.inf], [-np.inf], [3e38, -3e38], [np.inf, np.nan]):
            for at in (0, 63, 98):
                wrong = x.copy()
                wrong[m // 2, at : at + len(bad)] = bad
                (y,) = made.run(None, {"x": wrong})
                check(y, wrong, weight, given, f"{bad} {at}")
                assert np.isnan(y[m // 2]).all() and np.isnan(y).sum() == 48, "all of the row, and no other"


@SETS
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(isa: str, act: str) -> None:
    use(isa)
    for block in [(1, 1), (4, 1), (16, 1), (5, 1)]:
        weight = random_weight(70, 90, block, 0.3)
        given = parts(weight, block)
        given["scale"] /= 100
        made = session(product_file(weight, block, given, act))
        for m in (1, 2, 6, 20, 50):
            x = np.random.default_rng(m).standard_normal((m, 90)).astype(np.float32)
            y, plain = torch.from_numpy(made.run(None, {"x": x})[0]), ACTIVATIONS[act](expected(x, weight, given))
            if act in ("", "Relu", "Relu6"):
                assert torch.equal(y, plain)
            else:
                torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-5)


WINDOW: dict[str, list[int]] = {"kernel_shape": [1], "strides": [1], "dilations": [1], "pads": [0, 0]}


@SETS
@pytest.mark.parametrize("size, batch", [((1,), 3), ((9,), 2), ((7, 5), 2), ((33, 33), 1), ((2, 3, 5), 2), ((4, 4), 0)])
def test_convolution(isa: str, size: tuple[int, ...], batch: int) -> None:
    """Each position is a row of x."""
    use(isa)
    dims = len(size)
    for block in [(1, 1), (4, 1), (16, 1), (3, 5)]:
        weight = random_weight(70, 45, block, 0.3)
        given = parts(weight, block, biased=block != (4, 1))
        window = {name: value * dims for name, value in WINDOW.items()}
        shape: dict[str, Any] = {"rows": 70, "columns": 45, "block": list(block), "group": 1}
        x = np.random.default_rng(0).standard_normal((batch, 45, *size)).astype(np.float32)
        (y,) = session(node_file("SparseConvInt8", given, **shape, **window), 2).run(None, {"x": x})
        flat = np.moveaxis(x, 1, -1)
        assert y.shape == (batch, 70, *size)
        check(np.moveaxis(y, 1, -1), np.ascontiguousarray(flat), weight, given, f"{block} {size}")


def test_a_weight_that_is_no_constant() -> None:
    """Each call may bring another."""
    x = np.random.default_rng(0).standard_normal((3, 30)).astype(np.float32)
    shape: dict[str, Any] = {"rows": 20, "columns": 30, "block": [2, 1]}
    given = parts(random_weight(20, 30, (2, 1), 0.3), (2, 1))
    made = session(node_file("SparseMatMulInt8", given, constant=False, **shape))
    for seed in range(3):
        weight = random_weight(20, 30, (2, 1), 0.1 + 0.3 * seed, seed)
        given = parts(weight, (2, 1))
        (y,) = made.run(None, {"x": x} | given)
        check(y, x, weight, given, f"call {seed}")


def test_threads_and_calls_at_once_change_nothing() -> None:
    weight = random_weight(300, 600, (4, 1), 0.2)
    given = parts(weight, (4, 1))
    made = session(product_file(weight, (4, 1), given), 2)
    inputs = [np.random.default_rng(i).standard_normal((1 + 40 * i, 600)).astype(np.float32) for i in range(4)]
    truths = [expected(x, weight, given).numpy() for x in inputs]

    assert not wrong_at_once(4, 20, lambda i: np.array_equal(made.run(None, {"x": inputs[i]})[0], truths[i]))


GOOD = parts(random_weight(20, 30, (2, 3), 0.4), (2, 3))
SHAPE: dict[str, Any] = {"rows": 20, "columns": 30, "block": [2, 3]}
CONV = {"kernel_shape": [1, 1], "strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "group": 1}
ONE_TAP = "takes kernels of one tap only"


def changed(name: str, at: int, value: float) -> Parts:
    array = GOOD[name].copy()
    array[at] = value
    return {name: array}


HOSTILE: list[tuple[str, Parts, dict[str, Any]]] = [
    (r"cols\[0\] is 10, must be above -1 and below 10", changed("cols", 0, 10), {}),
    (r"cols\[1\] is \d+, must be above", {"cols": np.full_like(GOOD["cols"], 4)}, {}),
    ("is -7, must be above", {"cols": np.full_like(GOOD["cols"], -7, np.int32)}, {}),
    ("cols must be a vector of uint16 or int32", {"cols": GOOD["cols"].astype(np.int64)}, {}),
    ("values must be int8", {"cols": GOOD["cols"][:-1]}, {}),
    ("values must be int8", {"values": GOOD["values"].astype(np.uint8)}, {}),
    ("values must be int8", {"values": GOOD["values"].astype(np.float32)}, {}),
    ("values must be int8", {"values": GOOD["values"][:-1]}, {}),
    ("values must be int8", {"values": GOOD["values"].reshape(-1, 6)}, {}),
    (r"scale must be float \[20\]", {"scale": GOOD["scale"][:-1]}, {}),
    (r"scale must be float \[20\]", {"scale": GOOD["scale"][None]}, {}),
    ("scale", {"scale": GOOD["scale"].astype(np.float64)}, {}),
    ("row_ptr descends after entry 4", changed("row_ptr", 5, 0), {}),
    ("row_ptr descends", changed("row_ptr", 3, 2**40), {}),
    ("row_ptr must begin at 0", changed("row_ptr", 0, 1), {}),
    ("row_ptr must begin at 0 and end at", changed("row_ptr", -1, 2**62), {}),
    (r"row_ptr must be int64 \[11\]", {"row_ptr": GOOD["row_ptr"][:-1]}, {}),
    ("row_ptr must be int64", {}, {"rows": 2**31 - 1}),
    ("rows is 2147483648", {}, {"rows": 2**31}),
    ("columns is 9223372036854775807", {}, {"columns": 2**63 - 1}),
    ("block is 2 x 65", {}, {"block": [2, 65]}),
    ("block is 0 x 3", {}, {"block": [0, 3]}),
    ("block must hold 2 integers", {}, {"block": None}),
]


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("message, tensors, attributes", HOSTILE)
def test_hostile_files_are_refused(message: str, tensors: Parts, attributes: dict[str, Any], constant: bool) -> None:
    given, shape = GOOD | tensors, {key: value for key, value in (SHAPE | attributes).items() if value is not None}
    with pytest.raises(Exception, match=message) as refused:
        made = session(node_file("SparseMatMulInt8", given, constant, **shape))
        assert not constant, "a broken weight in the file was taken"
        made.run(None, {"x": np.ones((2, 30), np.float32)} | given)
    assert "onnxruntime" in type(refused.value).__module__


@pytest.mark.parametrize(
    "message, attributes, x",
    [
        (ONE_TAP, {"kernel_shape": [1, 3], "columns": 30}, (1, 30, 4, 4)),
        (ONE_TAP, {"strides": [1, 2]}, (1, 30, 4, 4)),
        (ONE_TAP, {"pads": [0, 0, 1, 0]}, (1, 30, 4, 4)),
        (ONE_TAP, {"group": 2}, (1, 60, 4, 4)),
        ("group is 0", {"group": 0}, (1, 30, 4, 4)),
        ("group is 9223372036854775807", {"group": 2**63 - 1}, (1, 30, 4, 4)),
        ("kernel_shape must hold 1 to 3", {"kernel_shape": None}, (1, 30, 4, 4)),
        ("dilations holds 0", {"dilations": [0, 1]}, (1, 30, 4, 4)),
        (r"x must be float \[batch, 30", {}, (1, 31, 4, 4)),
        (r"x must be float \[batch, 30", {}, (1, 30, 4)),
        (r"x must be float \[batch, 30", {}, ()),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(message: str, attributes: dict[str, Any], x: tuple[int, ...]) -> None:
    shape = {key: value for key, value in (SHAPE | CONV | attributes).items() if value is not None}
    with pytest.raises(Exception, match=message):
        session(node_file("SparseConvInt8", GOOD, **shape)).run(None, {"x": np.ones(x, np.float32)})


def test_a_scale_may_be_anything() -> None:
    for value in (np.nan, np.inf, -1.0, 0.0, 1e-45, 3e38):
        given = GOOD | changed("scale", 5, value)
        x = np.random.default_rng(0).standard_normal((9, 30)).astype(np.float32)
        (y,) = session(node_file("SparseMatMulInt8", given, **SHAPE)).run(None, {"x": x})
        with np.errstate(all="ignore"):
            check(y, x, random_weight(20, 30, (2, 3), 0.4), given, f"{value}")


@pytest.mark.long
def test_damaged_files_never_crash() -> None:
    """Some bytes changed, or the end cut off. What still loads is run."""
    whole = node_file("SparseMatMulInt8", GOOD, **SHAPE).SerializeToString()
    taken, refused = run_damaged(whole, lambda file: session(file).run(None, {"x": np.ones((2, 30), np.float32)}))
    assert taken and refused
