"""Write an exported program as an ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import torch

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
) -> None:
    """Write ``program`` to ``path`` and let onnx.checker look at it.

    Args:
        program: takes and returns tensors only.
        path: of the file; weights of more than 2 GB go to ``<path>.data`` beside it.
        input_names, output_names: one for each tensor, in order.
        opset: version of the standard operators.
        axes: input name -> {axis: name of the dynamic dimension}.
        prefix: of the weights' names, to be taken away.

    Raises:
        Whatever the exporter or the checker raises.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    with _silent():
        written = torch.onnx.export(
            program,
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        assert written is not None
        written.save(str(path), external_data=size > INLINE_LIMIT)
    model = onnx.load(str(path), load_external_data=False)
    tidy(model, prefix, axes)
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))
