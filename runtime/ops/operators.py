"""The operators ``topkast::*``: schemas, shapes under fake tensors, and the gradient of ``weight``.

``weight`` is the operator that a module reads: W_A, dense; its gradient is taken at B. Only this operator is
differentiable. The products occur only in graphs that passes rewrote after differentiation, and the gradient of each
product is another of the products:

    forward  spmm(x, W_A)      input gradient  spmm_t(dy, W_A)      weight gradient  sddmm(dy, x) at B

``n_fwd`` is the number of blocks in A, for the planner, which sees only the graph; no result depends on it. ``why``
tells the report why a dense weight is read; ``impl`` is the chosen kernel. All three are written into the graph, so
compile caches keep them.

``widths`` has one number for each of two activations (operand and result; dy and x). If ``widths`` is not empty, a
number other than 0 means that the activation is tiles [M / width, n, width]; 0 means rows [M, n]. The native kernels
compute on tiles: see ``keep_transposed``. ``act`` is the function that ``spmm`` applies to its result, see
:func:`topkast.runtime.reference.products.activation`. ``turned`` is A's index by columns, see
:mod:`topkast.runtime.kernels.turned`; ``weight`` only hands it on to ``spmm_t``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.kernels.candidates import launch
from topkast.runtime.kernels.candidates import pack as pack_rows
from topkast.runtime.kernels.candidates import unpack as unpack_tiles
from topkast.runtime.kernels.candidates import weight as dense_weight
from topkast.runtime.kernels.candidates import weight_grad as gather_grad
from topkast.runtime.kernels.turned import TAKING
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.observers import refuse_plain_export
from topkast.runtime.reference import dense_gradient as gradient
from topkast.runtime.reference.products import ConvArgs
from topkast.runtime.registry import count_run, find

_INDEX = "Tensor row_ptr, Tensor row_fwd, Tensor cols, Tensor key"
_GEOMETRY = "int[] shape, int[] perm, int lead, int[] block, int n_fwd"
_CONV = "int[] stride, int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups"
_SPARSE = f"Tensor values, {_INDEX}, {_GEOMETRY}"

SCHEMAS = {
    "weight": f"({_SPARSE}, str why='eager', Tensor? turned=None) -> Tensor",
    "weight_grad": f"(Tensor grad, {_INDEX}, {_GEOMETRY}, str why='eager') -> Tensor",
    "spmm": f"(Tensor x, {_SPARSE}, Tensor? bias=None, str impl='reference', int[] widths=[], str act='') -> Tensor",
    "spmm_t": f"(Tensor dy, {_SPARSE}, str impl='reference', int[] widths=[], Tensor? turned=None) -> Tensor",
    "sddmm": f"(Tensor dy, Tensor x, {_INDEX}, {_GEOMETRY}, str impl='reference', int[] widths=[], "
    "ScalarType? dtype=None) -> Tensor",
    "pack": "(Tensor x, int width) -> Tensor",
    "unpack": "(Tensor tiles) -> Tensor",
    "conv": f"(Tensor x, {_SPARSE}, Tensor? bias, {_CONV}, str impl='reference') -> Tensor",
    "conv_input_grad": f"(Tensor dy, Tensor x, {_SPARSE}, {_CONV}, str impl='reference') -> Tensor",
    "conv_weight_grad": f"(Tensor dy, Tensor x, {_INDEX}, {_GEOMETRY}, {_CONV}, str impl='reference') -> Tensor",
}

_library = torch.library.Library("topkast", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def _geometry(shape: list[int], perm: list[int], lead: int, block: list[int]) -> Geometry:
    return _kept(tuple(shape), tuple(perm), lead, (block[0], block[1]))


# A cache, so that a call of a small product does not spend its time on the properties of a geometry.
_kept = functools.lru_cache(4096)(Geometry)


def weight(values: Tensor, *rest: Any, **_turned: Any) -> Tensor:
    row_ptr, row_fwd, cols, key, shape, perm, lead, block, _, why = (*rest, "eager")[:10]
    count_run(key, "read", "reference", why)
    return dense_weight(values, Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block))


def pack(x: Tensor, width: int) -> Tensor:
    return pack_rows(x, width)


def unpack(tiles: Tensor) -> Tensor:
    return unpack_tiles(tiles)


def _given(*more: Any) -> tuple[Any, ...]:
    """Widths and activation, if there are any: only kernels that support them have these arguments. (AOTInductor gives
    None for an empty list.)"""
    for one in more:
        if one and any(one):
            return more
    return ()


def _watch(key: Tensor, rows: Callable[[], gradient.Rows]) -> None:
    """Refuse the gradient of a site that cannot be trained. Give the dense gradient to the site's method, if the method
    grows by the gradient."""
    site = find(key)
    if site is None:
        return
    site.check_trainable("a gradient")
    if site.grows_by_gradient:
        site.see_gradient(rows())


def weight_grad(grad: Tensor, *rest: Any) -> Tensor:
    row_ptr, row_fwd, cols, key, shape, perm, lead, block, _, why = (*rest, "eager")[:10]
    count_run(key, "read gradient", "reference", why)
    geometry = _geometry(shape, perm, lead, block)
    _watch(key, lambda: gradient.whole_rows(grad, geometry))
    return gather_grad(grad, Index(row_ptr, row_fwd, cols), geometry)


def spmm(
    x,
    values,
    row_ptr,
    row_fwd,
    cols,
    key,
    shape,
    perm,
    lead,
    block,
    n_fwd,
    bias=None,
    impl="reference",
    widths=(),
    act="",
):
    count_run(key, "forward", impl)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    return launch(impl, "spmm")(x, values, index, geometry, bias, *_given(widths, act))


def spmm_t(
    dy, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, impl="reference", widths=(), turned=None
):
    count_run(key, "input gradient", impl)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    by_columns = {"turned": turned} if impl in TAKING else {}
    return launch(impl, "spmm_t")(dy, values, index, geometry, *_given(widths), **by_columns)


def sddmm(dy, x, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, impl="reference", widths=(), dtype=None):
    count_run(key, "weight gradient", impl)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    taken, other = widths or (0, 0)
    _watch(key, lambda: gradient.product_rows(unpack(dy) if taken else dy, unpack(x) if other else x))
    wide = {} if dtype is None else {"dtype": dtype}  # only kernels that sum in float32 have this argument
    return launch(impl, "sddmm")(dy, x, index, geometry, *_given(widths), **wide)


def conv(x, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, bias, *args, impl="reference"):
    args, impl = args[:6], (*args, impl)[6]
    count_run(key, "forward", impl)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    return launch(impl, "conv")(x, values, index, geometry, bias, ConvArgs(*args))


def conv_input_grad(
    dy, x, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, *args, impl="reference"
):
    args, impl = args[:6], (*args, impl)[6]
    count_run(key, "input gradient", impl)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    return launch(impl, "conv_input_grad")(dy, x, values, index, geometry, ConvArgs(*args))


def conv_weight_grad(dy, x, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, *args, impl="reference"):
    args, impl = args[:6], (*args, impl)[6]
    count_run(key, "weight gradient", impl)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    _watch(key, lambda: gradient.conv_rows(dy, x, geometry, ConvArgs(*args)))
    return launch(impl, "conv_weight_grad")(dy, x, index, geometry, ConvArgs(*args))


def _fake_weight(values, row_ptr, row_fwd, cols, key, shape, *rest, **options):
    refuse_plain_export(shape)
    return values.new_empty(shape)


def _fake_values(like: Tensor, cols: Tensor, block: list[int], dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(cols.shape[0] * block[0] * block[1], dtype=dtype)


def _fake_weight_grad(grad, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, why="eager"):
    return _fake_values(grad, cols, block)


def _fake_pack(x, width):
    return x.new_empty(x.shape[0] // width, x.shape[1], width)


def _fake_unpack(tiles):
    return tiles.new_empty(tiles.shape[0] * tiles.shape[2], tiles.shape[1])


def _fake_result(operand: Tensor, n: int, taken: int, given: int) -> Tensor:
    m = operand.shape[0] * ((taken and operand.shape[2]) or 1)
    return operand.new_empty((m // given, n, given) if given else (m, n))


def _fake_spmm(
    x, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, bias=None, impl="", widths=(), act=""
):
    rows = _geometry(shape, perm, lead, block).rows
    if any(widths):
        return _fake_result(x, rows, *widths)
    return x.new_empty(*x.shape[:-1], rows // x.shape[0] if x.dim() == 3 else rows)


def _fake_spmm_t(
    dy, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, impl="reference", widths=(), turned=None
):
    cols = _geometry(shape, perm, lead, block).cols
    return _fake_result(dy, cols, *widths) if any(widths) else dy.new_empty(*dy.shape[:-1], cols)


def _fake_sddmm(
    dy, x, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, impl="reference", widths=(), dtype=None
):
    return _fake_values(dy, cols, block, dtype)


# A convolution chooses its output's memory format from the operands: the dense operator gives shape and strides.
def _fake_conv(x, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, bias, *args, impl=""):
    return torch.ops.aten.convolution(x, values.new_empty(shape), bias, *args[:6])


def _fake_conv_input_grad(dy, x, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, *args, impl=""):
    mask = [True, False, False]
    return torch.ops.aten.convolution_backward(dy, x, values.new_empty(shape), None, *args[:6], mask)[0]


def _fake_conv_weight_grad(dy, x, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, *args, impl=""):
    return _fake_values(dy, cols, block)


for _name in SCHEMAS:
    _library.impl(_name, globals()[_name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"topkast::{_name}", globals()[f"_fake_{_name}"], lib=_library)


def _save_index(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # Save them as tensors, so that a refresh between forward and backward raises an error, not a wrong gradient.
    ctx.save_for_backward(*inputs[1:5])
    ctx.geometry = inputs[5:10]


def _weight_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.topkast.weight_grad(grad, *ctx.saved_tensors, *ctx.geometry), *[None] * 11


torch.library.register_autograd("topkast::weight", _weight_backward, setup_context=_save_index, lib=_library)
