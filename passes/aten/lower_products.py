"""Inductor's code calls the native products itself, not through their operators.

before: buf5 = torch.ops.topkast.spmm.default(buf4, primals_7, ..., [512, 128], [0, 1], 1, [1, 1], 6528, impl='native')
after:  buf5 = empty_strided_cpu((1024, 512), (512, 1), torch.float32)
        extern_kernels.topkast_spmm(buf4, primals_7, ..., layout='0 512 128 ...', out=buf5)

The graphs stay as they are: this happens while Inductor lowers them. Inductor plans the memory of the results like that
of its own, so freed buffers are used again. All other products stay operators: other kernels and dtypes, sizes that are
not known, and code for C++ (AOTInductor), which cannot call Python.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import sympy
import torch

from topkast.passes.aten.nodes import topkast
from topkast.runtime.kernels.prepared import ACTIVATIONS, KINDS, Layout, conv_text
from topkast.runtime.layout import Geometry
from topkast.runtime.ops.called_directly import CALLED
from topkast.runtime.reference.products import ConvArgs

# The operands that a layout describes, activations first.
_OPERANDS = {
    "spmm": ("x", "values"),
    "spmm_t": ("dy", "values"),
    "sddmm": ("dy", "x"),
    "conv": ("x", "values"),
    "conv_input_grad": ("dy", "values"),
    "conv_weight_grad": ("dy", "x"),
}
_COLUMN_BYTES = {torch.uint16: 2, torch.int32: 4}
Shape = tuple[list[int], list[int]]  # sizes and strides


@functools.cache
def install() -> None:
    """Tell Inductor about the products, once in a process. Code from Inductor's cache needs this too."""
    from torch._inductor.lowering import add_needs_realized_inputs, fallback_handler, register_lowering
    from torch._inductor.select_algorithm import extern_kernels

    for name, function in CALLED.items():
        setattr(extern_kernels, f"topkast_{name}", function)
        operator = getattr(topkast, name).default
        add_needs_realized_inputs(operator)  # else each reader of an activation gets a copy of its own
        lowering = functools.partial(_lower, name, operator, fallback_handler(operator))
        register_lowering(operator, type_promotion_kind=None)(functools.update_wrapper(lowering, function))


def _lower(name: str, operator: Any, as_operator: Any, *args: Any, **kwargs: Any) -> Any:
    names = [argument.name for argument in operator._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    called = _called(name, given)
    return as_operator(*args, **kwargs) if called is None else called


def _called(name: str, given: dict[str, Any]) -> Any:
    """The node of a call; None if the product must stay an operator."""
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    if given.get("impl") != "native" or V.graph.cpp_wrapper or given.get("dtype") not in (None, torch.float32):
        return None
    geometry = Geometry(tuple(given["shape"]), tuple(given["perm"]), given["lead"], tuple(given["block"]))
    bias = ["bias"] if given.get("bias") is not None else []
    names = [*_OPERANDS[name], "row_ptr", "row_fwd", "cols", "key", *bias]
    inputs = {one: ir.ExternKernel.realize_input(given[one]) for one in names}
    layouts = {one: ir.as_storage_and_layout(node)[1] for one, node in inputs.items()}
    matrix = _matrix(geometry, layouts)
    if matrix is None:
        return None
    shapes = {one: _shape(layout.size, layout.stride) for one, layout in layouts.items()}
    if "stride" in given:
        value = V.graph.current_node.meta["val"]
        made = _conv(name, geometry, matrix, shapes, _shape(value.shape, value.stride()), given)
    else:
        made = _product(name, geometry, matrix, shapes, given)
    if made is None:
        return None
    (size, strides), options = made
    call = ir.ExternKernelOut(
        layout=ir.FixedLayout(torch.device("cpu"), torch.float32, size, strides),
        inputs=list(inputs.values()),
        kwargs=options,
        python_kernel_name=f"extern_kernels.topkast_{name}",
    )
    return ir.TensorBox.create(call)


def _shape(size: Iterable[Any], strides: Iterable[Any]) -> Shape:
    return [int(n) for n in size], [int(n) for n in strides]


def _is_known(numbers: Iterable[Any]) -> bool:
    return all(isinstance(number, (int, sympy.Integer)) for number in numbers)


def _matrix(geometry: Geometry, layouts: dict[str, Any]) -> tuple[int, ...] | None:
    """The numbers of the matrix, as :class:`Layout` has them; None if an operand is not as the library needs it.

    Args:
        geometry: the geometry of the weight.
        layouts: Inductor's layout of each operand.
    """
    unit, cols = geometry.unit, layouts["cols"]
    for one, layout in layouts.items():
        if not _is_known((*layout.size, *layout.stride)) or layout.device.type != "cpu" or 0 in layout.size:
            return None
        if one in ("values", "bias", "x", "dy") and layout.dtype != torch.float32:
            return None
    slots, outputs = int(cols.size[0]), geometry.rows
    lengths = {"values": slots * unit, "row_ptr": geometry.grid[0] + 1, "row_fwd": geometry.grid[0], "cols": slots}
    if any(
        _shape(layouts[one].size, layouts[one].stride) != ([n], [1]) for one, n in lengths.items() if one in layouts
    ):
        return None
    if cols.dtype not in _COLUMN_BYTES:
        return None
    return outputs, geometry.cols, slots, *geometry.block, _COLUMN_BYTES[cols.dtype]


def _product(
    name: str, geometry: Geometry, matrix: tuple[int, ...], shapes: dict[str, Shape], given: dict[str, Any]
) -> tuple[Shape, dict[str, str]] | None:
    """The shape of the result, and the arguments of the call that say the layout; None if an operand does not fit.

    Args:
        name: the name of a product of matrices.
        geometry: the geometry of the weight.
        matrix: as from :func:`_matrix`.
        shapes: of all operands.
        given: the arguments of the operator.
    """
    n, widths = {"x": geometry.cols, "dy": geometry.rows}, given.get("widths") or (0, 0)
    pairs = zip(_OPERANDS[name], widths, strict=True)
    seen = [_activations(shapes[one], n[one], width) for one, width in pairs if one in n]
    if (
        None in seen
        or len({m for m, _ in seen}) != 1
        or shapes.get("bias", ([geometry.rows], [1])) != ([geometry.rows], [1])
    ):  # type: ignore[misc]
        return None
    m, to = seen[0][0], widths[1]  # type: ignore[index]
    result = [matrix[2] * geometry.unit]
    if len(seen) == 1:
        columns = geometry.cols if name == "spmm_t" else geometry.rows
        if to and m % to:
            return None
        result = [m // to, columns, to] if to else [m, columns]
        seen.append((m, (columns, 0, 0, to) if to else (columns, columns, 1, 0)))
    act = ACTIVATIONS.index(given.get("act", ""))
    layout = Layout(KINDS.index(name), *matrix, m, seen[0][1], seen[1][1], act)  # type: ignore[index]
    return (result, _contiguous(result)), {"layout": layout.text()}


def _activations(shape: Shape, n: int, width: int) -> tuple[int, tuple[int, int, int, int]] | None:
    """How many rows activations have, and their columns, strides and width as :class:`Layout` has them; None if they
    are no matrix of ``n`` columns and no contiguous tiles."""
    size, strides = shape
    if width:
        whole = len(size) == 3 and size[1:] == [n, width] and strides == [n * width, width, 1]
        return (size[0] * width, (n, 0, 0, width)) if whole else None
    return (size[0], (n, strides[0], strides[1], 0)) if len(size) == 2 and size[1] == n else None


def _conv(
    name: str,
    geometry: Geometry,
    matrix: tuple[int, ...],
    shapes: dict[str, Shape],
    result: Shape,
    given: dict[str, Any],
) -> tuple[Shape, dict[str, str]] | None:
    """As :func:`_product` for the products of a convolution. ``result`` is the shape that the operator would give."""
    if "bias" in shapes and shapes["bias"] != ([result[0][1]], [1]):
        return None
    args = ConvArgs(*(given[field] for field in ConvArgs._fields))
    x, y = {
        "conv": lambda: (shapes["x"], result),
        "conv_input_grad": lambda: (result, shapes["dy"]),
        "conv_weight_grad": lambda: (shapes["x"], shapes["dy"]),
    }[name]()
    if any(len(images[0]) != len(geometry.shape) for images in (x, y)):
        return None
    images = [torch.empty_strided(*shape, device="meta") for shape in (x, y)]
    text = conv_text(name, matrix, images[0], images[1], geometry, args)
    if text is None:
        return None
    if name != "conv_weight_grad":
        return result, {"layout": text}
    weight = (geometry.shape, geometry.perm, geometry.lead, geometry.block), tuple(map(_plain, args))
    return result, {"layout": text, "weight": repr(weight)}


def _plain(numbers: Any) -> Any:
    return tuple(map(int, numbers)) if isinstance(numbers, (list, tuple)) else numbers


def _contiguous(size: list[int]) -> list[int]:
    return [math.prod(size[at + 1 :]) for at in range(len(size))]
