"""Write an exported program as an ONNX file, its weights in the wanted format."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import torch

from topkast.passes.onnx.shrink.remove_dead_units import shrink

from . import metadata
from .check_file import check
from .convert import Wanted, convert
from .grouped_products import translations, unstack
from .metadata import Shrunk, SiteResult
from .tidy import tidy

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
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int,
    axes: Mapping[str, Mapping[int, str]],
    prefix: str,
    wanted: Wanted,
) -> tuple[onnx.ModelProto, list[SiteResult], list[Shrunk]]:
    """An ONNX model of ``program``, how each of its weights is stored, and which units were taken out.

    Args:
        program: takes and returns tensors only.
        path: of a file to write on the way; it is replaced by :func:`save`.
        input_names, output_names: one for each tensor, in order.
        opset: version of the standard operators.
        axes: input name -> {axis: name of the dynamic dimension}.
        prefix: of the weights' names, to be taken away.
        wanted: the format.

    Raises:
        Whatever the exporter raises.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    with _silent():
        written = torch.onnx.export(
            program,
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=opset,
            dynamo=True,
            verbose=False,
            custom_translation_table=translations(),
        )
        assert written is not None
        written.save(str(path), external_data=weights > INLINE_LIMIT)
    model = onnx.load(str(path))
    for file in path.parent.iterdir():
        file.unlink()
    tidy(model, prefix, axes)
    unstack(model)
    shrunk, names = shrink(model, wanted.blocks, wanted.names)
    return model, convert(model, dataclasses.replace(wanted, names=names)), shrunk


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model`` to ``path``, and check it in full, see :func:`topkast.passes.onnx.check_file.check`.

    Weights of more than 2 GB go to ``<path>.data`` beside it, out of ``model``.

    Raises:
        Whatever the checker raises.
    """
    large = size(model) > INLINE_LIMIT
    beside = f"{path.name}.data"
    (path.parent / beside).unlink(missing_ok=True)  # onnx appends to it
    onnx.save(model, str(path), save_as_external_data=large, location=beside)
    check(path, bool(model.graph.sparse_initializer))


def annotate(
    path: Path,
    format: str,
    precision: str,
    sites: Iterable[SiteResult],
    shrunk: Iterable[Shrunk],
    max_error: float | None,
) -> None:
    """Note in the file at ``path`` what is in it, see :mod:`topkast.passes.onnx.metadata`."""
    model = onnx.load(str(path), load_external_data=False)
    metadata.write(model, format, precision, sites, shrunk, max_error)
    onnx.save(model, str(path))


def size(model: onnx.ModelProto) -> int:
    """Bytes of the constants."""
    sparse = [part for tensor in model.graph.sparse_initializer for part in (tensor.values, tensor.indices)]
    return sum(len(tensor.raw_data) for tensor in [*model.graph.initializer, *sparse])
