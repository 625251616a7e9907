"""Make an exported graph read like the model: its own names, and nothing of the machine that wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass


def tidy(model: ir.Model, prefix: str, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Change ``model`` in place.

    Stack traces and source paths, which the exporter notes at every node (most of a small file), are dropped; weights
    lose the wrapper's prefix; values inside make way for the names of inputs and outputs; dynamic dimensions get the
    names they were asked for. Up to opset 20 the file's own version is that of ONNX Runtime 1.17, which has all that is
    left in it.

    Args:
        model: as exported.
        prefix: of the weights' names, to be taken away.
        axes: input name -> {axis: name of the dimension}.
    """
    graphs = list(model.graphs())
    values = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    values += [value for graph in graphs for node in graph for value in node.outputs]
    _make_way(model, values)
    taken = {value.name for value in values}
    for graph in graphs:
        weights = list(graph.initializers.values())
        short = [str(value.name).removeprefix(prefix) for value in weights]
        names = [str(value.name) if name in taken else name for value, name in zip(weights, short, strict=True)]
        ir.convenience.rename_values(weights, names)
    dims = {}
    for value in model.graph.inputs:
        for axis, wanted in axes.get(str(value.name), {}).items():
            symbol = value.shape[axis] if value.shape is not None else None
            if isinstance(symbol, ir.SymbolicDim) and symbol.value and not symbol.value.isdecimal():
                dims[symbol.value] = wanted
    for value in values:
        value.metadata_props.clear()
        if value.shape is not None:
            value.shape = ir.Shape(_named(dim, dims) for dim in value.shape)
    if max(model.opset_imports.values()) <= 20:
        model.ir_version = min(model.ir_version, 9)
    ClearMetadataAndDocStringPass()(model)


def _make_way(model: ir.Model, values: list[ir.Value]) -> None:
    """Give other names to values inside that have the name of an input or an output of the file."""
    ports = {id(value): value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    taken = {value.name for value in values}
    inside = [value for value in values if id(value) not in ports and value.name in ports.values()]
    names = []
    for value in inside:
        name = f"{value.name}_inside"
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    ir.convenience.rename_values(inside, names)


def _named(dim: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | ir.SymbolicDim | str:
    """A dimension by the names asked for: a symbol, or an expression of symbols, which may be an input's axis too."""
    if isinstance(dim, int) or not dim.value:
        return dim
    if dim.value.isdecimal():  # a size that was to vary, and that the model's code fixes
        return int(dim.value)
    named = names.get(dim.value) or re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.value)
    terms = named.split(" + ")
    # torch orders the terms of a sum by its own names of the symbols, which say nothing here.
    return " + ".join(sorted(terms)) if all(term.isidentifier() for term in terms) else named
