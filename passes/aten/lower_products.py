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
from collections.abc import Sequence
from typing import Any

import sympy
import torch

from topkast.passes.aten.nodes import topkast
from topkast.runtime.kernels.prepared import ACTIVATIONS, KINDS, Layout
from topkast.runtime.layout import Geometry
from topkast.runtime.ops.called_directly import CALLED

# The operands that a layout describes, activations first.
_OPERANDS = {"spmm": ("x", "values"), "spmm_t": ("dy", "values"), "sddmm": ("dy", "x")}


@functools.cache
def install() -> None:
    """Tell Inductor about the products, once in a process. Code from Inductor's cache needs this too."""
    from torch._inductor.lowering import add_needs_realized_inputs, fallback_handler, register_lowering
    from torch._inductor.select_algorithm import extern_kernels

    for name, function in CALLED.items():
        setattr(extern_kernels, f"topkast_{name}", function)
        operator = getattr(topkast, name).default
        add_needs_realized_inputs(operator)  # else each reader of an activation gets a copy of its own
        lowering: Any = functools.partial(_lower, name, operator, fallback_handler(operator))
        lowering.__name__ = name  # Inductor asks for it
        register_lowering(operator, type_promotion_kind=None)(lowering)


def _lower(name: str, operator: Any, as_operator: Any, *args: Any, **kwargs: Any) -> Any:
    names = [argument.name for argument in operator._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    called = _called(name, given)
    return as_operator(*args, **kwargs) if called is None else called


def _called(name: str, given: dict[str, Any]) -> Any:
    """The node of a call; None if the product must stay an operator."""
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    if given.get("impl") != "native" or V.graph.cpp_wrapper:
        return None
    geometry = Geometry(tuple(given["shape"]), tuple(given["perm"]), given["lead"], tuple(given["block"]))
    bias = ["bias"] if given.get("bias") is not None else []
    names = [*_OPERANDS[name], "row_ptr", "row_fwd", "cols", "key", *bias]
    inputs = {one: ir.ExternKernel.realize_input(given[one]) for one in names}
    layouts = {one: ir.as_storage_and_layout(node)[1] for one, node in inputs.items()}
    widths = given.get("widths") or (0, 0)
    found = _layout(name, geometry, layouts, widths, ACTIVATIONS.index(given.get("act", "")))
    if found is None or given.get("dtype") not in (None, torch.float32):
        return None
    layout, size = found
    out = ir.FixedLayout(torch.device("cpu"), torch.float32, size, ir.FlexibleLayout.contiguous_strides(size))
    call = ir.ExternKernelOut(
        layout=out,
        inputs=list(inputs.values()),
        kwargs={"layout": layout.text()},
        python_kernel_name=f"extern_kernels.topkast_{name}",
    )
    return ir.TensorBox.create(call)


def _layout(
    name: str, geometry: Geometry, layouts: dict[str, Any], widths: Sequence[int], act: int
) -> tuple[Layout, list[int]] | None:
    """The layout of a product and the shape of its result; None if an operand is not as :func:`_called` needs it.

    Args:
        name: the name of the product.
        geometry: the geometry of the weight.
        layouts: Inductor's layout of each operand.
        widths: for each of the two activations the width of its tiles, or 0.
        act: the position of the activation function.
    """
    (r, c), n = geometry.block, {"x": geometry.cols, "dy": geometry.rows}
    kinds = {torch.uint16: 2, torch.int32: 4}
    index, slots = layouts["cols"], layouts["cols"].size[0]
    lengths = {"values": slots * r * c, "row_ptr": geometry.grid[0] + 1, "row_fwd": geometry.grid[0], "cols": slots}
    lengths["bias"] = geometry.rows
    for one, layout in layouts.items():
        if not all(isinstance(number, (int, sympy.Integer)) for number in (*layout.size, *layout.stride)):
            return None
        if layout.device.type != "cpu" or 0 in layout.size:
            return None
        if one in lengths and (list(layout.size), list(layout.stride)) != ([lengths[one]], [1]):
            return None
        if one in ("values", "bias", *n) and layout.dtype != torch.float32:
            return None
    pairs = [(one, width) for one, width in zip(_OPERANDS[name], widths, strict=False) if one in n]
    seen = [found for one, width in pairs if (found := _activations(layouts[one], n[one], width)) is not None]
    if len(seen) < len(pairs) or index.dtype not in kinds or len({m for m, _ in seen}) != 1:
        return None
    m, given = seen[0][0], widths[1]
    size = [int(slots) * r * c]
    if len(seen) == 1:
        columns = geometry.cols if name == "spmm_t" else geometry.rows
        if given and m % given:
            return None
        size = [m // given, columns, given] if given else [m, columns]
        seen.append((m, (columns, 0, 0, given) if given else (columns, columns, 1, 0)))
    numbers = (geometry.rows, geometry.cols, int(slots), r, c, kinds[index.dtype], m)
    return Layout(KINDS.index(name), *numbers, seen[0][1], seen[1][1], act), size


def _activations(layout: Any, n: int, width: int) -> tuple[int, tuple[int, int, int, int]] | None:
    """How many rows activations have, and their columns, strides and width as :class:`Layout` has them; None if they
    are no matrix of ``n`` columns and no contiguous tiles."""
    size, strides = [list(map(int, numbers)) for numbers in (layout.size, layout.stride)]
    if width:
        whole = len(size) == 3 and size[1:] == [n, width] and strides == [n * width, width, 1]
        return (size[0] * width, (n, 0, 0, width)) if whole else None
    return (size[0], (n, strides[0], strides[1], 0)) if len(size) == 2 and size[1] == n else None
