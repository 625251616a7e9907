"""A dense ONNX model in, the same model with its weights stored in another format out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from topkast.passes.onnx.blocks import MAX_BLOCK, Array, Block, fitting

from .constant_products import Product, products
from .formats import AUTO, FASTEST_FIRST, FORMATS, SMALLEST, custom, custom_speed, dense
from .formats.choose_format import choose_format
from .formats.fuse_activations import fuse_activations
from .formats.record import Format
from .formats.weight import Weight
from .graph import array_of, constant
from .metadata import SiteResult
from .spell_recurrent import Pays, spell_recurrent
from .split_conv_bias import split_conv_bias

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
FULL = 0.999  # a weight with fewer zeros than this leaves has none to speak of


@dataclass(frozen=True)
class Wanted:
    """What to write.

    Args:
        format: a name in :data:`topkast.passes.onnx.formats.FORMATS`, or "auto".
        half: whether sparse weights are stored as float16; their values must be such.
        blocks: (rows, columns) of the blocks the model was trained with.
        names: what to call a weight, by :func:`topkast.passes.onnx.blocks.digest` of its [out, in] matrix.
        sizes: dynamic dimensions in the examples, by name.
    """

    format: str
    half: bool = False
    blocks: Iterable[Block] = ((1, 1),)
    names: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def convert(model: ir.Model, wanted: Wanted) -> list[SiteResult]:
    """Change ``model``, which holds its weights itself, in place; how each of its weights is stored."""
    sites = list[SiteResult]()
    names = {**spell_recurrent(model, _recurrence_pays(wanted)), **wanted.names}
    by_weight: dict[ir.Value, list[Product]] = {}
    for product in products(model.graph):
        by_weight.setdefault(product.weight, []).append(product)
    for value in list(model.graph.initializers.values()):
        tensor = constant(value)
        if tensor is None or tensor.shape.rank() < 2 or tensor.dtype not in FLOATS:
            continue
        if tensor.dtype == ir.DataType.FLOAT:
            given = by_weight.get(value, []), wanted.half, wanted.blocks, names, wanted.sizes
            sites.append(_store(Weight(value, *given), wanted.format))
        else:
            array = array_of(value)
            density, size = np.count_nonzero(array) / max(1, array.size), array.nbytes
            why = f"it is {array.dtype}; only float32 is stored another way"
            sites.append(SiteResult(str(value.name), "dense", why, array.shape, None, density, size, size))
    library = any(FORMATS[site.format].needs_library for site in sites)
    if library:
        fuse_activations(model)
    split_conv_bias(model)
    ir.passes.Sequential(TopologicalSortPass(), RemoveUnusedNodesPass())(model)
    if library:
        custom.register(model)
    return sites


def _recurrence_pays(wanted: Wanted) -> Pays:
    """Whether to write a recurrent node as products: if products of the format "custom" are asked for or are faster."""

    def pays(matrix: Array, batch: int | str) -> bool:
        if np.count_nonzero(matrix) >= FULL * matrix.size or wanted.format not in (AUTO, custom.FORMAT.name):
            return False
        rows = batch if isinstance(batch, int) else wanted.sizes.get(batch, 1)
        return (
            wanted.format != AUTO
            or custom_speed.slower_recurrence(fitting(matrix, wanted.blocks, MAX_BLOCK), rows) is None
        )

    return pays


def _store(weight: Weight, wanted: str) -> SiteResult:
    """Store ``weight`` in the format of this name, or dense if that does not suit it."""
    format, why = _format(weight, wanted)
    unit, size = format.write(weight)
    array = weight.array
    density = weight.nonzeros / max(1, array.size)
    return SiteResult(weight.label, format.name, why, weight.shape, unit, density, size, array.nbytes)


def _format(weight: Weight, wanted: str) -> tuple[Format, str]:
    """(format, why)."""
    if weight.nonzeros >= FULL * weight.array.size:  # an empty one too
        return dense.FORMAT, "it has no zeros"
    if wanted == AUTO:
        format, why = choose_format(weight, FASTEST_FIRST, SMALLEST)
    else:
        format, why = FORMATS[wanted], "as asked"
    refused = format.suits(weight)
    if refused is not None:
        return dense.FORMAT, refused
    if format.cost is not None and format.cost(weight) >= weight.dense_bytes:
        return dense.FORMAT, f'{why}; as "{format.name}" it would take {format.cost(weight):,} bytes, no less'
    return format, why
