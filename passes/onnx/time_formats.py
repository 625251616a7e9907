"""Time one product in several formats, in ONNX Runtime, against the dense product."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from topkast.runtime.kernels import native_library
from topkast.runtime.onnx.session import Session

from .blocks import Block
from .constant_products import Product
from .convert import Wanted, convert
from .formats.record import Format
from .formats.weight import Weight
from .graph import sizes_of
from .metadata import SiteResult
from .writer import save_proto, serialize

ROUNDS = 7  # the formats take turns; the least time of each counts
OPSET = 18

_times = dict[Any, dict[str, float]]()  # what this process has measured


def time_formats(weight: Weight, formats: Sequence[Format]) -> dict[str, float]:
    """The time of each format, divided by the time of the dense product in float32.

    Args:
        weight: its first product is timed, with x of the size in the examples.
        formats: those to try; each must suit the weight.

    Returns:
        {name of a format: share of the dense time}.
    """
    product = weight.products[0]
    blocks = [] if weight.is_full else [weight.matrix.block]  # to look for blocks without zeros would take long
    x = [size or 1 for size in sizes_of(product.x, weight.sizes) or []]
    if product.conv is None:
        x = [weight.rows, weight.shape[1]]
    conv = None if product.conv is None else repr(product.conv)
    key = (
        weight.shape, *blocks, 0 if weight.is_full else len(weight.matrix.cols), tuple(x), weight.precision, conv,
        *(f.name for f in formats),
    )  # fmt: skip
    if key not in _times:
        _times[key] = _measured(weight, product, x, formats, blocks)
    return _times[key]


def _measured(
    weight: Weight, product: Product, x: list[int], formats: Sequence[Format], blocks: Sequence[Block]
) -> dict[str, float]:
    given = torch.from_numpy(np.random.default_rng(0).standard_normal(x).astype(np.float32))
    base = "dense fp32"  # no format has this name
    wanted = {base: Wanted("dense")}
    for format in formats:
        wanted[format.name] = Wanted(format.name, weight.precision, blocks)
    sessions, least = dict[str, Session](), dict.fromkeys(wanted, float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        for name, how in wanted.items():
            model = _one_product(weight, product, x)
            convert(model, how)
            file = Path(folder) / "one.onnx"
            save_proto(serialize(model), file)
            sessions[name] = Session(file, native_library.path())
    for round in range(ROUNDS + 1):  # the first one warms up
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run({"x": given})
            if round:
                least[name] = min(least[name], time.perf_counter() - start)
    return {format.name: least[format.name] / least[base] for format in formats}


def _one_product(weight: Weight, product: Product, x: list[int]) -> ir.Model:
    """A model of the product alone, without bias."""
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(x))
    tape = ir.tape.Tape()
    if product.conv is None:
        matrix = weight.array.T if not product.transposed else weight.array
        constant = tape.initializer(ir.tensor(np.ascontiguousarray(matrix), name="weight"))
        y = tape.op("MatMul", [value, constant])
    else:
        constant = tape.initializer(ir.tensor(weight.array, name="weight"))
        y = tape.op("Conv", [value, constant], product.conv.attributes)
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [value], [y], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": OPSET}, name="product"
    )
    return ir.Model(graph, ir_version=9)


def in_float(wanted: Wanted, sites: Sequence[SiteResult]) -> Wanted:
    """``wanted`` with precision "fp32", and with the formats that "auto" chose for ``sites``."""
    chosen = {site.name: site.format for site in sites}

    def again(weight: Weight, formats: Sequence[Format]) -> dict[str, float]:
        return {format.name: 0.0 if format.name == chosen.get(weight.label) else 1.0 for format in formats}

    return replace(wanted, precision="fp32", timer=again if wanted.timer is not None else None)
