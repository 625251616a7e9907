"""``topkast.export``: from a trained model to a file that has been run and compared."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.errors import ConfigError, ExportError
from topkast.runtime.state import find

from .dense import densify
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
    :func:`topkast.compiler.parity.compare` for the bound). The model itself is not touched.

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
            raise ExportError(f"example_inputs: the model does not run on them: {_first_line(error)}") from error
        if not output_names:
            raise ExportError("the model returns no tensor")
        program, tensors, axes = _trace(flat, inputs, dynamic_shapes, notes)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            try:
                named = dict(zip(inputs.names, axes, strict=True))
                write(program, folder / path.name, inputs.names, output_names, opset, named, "model.")
            except Exception as error:
                raise ExportError(
                    f"torch.onnx.export could not write the model at opset {opset}: {_first_line(error)}; replace the "
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


def _trace(
    flat: Flat, inputs: Inputs, dynamic_shapes: Any, notes: list[str]
) -> tuple[torch.export.ExportedProgram, list[Tensor], list[dict[int, str]]]:
    """(program, the tensors it was traced with, names of their dynamic dimensions)."""
    tensors = inputs.tensors
    if dynamic_shapes is not None:
        shapes = inputs.shapes(dynamic_shapes)
        return _exported(flat, tensors, shapes), tensors, _axes(shapes)
    sizes = [tensor.shape[0] for tensor in tensors if tensor.dim()]
    if sizes:
        shared = [bool(tensor.dim()) and tensor.shape[0] == sizes[0] for tensor in tensors]
        batch = torch.export.Dim("batch")
        # A size of 1 would be taken as a constant: trace with the example twice.
        doubled = [torch.cat([t, t]) if sizes[0] == 1 and b else t for t, b in zip(tensors, shared, strict=True)]
        try:
            shapes = [{0: batch} if b else None for b in shared]
            return _exported(flat, doubled, shapes), doubled, _axes(shapes)
        except ExportError as error:
            why = _first_line(error.__cause__)
            notes.append(f"the batch size is fixed at {sizes[0]}, the model's code does not allow another: {why}")
    return _exported(flat, tensors, [None] * len(tensors)), tensors, [{} for _ in tensors]


def _exported(flat: Flat, tensors: list[Tensor], shapes: list[Any]) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(flat, tuple(tensors), dynamic_shapes=(tuple(shapes),), strict=False)
    except Exception as error:
        raise ExportError(
            f"torch.export could not trace {type(flat.model).__name__}: {_first_line(error)}; let its forward not "
            "branch on values of tensors (torch.where, torch.cond), not make numpy arrays or Python numbers of them, "
            "and return tensors"
        ) from error


def _axes(shapes: list[Any]) -> list[dict[int, str]]:
    """Names of the dynamic dimensions, for each tensor; dimensions that torch names by itself have none."""
    found = []
    for spec in shapes:
        pairs = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
        named = {axis: dim if isinstance(dim, str) else getattr(dim, "__name__", None) for axis, dim in pairs}
        found.append({axis: name for axis, name in named.items() if name})
    return found


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].split(' For more information')[0] if lines else ''}"
