"""A dense ONNX model in, the same model with its weights stored in another format out."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from topkast.passes.onnx.blocks import MAX_BLOCK, Array, Block, fitting
from topkast.runtime.errors import ConfigError

from .constant_products import Product, products
from .formats import AUTO, FASTEST_FIRST, FORMATS, SMALLEST, custom, custom_speed, dense
from .formats.choose_format import NOISE, Timer, choose_format
from .formats.fuse_activations import fuse_activations
from .formats.record import Format
from .formats.weight import FULL, Weight
from .graph import array_of, constant
from .integers import Integers
from .metadata import SiteResult
from .prepare.spell_recurrent import Pays, spell_recurrent
from .split_conv_bias import split_conv_bias

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


@dataclass(frozen=True)
class Wanted:
    """What to write.

    Args:
        format: a name in :data:`topkast.passes.onnx.formats.FORMATS`, or "auto".
        precision: of the values of sparse weights: "fp32", "fp16" (if they are such values), "int8", or "auto": for
            each weight "int8" if that was timed to be faster, otherwise "fp32".
        blocks: (rows, columns) of the blocks the model was trained with.
        names: what to call a weight, by :func:`topkast.passes.onnx.blocks.digest` of its [out, in] matrix.
        sizes: dynamic dimensions in the examples, by name.
        library: whether a format may need topkast's library.
        timer: times the formats from which "auto" chooses; None: the limits of earlier measurements decide.
        keep_float: (pattern of names, why) of the weights that stay in float32 with "int8".
    """

    format: str
    precision: str = "fp32"
    blocks: Iterable[Block] = ((1, 1),)
    names: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    keep_float: Sequence[tuple[str, str]] = ()
    library: bool = True
    timer: Timer | None = None


def convert(model: ir.Model, wanted: Wanted) -> tuple[list[SiteResult], Integers]:
    """Change ``model``, which holds its weights itself, in place.

    Returns:
        (how each of its weights is stored, what is in int8).

    Raises:
        ConfigError: int8 does not suit a weight, see :func:`topkast.passes.onnx.quantise.quantise`.
    """
    sites, integers, refused = list[SiteResult](), Integers([], []), list[str]()
    names = {**spell_recurrent(model, _recurrence_pays(wanted)), **wanted.names}
    by_weight: dict[ir.Value, list[Product]] = {}
    for product in products(model.graph):
        by_weight.setdefault(product.weight, []).append(product)
    for value in list(model.graph.initializers.values()):
        tensor = constant(value)
        if tensor is None or tensor.shape.rank() < 2 or tensor.dtype not in FLOATS:
            continue
        if tensor.dtype == ir.DataType.FLOAT:
            precision = "int8" if wanted.precision == AUTO else wanted.precision
            given = by_weight.get(value, []), precision, wanted.blocks, names, wanted.sizes
            try:
                weight, site = _store(Weight(value, *given), wanted)
            except ConfigError as error:
                refused.append(str(error))
                continue
            sites.append(site)
            integers.products.extend(weight.integers.products)
            integers.weights.extend(weight.integers.weights)
        else:
            array = array_of(value)
            density, size = np.count_nonzero(array) / max(1, array.size), array.nbytes
            why = f"it is {array.dtype}; only float32 is stored another way"
            sites.append(SiteResult(str(value.name), "dense", why, array.shape, None, density, size, size))
    if refused:  # all at once, so that a user needs one more call and not one for each weight
        raise ConfigError("\n".join(refused))
    library = any(FORMATS[site.format].needs_library for site in sites)
    if library:
        fuse_activations(model)
    split_conv_bias(model)
    ir.passes.Sequential(TopologicalSortPass(), RemoveUnusedNodesPass())(model)
    if library:
        custom.register(model)
    return sites, integers


def _recurrence_pays(wanted: Wanted) -> Pays:
    """Whether to write a recurrent node as products: if products of the format "custom" are asked for or are faster."""

    def pays(matrix: Array, batch: int | str) -> bool:
        allowed = (AUTO, custom.FORMAT.name) if wanted.library else ()
        if np.count_nonzero(matrix) >= FULL * matrix.size or wanted.format not in allowed:
            return False
        rows = batch if isinstance(batch, int) else wanted.sizes.get(batch, 1)
        return (
            wanted.format != AUTO
            or custom_speed.slower_recurrence(fitting(matrix, wanted.blocks, MAX_BLOCK), rows) is None
        )

    return pays


def _store(weight: Weight, wanted: Wanted) -> tuple[Weight, SiteResult]:
    """Store ``weight`` in the wanted format, or dense if that does not suit it; (the weight as it was stored, how)."""
    in_float = _keeps_float(weight, wanted.keep_float) if weight.precision == "int8" else None
    if in_float is not None:
        weight = weight.in_float()
    times = dict[str, float]()
    if weight.precision == "int8" and wanted.precision == AUTO:
        weight, in_float, times = _faster(weight, wanted)
    format, why = _format(weight, wanted)
    if weight.precision == "int8" and (in_float := format.keeps_float(weight)) is not None:
        weight = weight.in_float()
        format, why = _format(weight, wanted)
    unit, size = format.write(weight)
    array = weight.array
    density = weight.nonzeros / max(1, array.size)
    if in_float:
        why = f"{why}; it stays in float32: {in_float}"
    site = SiteResult(
        weight.label, format.name, why, weight.shape, unit, density, size, array.nbytes, weight.precision,
        times or weight.times,
    )  # fmt: skip
    return weight, site


def _faster(weight: Weight, wanted: Wanted) -> tuple[Weight, str | None, dict[str, float]]:
    """Choose between int8 and float32 by the times of both.

    Returns:
        (the weight in the precision, why not in int8 or None, "<format>, <precision>" -> share of the dense time).
    """
    other = weight.in_float()
    _format(other, wanted)
    why = _loses(weight)
    if why is None:
        format, _ = _format(weight, wanted)
        if weight.is_full and wanted.timer is not None:
            weight.times = wanted.timer(weight, [dense.FORMAT])
        why = format.keeps_float(weight)
    times = {f"{name}, {it.precision}": share for it in (other, weight) for name, share in it.times.items()}
    if why is None and not weight.times:
        why = "int8 was not timed"
    if why is None and NOISE * min(weight.times.values()) >= min([1.0, *other.times.values()]):
        why = "int8 is no faster"
    return (weight, None, times) if why is None else (other, why, times)


def _keeps_float(weight: Weight, patterns: Sequence[tuple[str, str]]) -> str | None:
    """Why a weight that stays in float32 with "int8"; "" if the format's reason is enough; None if it does not."""
    if weight.is_full and not dense.multiplies_integers(weight):
        return ""
    # The matrix of a parameter may be turned or one of a stack: the parameter's name and ".T", or the number and ".T".
    parameter = re.sub(r"(\.\d+)?(\.T)?$", "", weight.label)
    for pattern, why in patterns:
        if any(fnmatch.fnmatchcase(name, pattern) for name in (weight.label, weight.name, parameter)):
            return why
    if weight.is_full:  # nobody asked for int8 of this weight, so the export does not end
        return _loses(weight)
    return None if weight.products else "no product reads it as its weight"


def _loses(weight: Weight) -> str | None:
    """Why int8 loses too much of the weight, None if it does not."""
    try:
        weight.quantised  # noqa: B018 (raises)
    except ConfigError as error:
        return str(error).removeprefix("precision='int8': ").partition("; keep_float")[0]
    return None


def _format(weight: Weight, wanted: Wanted) -> tuple[Format, str]:
    """(format, why)."""
    if weight.is_full:
        return dense.FORMAT, "it has no zeros"
    if wanted.format == AUTO:
        allowed = [format for format in FASTEST_FIRST if wanted.library or not format.needs_library]
        if dense.slower(weight) is not None:
            allowed.remove(dense.FORMAT)  # so that the reason is one that helps
        format, why = choose_format(weight, allowed, SMALLEST, wanted.timer)
    else:
        format, why = FORMATS[wanted.format], "as asked"
    refused = format.suits(weight)
    if refused is not None:
        return dense.FORMAT, refused
    if format.cost is not None and format.cost(weight) >= weight.dense_bytes:
        return dense.FORMAT, f'{why}; as "{format.name}" it would take {format.cost(weight):,} bytes, no less'
    return format, why
