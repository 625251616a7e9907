"""Write an exported program as an ONNX file, its weights in the wanted format."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import helper, numpy_helper

from topkast.passes.onnx.shrink.remove_dead_units import shrink

from . import metadata
from .check_file import check
from .convert import Wanted
from .graph import SPARSE, array_of
from .metadata import Shrunk, SiteResult
from .prepare.grouped_products import translations, unstack
from .prepare.tidy import tidy

INLINE_LIMIT = 2_000_000_000  # protobuf holds less than 2 GiB: beyond this the weights go to a file beside


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The exporter prints its progress, and warns of what its own steps use: nothing a user could act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write(
    program: torch.export.ExportedProgram,
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int,
    axes: Mapping[str, Mapping[int, str]],
    prefix: str,
    wanted: Wanted,
) -> tuple[ir.Model, Wanted, list[Shrunk]]:
    """An ONNX model of ``program`` with dense weights, how to store them, and which units were taken out.

    Args:
        program: takes and returns tensors only.
        input_names, output_names: one for each tensor, in order.
        opset: version of the standard operators.
        axes: input name -> {axis: name of the dynamic dimension}.
        prefix: of the weights' names, to be taken away.
        wanted: how to store the weights; the names in the result are those of the weights without the units.

    Raises:
        Whatever the exporter raises.
    """
    with _silent():
        exported = torch.onnx.export(
            program,
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=opset,
            dynamo=True,
            verbose=False,
            custom_translation_table=translations(),
        )
    assert exported is not None
    model = exported.model
    tidy(model, prefix, axes)
    unstack(model)
    shrunk, names = shrink(model, wanted.blocks, wanted.names)
    return model, dataclasses.replace(wanted, names=names), shrunk


def save(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``, and check it in full, see :func:`topkast.passes.onnx.check_file.check`.

    Raises:
        Whatever the checker raises.
    """
    proto = serialize(model)
    save_proto(proto, path)
    check(path, bool(proto.graph.sparse_initializer))


def save_proto(proto: onnx.ModelProto, path: Path) -> None:
    """Write ``proto`` to ``path``. Weights of more than 2 GB go to ``<path>.data`` beside it."""
    remove(path)  # onnx appends to the file of weights
    large = size(proto) > INLINE_LIMIT
    onnx.save(proto, str(path), save_as_external_data=large, location=f"{path.name}.data")


def remove(path: Path) -> None:
    """Remove a file, and its weights beside it, if they exist."""
    for part in (path, path.with_name(f"{path.name}.data")):
        part.unlink(missing_ok=True)


def serialize(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf, with sparse initializers, which ``onnx_ir`` does not know.

    A constant states its shape itself. A second statement, as exporters make it, is left out.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if not value.is_graph_input():
                value.type = value.shape = None
    proto = ir.to_proto(model)
    for i, value in reversed(list(enumerate(model.graph.initializers.values()))):
        if SPARSE in value.meta:
            del proto.graph.initializer[i]
            array = array_of(value)
            places = np.flatnonzero(array)
            values = numpy_helper.from_array(array.reshape(-1)[places], value.name)
            coordinates = numpy_helper.from_array(places.astype(np.int64), f"{value.name}.places")
            proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, coordinates, array.shape))
    return proto


def annotate(
    path: Path,
    format: str,
    precision: str,
    sites: Iterable[SiteResult],
    shrunk: Iterable[Shrunk],
    max_error: float | None,
    int8_error: float | None,
) -> None:
    """Note in the file at ``path`` what is in it, see :mod:`topkast.passes.onnx.metadata`."""
    model = onnx.load(str(path), load_external_data=False)
    metadata.write(model, format, precision, sites, shrunk, max_error, int8_error)
    onnx.save(model, str(path))


def size(model: onnx.ModelProto) -> int:
    """Bytes of the constants."""
    sparse = [part for tensor in model.graph.sparse_initializer for part in (tensor.values, tensor.indices)]
    return sum(len(tensor.raw_data) for tensor in [*model.graph.initializer, *sparse])
