"""The ONNX Runtime library: its operator against float64, and files that are broken or hostile."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import topkast
from topkast.passes.onnx.blocks import encode
from topkast.runtime import native
from topkast.tests.support.at_once import wrong_at_once
from topkast.tests.support.damaged import run_damaged
from topkast.tests.support.models.product_files import node_file, parts, run, session, sparse_file, sparse_matrix
from topkast.tests.support.truth.product_layouts import BLOCKS, within

pytestmark = pytest.mark.skipif(native.path() is None, reason="the ONNX Runtime library is not built")


def check(y: np.ndarray, x: np.ndarray, matrix: np.ndarray, bias: np.ndarray | None, where: str) -> None:
    """The budget of tests/runtime/native/test_native.py, plain PyTorch's sums in four orders."""
    a, w, b = (
        torch.from_numpy(x),
        torch.from_numpy(matrix),
        torch.from_numpy(bias if bias is not None else np.float32([0])),
    )
    orders = [torch.randperm(w.shape[1]) for _ in range(4)]
    plains = [a[..., order] @ w[:, order].t() + b for order in orders]
    within(torch.from_numpy(y), plains, a.double() @ w.double().t() + b.double(), where)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block(block: tuple[int, int]) -> None:
    """Sizes that are a multiple of nothing, empty and full rows, values of both types, columns of both widths."""
    rng = np.random.default_rng(1)
    for i, lead in enumerate([(1,), (7,), (2, 3, 5), (), (300,), (0,), (2, 0)]):
        half, wide, biased = bool(i % 2), bool(i % 3), i % 4 != 3
        matrix = sparse_matrix(131, 203, block, 0.2, seed=i)
        if half:
            matrix = matrix.astype(np.float16).astype(np.float32)
        bias = rng.standard_normal(131).astype(np.float32) if biased else None
        x = rng.standard_normal((*lead, 203)).astype(np.float32)
        y = run(sparse_file(matrix, block, bias, half, wide), x=x)
        assert y.shape == (*lead, 131)
        check(y, x, matrix, bias, f"{block} {lead} half={half} wide={wide}")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.integers(1, 90), st.integers(1, 70), st.integers(0, 40), st.sampled_from(BLOCKS), st.floats(0, 1),
    st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1, 2]),
)  # fmt: skip
def test_fuzz(rows, columns, m, block, density, half, wide, biased, threads):
    rng = np.random.default_rng(rows * columns)
    matrix = sparse_matrix(rows, columns, block, density, seed=m)
    if half:
        matrix = matrix.astype(np.float16).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32) if biased else None
    x = rng.standard_normal((m, columns)).astype(np.float32)
    y = run(sparse_file(matrix, block, bias, half, wide), threads, x=x)
    check(y, x, matrix, bias, f"{rows} x {columns} {block} m={m}")


def test_more_rows_than_one_product_takes() -> None:
    matrix, bias = sparse_matrix(20, 30, (4, 1), 0.3), np.ones(20, np.float32)
    x = np.random.default_rng(0).standard_normal((2500, 30)).astype(np.float32)
    check(run(sparse_file(matrix, (4, 1), bias), x=x), x, matrix, bias, "2500 rows")


def test_a_weight_that_is_no_constant() -> None:
    """Each call may bring another, of another number of blocks too."""
    x = np.random.default_rng(0).standard_normal((3, 30)).astype(np.float32)
    first = parts(encode(sparse_matrix(20, 30, (2, 1), 0.3), (2, 1)), None, half=True)
    made = session(node_file(first, constant=False, rows=20, columns=30, block=[2, 1]))
    for seed in range(3):
        matrix = sparse_matrix(20, 30, (2, 1), 0.1 + 0.3 * seed, seed).astype(np.float16).astype(np.float32)
        (y,) = made.run(None, {"x": x} | parts(encode(matrix, (2, 1)), None, half=True))
        check(y, x, matrix, None, f"call {seed}")


def test_float16_is_widened_exactly() -> None:
    """All 65,536 numbers there are, through a diagonal."""
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values, cols = numbers.reshape(-1, 64), np.arange(64, dtype=np.uint16)
    for part in values[::7]:  # a seventh of them, spread over all exponents
        given = {"values": part, "row_ptr": np.arange(65), "cols": cols}
        y = run(node_file(given, rows=64, columns=64, block=[1, 1]), x=np.ones((1, 64), np.float32))
        finite = np.isfinite(part)
        assert np.array_equal(y[0][finite], part.astype(np.float32)[finite])
        assert np.array_equal(np.isnan(y[0]), np.isnan(part)) and np.array_equal(np.isinf(y[0]), np.isinf(part))


def test_threads_and_calls_at_once_change_nothing() -> None:
    matrix, bias = sparse_matrix(300, 200, (4, 1), 0.2), np.ones(300, np.float32)
    model = sparse_file(matrix, (4, 1), bias)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((20 + i, 200)).astype(np.float32) for i in range(4)]
    expected, made = [run(model, x=x) for x in inputs], session(model, 2)

    assert not wrong_at_once(4, 30, lambda i: np.array_equal(made.run(None, {"x": inputs[i]})[0], expected[i]))


GOOD = parts(encode(sparse_matrix(20, 30, (2, 3), 0.4), (2, 3)), np.zeros(20, np.float32))
SHAPE: dict[str, Any] = {"rows": 20, "columns": 30, "block": [2, 3]}


def changed(name: str, at: int, value: float) -> dict[str, np.ndarray]:
    array = GOOD[name].copy()
    array[at] = value
    return {name: array}


WIDE = {"cols": GOOD["cols"].astype(np.int32)}
HOSTILE: list[tuple[str, dict[str, np.ndarray], dict[str, Any]]] = [
    (r"cols\[0\] is 10, must be above -1 and below 10", changed("cols", 0, 10), {}),
    (r"cols\[5\] is 65535", changed("cols", 5, 65535), {}),
    (
        "is -7, must be above",
        {"cols": np.where(np.arange(len(GOOD["cols"])) == 3, -7, WIDE["cols"]).astype(np.int32)},
        {},
    ),
    (r"cols\[1\] is \d+, must be above", {"cols": np.full_like(GOOD["cols"], 4)}, {}),
    ("cols must be a vector of uint16 or int32", {"cols": GOOD["cols"].astype(np.int64)}, {}),
    ("cols must be a vector", {"cols": GOOD["cols"][None]}, {}),
    ("must be float or float16", {"cols": GOOD["cols"][:-1]}, {}),
    ("must be float or float16", {"values": GOOD["values"][:-1]}, {}),
    ("must be float or float16", {"values": GOOD["values"].astype(np.float64)}, {}),
    ("must be float or float16", {"values": GOOD["values"].reshape(-1, 6)}, {}),
    ("row_ptr descends after entry 4", changed("row_ptr", 5, 0), {}),
    ("row_ptr descends", changed("row_ptr", 3, 2**40), {}),
    ("row_ptr descends", changed("row_ptr", 3, -1), {}),
    ("row_ptr must begin at 0", changed("row_ptr", 0, 1), {}),
    ("row_ptr must begin at 0 and end at", changed("row_ptr", -1, 2**62), {}),
    (r"row_ptr must be int64 \[11\]", {"row_ptr": GOOD["row_ptr"][:-1]}, {}),
    (r"row_ptr must be int64 \[11\]", {"row_ptr": GOOD["row_ptr"][:0]}, {}),
    ("row_ptr must be int64", {}, {"rows": 2**31 - 1}),
    ("rows is 2147483648", {}, {"rows": 2**31}),
    ("rows is -20", {}, {"rows": -20}),
    ("columns is 0", {}, {"columns": 0}),
    ("columns is 9223372036854775807", {}, {"columns": 2**63 - 1}),
    (r"must be above|must be float \[..., 3\]", {}, {"columns": 3}),
    ("block is 0 x 3", {}, {"block": [0, 3]}),
    ("block is 2 x 65", {}, {"block": [2, 65]}),
    ("block is -9223372036854775808", {}, {"block": [-(2**63), 3]}),
    ("block must hold 2 integers", {}, {"block": [2]}),
    ("block must hold 2 integers", {}, {"block": [2, 3, 1]}),
    ("block must hold 2 integers", {}, {"block": None}),
    ("rows must hold one integer", {}, {"rows": None}),
    ("rows must hold one integer", {}, {"rows": 20.0}),
]


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("message, tensors, attributes", HOSTILE)
def test_hostile_files_are_refused(message: str, tensors: dict, attributes: dict, constant: bool) -> None:
    """By the session where the weight is part of the file, else by the run."""
    given = GOOD | tensors
    given_attributes = {key: value for key, value in (SHAPE | attributes).items() if value is not None}
    model = node_file(given, constant, **given_attributes)
    with pytest.raises(Exception, match=message) as refused:
        made = session(model)
        assert not constant, "a broken weight in the file was taken"
        made.run(None, {"x": np.ones((2, 30), np.float32)} | given)
    assert "onnxruntime" in type(refused.value).__module__


@pytest.mark.parametrize(
    "message, x, bias",
    [
        (r"x must be float \[..., 30\]", np.ones((2, 31), np.float32), GOOD["bias"]),
        (r"x must be float \[..., 30\]", np.ones((30, 2), np.float32), GOOD["bias"]),
        (r"x must be float \[..., 30\]", np.array(1, np.float32), GOOD["bias"]),
        (r"bias must be float \[20\]", np.ones((2, 30), np.float32), np.zeros(19, np.float32)),
        (r"bias must be float \[20\]", np.ones((2, 30), np.float32), np.zeros((20, 1), np.float32)),
    ],
)
def test_activations_of_other_shapes_are_refused(message: str, x: np.ndarray, bias: np.ndarray) -> None:
    made = session(node_file(GOOD | {"bias": bias}, **SHAPE))
    with pytest.raises(Exception, match=message):
        made.run(None, {"x": x})


def test_damaged_files_never_crash() -> None:
    """Every kind of damage to a small file: cut off, or some bytes changed. What still loads is run."""
    whole = node_file(GOOD, **SHAPE).SerializeToString()
    taken, refused = run_damaged(whole, lambda file: session(file).run(None, {"x": np.ones((2, 30), np.float32)}))
    assert taken and refused


def test_the_library_may_lie_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    path = topkast.onnx.library_path()
    monkeypatch.setenv("TOPKAST_NATIVE", str(path))
    assert topkast.onnx.library_path() == path
    monkeypatch.delenv("TOPKAST_NATIVE")
    monkeypatch.setattr("topkast.runtime.native.__file__", str(tmp_path / "a" / "b"))
    with pytest.raises(topkast.ConfigError, match="not built"):
        topkast.onnx.library_path()
