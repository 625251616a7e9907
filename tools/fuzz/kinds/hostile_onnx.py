"""Damaged and hostile ONNX files: ONNX Runtime or topkast's library refuses them, or they run. Nothing is out of bounds
(under sanitizers the process would end), and ``topkast inspect`` shows them as data."""

from __future__ import annotations

import functools
import io
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import topkast
from topkast.compiler.cli.main import main
from topkast.passes.onnx import metadata
from topkast.runtime.onnx.library import session

UNDER = " under sanitizers" if "libasan" in os.environ.get("LD_PRELOAD", "") else ""
NUMBERS = st.one_of(
    st.integers(-3, 70), st.sampled_from([2**15, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)])
)
bytes_changed = st.tuples(st.just("bytes"), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1))
cut = st.tuples(st.just("cut"), st.floats(0, 1))
attribute = st.tuples(st.just("attribute"), st.integers(0, 20), st.integers(0, 5), NUMBERS)
constant = st.tuples(st.just("constant"), st.integers(0, 9), st.floats(0, 1), NUMBERS)
shape = st.tuples(st.just("shape"), st.integers(0, 9), st.lists(st.integers(0, 40), max_size=3))
record = st.tuples(
    st.just("record"), st.sampled_from(["", "{", "[]", "null", "1", '{"sites": 3}', "\x1b[2J", "[" * 5000])
)
cases = st.tuples(
    st.sampled_from(["linear", "conv", "int8", "int8 conv"]),
    st.lists(
        st.one_of(bytes_changed, cut, attribute, attribute, constant, constant, shape, record), min_size=1, max_size=2
    ),
)


@functools.cache
def base(kind: str) -> bytes:
    """A small file of the format "custom", as topkast.export's nodes are."""
    rng = np.random.default_rng(0)
    rows, columns, slots = 8, 18, 24
    row_ptr = np.arange(0, slots + 1, slots // rows, dtype=np.int64)
    cols = np.concatenate([np.sort(rng.choice(columns, slots // rows, replace=False)) for _ in range(rows)])
    given = {
        "values": rng.standard_normal(slots).astype(np.float32),
        "row_ptr": row_ptr,
        "cols": cols.astype(np.uint16),
    }
    attributes: dict[str, Any] = {"rows": rows, "columns": columns, "block": [1, 1]}
    operator, x_shape = "SparseMatMul", list[str | int | None](["n", columns])
    if "conv" in kind:
        operator, x_shape = "SparseConv", ["n", 2, "h", "w"]
        attributes |= {"kernel_shape": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "group": 1}
    if "int8" in kind:
        operator = "SparseMatMulInt8" if kind == "int8" else "SparseConvPerImageInt8"
        given["values"] = rng.integers(-127, 128, slots).astype(np.int8)
        given["scale"] = np.ones(rows, np.float32)
    given["bias"] = np.zeros(rows, np.float32)
    node = helper.make_node(operator, ["x", *given], ["y"], domain="topkast", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in given.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("topkast", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    metadata.write(model, "custom", "fp32", [], [], None)
    return bytes(model.SerializeToString())


def changed(whole: bytes, changes: list[Any]) -> bytes:
    for change in changes:
        what = change[0]
        if what == "bytes" and whole:
            damaged = bytearray(whole)
            for at, byte in change[1]:
                damaged[min(int(at * len(damaged)), len(damaged) - 1)] = byte
            whole = bytes(damaged)
        elif what == "cut":
            whole = whole[: int(change[1] * len(whole))]
        elif what in ("attribute", "constant", "shape", "record"):
            try:
                model = onnx.load_from_string(whole)
                edit(model, change)
                whole = model.SerializeToString()
            except Exception:  # damaged before, or the number does not fit
                continue
    return whole


def edit(model: onnx.ModelProto, change: Any) -> None:
    if change[0] == "attribute":
        attributes = model.graph.node[0].attribute
        one = attributes[change[1] % len(attributes)]
        if one.ints:
            one.ints[change[2] % len(one.ints)] = change[3]
        else:
            one.i = change[3]
    elif change[0] == "record":
        model.metadata_props[0].value = change[1]
    else:
        tensors = model.graph.initializer
        one = tensors[change[1] % len(tensors)]
        if change[0] == "shape":
            del one.dims[:]
            one.dims.extend(change[2])
        else:
            array = numpy_helper.to_array(one).copy()
            array.reshape(-1)[int(change[2] * (array.size - 1))] = np.int64(change[3]).astype(array.dtype)
            one.CopyFrom(numpy_helper.from_array(array, one.name))


def check(case: Any) -> str:
    kind, changes = case
    file = changed(base(kind), list(changes))
    x = np.ones((2, 2, 5, 5) if "conv" in kind else (3, 18), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(file)
        with redirect_stdout(io.StringIO()) as shown:
            status = main(["inspect", str(path)])
        assert status in (0, 2) and not set("\x1b\x07") & set(shown.getvalue()), "a terminal is commanded"
    try:
        session(file).run(None, {"x": x})
    except Exception as error:
        ours = isinstance(error, (topkast.TopkastError, ValueError)) or "onnxruntime" in type(error).__module__
        assert ours, f"a raw error: {type(error).__name__}: {error}"
        return f"refused{UNDER}"
    return f"ran{UNDER}"
