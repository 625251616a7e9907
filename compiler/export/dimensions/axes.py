"""Read ``dynamic_shapes`` of ``topkast.export``: the axes of the inputs that may vary, and their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.utils import _pytree as pytree

from topkast.compiler.export.flatten import Inputs, Slot
from topkast.runtime.errors import ExportError

KINDS = (
    "a name, torch.export.Dim(name), Dim.AUTO, Dim.DYNAMIC, Dim.STATIC, None, or the size in the example as an integer"
)


@dataclass(frozen=True)
class Axis:
    """An axis that may vary.

    Args:
        where: the axis' place in ``dynamic_shapes``, for messages.
        spec: the axis' specification for torch.export.
        name: the name that the caller asked for; None if there is no name.
        must: whether it is an error if the model fixes the axis.
        low, high: limits that the caller set; None if there is no limit.
    """

    where: str
    spec: Any
    name: str | None = None
    must: bool = True
    low: int | None = None
    high: int | None = None


def all_axes(inputs: Inputs) -> dict[str, Any]:
    """``dynamic_shapes`` that lets every axis vary that the model's code does not fix."""
    return {
        name: dict.fromkeys(range(tensor.dim()), Dim.AUTO)
        for name, tensor in zip(inputs.names, inputs.tensors, strict=True)
        if tensor.dim()
    }


def read(inputs: Inputs, dynamic_shapes: Any) -> list[dict[int, Axis]]:
    """For each tensor of ``inputs``, the axes that may vary.

    torch.export finds the relations and limits of these axes by itself (``Dim.AUTO``), because a named ``Dim`` would
    have to state the model's limits exactly. A named ``Dim`` is kept only if other dims depend on it, as in
    ``2 * dim``.

    Raises:
        ExportError: an argument, an axis or a name that does not fit the examples.
    """
    found: list[dict[int, Axis]] = [{} for _ in inputs.tensors]
    specs = list(_specs(inputs, dynamic_shapes))
    roots = {id(dim.root) for _, _, spec in specs for _, dim in _dims(spec) if hasattr(dim, "root")}
    for where, slot, spec in specs:
        tensor = inputs.tensors[slot]
        for axis, dim in _dims(spec):
            at = f"{where}[{axis!r}]"
            if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < tensor.dim():
                allowed = f"from 0 to {tensor.dim() - 1}" if tensor.dim() else "none, it holds one number"
                raise ExportError(f"{at}: the example is {list(tensor.shape)}, its axes are {allowed}")
            made = _axis(at, dim, tensor.shape[axis], roots)
            if made is not None:
                found[slot][axis] = made
    _agree(inputs, found)
    return found


def _specs(inputs: Inputs, dynamic_shapes: Any) -> Iterator[tuple[str, int, Any]]:
    """(place, number of the tensor, its specification) for each tensor that has a specification."""
    given, where = inputs.given(), "dynamic_shapes"
    if isinstance(dynamic_shapes, Mapping):
        for key, spec in dynamic_shapes.items():
            if key in given:
                yield from _walk(f"{where}[{key!r}]", given[key], spec)
            elif key in inputs.names:  # the file's name of a tensor inside an argument
                number = inputs.names.index(key)
                yield from _walk(f"{where}[{key!r}]", Slot(number, inputs.tensors[number]), spec)
            else:
                allowed = ", ".join(map(repr, dict.fromkeys([*given, *inputs.names])))
                raise ExportError(f"{where}: no argument {key!r} in example_inputs, which have {allowed}")
    elif isinstance(dynamic_shapes, (tuple, list)):
        if len(dynamic_shapes) > len(given):
            raise ExportError(f"{where}: {len(dynamic_shapes)} entries for {len(given)} arguments ({', '.join(given)})")
        for i, (value, spec) in enumerate(zip(given.values(), dynamic_shapes, strict=False)):
            yield from _walk(f"{where}[{i}]", value, spec)
    else:
        raise ExportError(
            f"{where}: a {type(dynamic_shapes).__name__}, must be a dict by argument name, or a tuple by position"
        )


def _walk(where: str, value: Any, spec: Any) -> Iterator[tuple[str, int, Any]]:
    """The tensors of an argument with their specifications; ``spec`` must have the argument's structure."""
    if spec is None:
        return
    if isinstance(value, Slot):
        if not isinstance(spec, (Mapping, tuple, list)):
            raise ExportError(
                f"{where}: {spec!r}, must be a dict from axes to {KINDS}; or a tuple with one for each axis"
            )
        tensor = value.tensor
        if not isinstance(spec, Mapping) and len(spec) != tensor.dim():
            raise ExportError(f"{where}: {len(spec)} entries, the example is {list(tensor.shape)}: one for each axis")
        yield where, value.number, spec
        return
    parts = pytree.tree_flatten_with_path(value, is_leaf=lambda inner: inner is not value)[0]
    children = {_key(path[-1]): child for path, child in parts if path}
    if not children:
        raise ExportError(f"{where}: {spec!r}, but the example there is {value!r}, no tensor: must be None")
    by_key = spec if isinstance(spec, Mapping) else None
    if by_key is None:
        if not isinstance(spec, (tuple, list)) or len(spec) > len(children):
            raise ExportError(f"{where}: {spec!r}, must be a dict, tuple or list for {', '.join(map(repr, children))}")
        by_key = dict(zip(children, spec, strict=False))
    for key, inner in by_key.items():
        if key not in children:
            raise ExportError(f"{where}: no {key!r} in the example, which has {', '.join(map(repr, children))}")
        yield from _walk(f"{where}[{key!r}]", children[key], inner)


def _key(step: Any) -> Any:
    return getattr(step, "key", getattr(step, "idx", getattr(step, "name", step)))


def _dims(spec: Any) -> Iterator[tuple[Any, Any]]:
    yield from spec.items() if isinstance(spec, Mapping) else enumerate(spec)


def _axis(where: str, dim: Any, size: int, roots: set[int]) -> Axis | None:
    """The specification of one axis; None if the axis stays fixed."""
    if dim is None or (isinstance(dim, int) and not isinstance(dim, bool) and dim == size):
        return None
    if isinstance(dim, str):
        if not dim.isidentifier():
            raise ExportError(f"{where}: {dim!r}, a name must be a valid identifier, such as 'batch'")
        return Axis(where, Dim.AUTO, dim)
    if isinstance(dim, Dim):
        if hasattr(dim, "root") or id(dim) in roots:
            return Axis(where, dim, dim.__name__)
        # A Dim without limits has the limits 0 and infinity.
        low, high = (int(dim.min) or None), (int(dim.max) if isinstance(dim.max, int) else None)
        return Axis(where, _auto(low, high), dim.__name__, True, low, high)
    kind = getattr(getattr(dim, "type", None), "name", "")
    if kind == "STATIC":
        return None
    if kind in ("AUTO", "DYNAMIC"):
        low, high = dim.min, dim.max
        return Axis(where, _auto(low, high), None, kind == "DYNAMIC", low, high)
    raise ExportError(f"{where}: {dim!r}, must be {KINDS} (here {size})")


def _auto(low: int | None, high: int | None) -> Any:
    return Dim.AUTO if low is None and high is None else Dim.AUTO(min=low, max=high)


def _agree(inputs: Inputs, found: list[dict[int, Axis]]) -> None:
    """Check the examples: axes of the same name must have the same size, within the name's limits."""
    first: dict[str, tuple[int, Axis]] = {}
    for tensor, axes in zip(inputs.tensors, found, strict=True):
        for number, axis in axes.items():
            size = tensor.shape[number]
            if axis.must and size == 0:
                raise ExportError(f"{axis.where}: the example's size is 0 there; give one of at least 1")
            if not (axis.low or 0) <= size <= (size if axis.high is None else axis.high):
                limits = f"{axis.low or 0} to {'any' if axis.high is None else axis.high}"
                raise ExportError(f"{axis.where}: the example's size is {size} there, its limits are {limits}")
            if axis.name is None:
                continue
            before, other = first.setdefault(axis.name, (size, axis))
            if before != size:
                raise ExportError(
                    f"{axis.where}: {axis.name!r} is {size} in the example, and {before} at {other.where}; axes of one "
                    "name must have one size: give them different names, or examples of equal sizes"
                )
            if (axis.low, axis.high) != (other.low, other.high):
                raise ExportError(
                    f"{axis.where}: {axis.name!r} has other limits than at {other.where}; give both the same"
                )


def doubled(tensors: list[Tensor], asked: list[dict[int, Axis]]) -> list[Tensor]:
    """The examples, doubled along each axis that must vary and has size 1; a trace would treat 1 as a constant."""
    found = []
    for tensor, axes in zip(tensors, asked, strict=True):
        for number, axis in axes.items():
            if axis.must and tensor.shape[number] == 1 and axis.high != 1:
                tensor = torch.cat([tensor, tensor], dim=number)
        found.append(tensor)
    return found
