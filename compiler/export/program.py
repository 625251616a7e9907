"""Trace a plain model for export, with a batch of any size if the model's code allows that."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from topkast.compiler.capture.traceable import in_the_open
from topkast.runtime.errors import ExportError

from .attention import keep_empty_rows
from .dimensions.axes import doubled, read
from .dimensions.sizes import Sizes, sizes
from .flatten import Flat, Inputs


def trace(
    flat: Flat, inputs: Inputs, dynamic_shapes: Any, notes: list[str]
) -> tuple[torch.export.ExportedProgram, list[Tensor], Sizes]:
    """(program, the tensors of the trace, their dynamic sizes)."""
    tensors = inputs.tensors
    if dynamic_shapes is not None:
        asked = read(inputs, dynamic_shapes)
        examples = doubled(tensors, asked)
        specs = [{number: axis.spec for number, axis in axes.items()} or None for axes in asked]
        program = _exported(flat, examples, specs)
        found = sizes(program, examples, asked, inputs.names)
        notes += found.notes
        return program, examples, found
    leading = [tensor.shape[0] for tensor in tensors if tensor.dim()]
    if leading:
        shared = [bool(tensor.dim()) and tensor.shape[0] == leading[0] for tensor in tensors]
        batch = torch.export.Dim("batch")
        # The trace would treat a size of 1 as a constant, so the example is repeated to size 2.
        twice = [torch.cat([t, t]) if leading[0] == 1 and b else t for t, b in zip(tensors, shared, strict=True)]
        try:
            program = _exported(flat, twice, [{0: batch} if b else None for b in shared])
            return program, twice, Sizes([{0: "batch"} if b else {} for b in shared])
        except ExportError as error:
            why = first_line(error.__cause__)
            notes.append(f"the batch size is fixed at {leading[0]}, the model's code does not allow another: {why}")
    return _exported(flat, tensors, [None] * len(tensors)), tensors, Sizes([{} for _ in tensors])


def _exported(flat: Flat, tensors: list[Tensor], shapes: list[Any]) -> torch.export.ExportedProgram:
    try:
        with in_the_open():
            program = torch.export.export(flat, tuple(tensors), dynamic_shapes=(tuple(shapes),), strict=False)
    except Exception as error:
        raise ExportError(
            f"torch.export could not trace {type(flat.model).__name__}: {first_line(error)}; let its forward not "
            "branch on values of tensors (torch.where, torch.cond), not make numpy arrays or Python numbers of them, "
            "and return tensors"
        ) from error
    _drop_checks(program.graph)
    keep_empty_rows(program.graph)
    program.graph_module.recompile()
    return program


def _drop_checks(graph: torch.fx.Graph) -> None:
    """Remove checks that raise an error on bad input, and their conditions: a file cannot raise these errors."""
    checks, feeding = set[Any](), set[torch.fx.Node]()
    for name in ("_assert_scalar", "_assert_async", "_assert_tensor_metadata"):
        packet = getattr(torch.ops.aten, name)
        checks |= {getattr(packet, overload) for overload in packet.overloads()}
    for node in reversed(list(graph.nodes)):
        called = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
        if node.target in checks or (node in feeding and not node.users and (called or node.target in _PURE)):
            feeding.update(node.all_input_nodes)
            graph.erase_node(node)


# Functions that compare the sizes in checks.
_PURE = {getattr(operator, name) for name in ("eq", "ne", "le", "lt", "ge", "gt", "and_", "or_", "not_")}


def first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].split(' For more information')[0] if lines else ''}"
