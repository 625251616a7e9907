"""Make an exported graph read like the model: its own names, and nothing of the machine that wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import onnx


def tidy(model: onnx.ModelProto, prefix: str, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Change ``model`` in place.

    Stack traces and source paths, which the exporter notes at every node (most of a small file), are dropped; weights
    lose the wrapper's prefix; dynamic dimensions get the names they were asked for. Up to opset 20 the file's own
    version is that of ONNX Runtime 1.17, which has all that is left in it.

    Args:
        model: as exported.
        prefix: of the weights' names, to be taken away.
        axes: input name -> {axis: name of the dimension}.
    """
    graphs = list(_graphs(model.graph))
    taken = {name for graph in graphs for name in _names(graph)}
    names = {}
    for graph in graphs:
        for tensor in graph.initializer:
            short = tensor.name.removeprefix(prefix)
            if short not in taken:
                names[tensor.name] = short
    dims = {}
    for value in model.graph.input:
        for axis, wanted in axes.get(value.name, {}).items():
            symbol = value.type.tensor_type.shape.dim[axis].dim_param
            if symbol and not symbol.isdecimal():
                dims[symbol] = wanted
    for graph in graphs:
        _rename(graph, names)
        for value in [*graph.input, *graph.output, *graph.value_info]:
            value.ClearField("metadata_props")
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param.isdecimal():  # a size that was to vary, and that the model's code fixes
                    dim.dim_value = int(dim.dim_param)
                elif dim.dim_param:  # a symbol, or an expression of symbols, which may be an input's axis too
                    dim.dim_param = dims.get(dim.dim_param) or re.sub(
                        r"\w+", lambda found: dims.get(found[0], found[0]), dim.dim_param
                    )
    if max(entry.version for entry in model.opset_import) <= 20:
        model.ir_version = min(model.ir_version, 9)
    for holder in [*graphs, *model.functions]:
        holder.ClearField("metadata_props")
        for node in holder.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all that its control flow holds."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    values: list[Any] = [*graph.input, *graph.initializer]
    yield from (value.name for value in values)
    for node in graph.node:
        yield from node.output


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    values: list[Any] = [*graph.initializer, *graph.value_info, *graph.output]
    for value in values:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
