"""``topkast.export``: from a trained model to a file that has been run and compared."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from topkast.runtime.errors import ConfigError, ExportError
from topkast.runtime.state import find

from .densify import densify
from .export_trace import first_line, trace
from .flatten import Flat, Inputs, without_cache

# Name -> what turns the converted model into a plain one, ready for torch.export.
FORMATS: dict[str, Callable[[Any], nn.Module]] = {"dense": densify}
OPSETS = range(18, 24)


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Args:
        path: of the file.
        format: how weights are stored.
        bytes: of the file, with the weights beside it where there are such.
        dense_bytes: of all parameters and buffers, stored dense.
        max_error: largest difference from PyTorch over all outputs and inputs tried; None if not verified.
        opset: version of the standard operators.
        inputs, outputs: name -> shape; a dynamic dimension is given by its name.
        notes: what the user should know.
    """

    path: Path
    format: str
    bytes: int
    dense_bytes: int
    max_error: float | None
    opset: int
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    notes: list[str]

    def __str__(self) -> str:
        def shapes(named: dict[str, list[int | str]]) -> str:
            return ", ".join(f"{name}[{', '.join(map(str, shape))}]" for name, shape in named.items())

        parity = "not verified" if self.max_error is None else f"max error {self.max_error:.2e} in ONNX Runtime"
        lines = [
            f"{self.path}: format {self.format}, opset {self.opset}, {self.bytes:,} bytes "
            f"(dense weights {self.dense_bytes:,}), {parity}",
            f"  {shapes(self.inputs)} -> {shapes(self.outputs)}",
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def export(
    model: Any,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    format: str = "dense",
    dynamic_shapes: Any = None,
    verify: bool = True,
    opset: int = 18,
) -> ExportResult:
    """Write the model, in evaluation mode and with W_A as its weights, as an ONNX file.

    The file appears only once it has passed: onnx.checker, and with ``verify`` runs in ONNX Runtime on the example
    inputs and on random ones of other batch sizes, whose results must agree with PyTorch's (see
    :func:`topkast.compiler.parity.compare` for the bound). The model itself is not touched. A later forward that is
    differentiated may refresh the sets, after which the model is not the one in the file: compare under ``no_grad``.

    Args:
        model: a model converted by topkast, or a wrapper of it.
        path: of the file; its folder must exist.
        example_inputs: what ``forward`` is called with: a tuple of positional arguments, a dict of keywords, or one
            tensor. Values that are no tensors become part of the graph. Outputs that are no tensors are left out.
        format: how weights are stored; "dense" for now.
        dynamic_shapes: as ``torch.export.export`` takes it, by argument name or position. None: the first dimension of
            every input that has the size of the first input's is a batch of any size; where the model's code does not
            allow that, sizes are fixed and a note says so.
        verify: whether to run and compare.
        opset: version of the standard operators, 18 to 23.

    Raises:
        ConfigError: an unknown format or opset.
        ExportError: the model cannot be traced or written, or what was written does not agree; no file is left.
        ModelError: the model was not converted.
    """
    # ONNX and its runtime take long to import, and training needs neither.
    from topkast.runtime.onnx.writer import write

    from .parity import compare

    find(model)
    if format not in FORMATS:
        raise ConfigError(f"format={format!r}: must be one of {', '.join(map(repr, FORMATS))}")
    if opset not in OPSETS:
        raise ConfigError(f"opset={opset!r}: must be an integer from {OPSETS[0]} to {OPSETS[-1]}")
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"path: the folder {path.parent} does not exist")
    plain = FORMATS[format](model).cpu().eval()
    without_cache(plain)
    inputs = Inputs(plain, example_inputs)
    flat, notes = Flat(plain, inputs), list[str]()
    dense_bytes = sum(t.numel() * t.element_size() for t in [*plain.parameters(), *plain.buffers()])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own steps
        try:
            output_names = list(flat.named(*inputs.tensors))
        except Exception as error:
            raise ExportError(f"example_inputs: the model does not run on them: {first_line(error)}") from error
        if not output_names:
            raise ExportError("the model returns no tensor")
        program, tensors, axes = trace(flat, inputs, dynamic_shapes, notes)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            try:
                named = dict(zip(inputs.names, axes, strict=True))
                write(program, folder / path.name, inputs.names, output_names, opset, named, "model.")
            except Exception as error:
                raise ExportError(
                    f"torch.onnx.export could not write the model at opset {opset}: {first_line(error)}; replace the "
                    "operation it names by one that ONNX has, or give torch.onnx.export(topkast.densify(model), ...) "
                    "a translation of it"
                ) from error
            size = sum(file.stat().st_size for file in folder.iterdir())
            checked = compare(flat, folder / path.name, inputs.names, tensors, dynamic_shapes is None, verify)
            for file in sorted(folder.iterdir(), reverse=True):  # the weights beside it first
                os.replace(file, path.parent / file.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return ExportResult(
        path,
        format,
        size,
        dense_bytes,
        checked.max_error,
        opset,
        checked.inputs,
        checked.outputs,
        notes + checked.notes,
    )
