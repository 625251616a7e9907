"""``topkast.export``: from a trained model to a file that has been run and compared."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from topkast.compiler.densify import densify
from topkast.runtime.errors import ConfigError, ExportError
from topkast.runtime.kernels import native_library
from topkast.runtime.state.model import find

from .flatten import Flat, Inputs, without_cache
from .program import first_line, trace
from .result import ExportResult
from .weights import known_weights, round_to_half

PRECISIONS = ("fp32", "fp16")
OPSETS = range(18, 24)


def export(
    model: Any,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    format: str = "auto",
    dynamic_shapes: Any = None,
    precision: str = "fp32",
    verify: bool = True,
    opset: int = 18,
) -> ExportResult:
    """Write the model, in evaluation mode and with W_A as its weights, as an ONNX file.

    The file appears only once it has passed: onnx.checker, and with ``verify`` runs in ONNX Runtime, with topkast's
    library and without, on the example inputs and on random ones of other batch sizes, whose results must agree with
    PyTorch's (see :func:`topkast.compiler.export.parity.compare` for the bound). Units that are dead, because their row
    of W_A is all zero or nothing reads them, are taken out of all tensors they are in, where that is exact; the result
    says which stayed and why. The model itself is not touched. A later forward that is differentiated may refresh the
    sets, after which the model is not the one in the file: compare under ``no_grad``.

    Args:
        model: a model converted by topkast, or a wrapper of it.
        path: of the file; its folder must exist.
        example_inputs: what ``forward`` is called with: a tuple of positional arguments, a dict of keywords, or one
            tensor. Values that are no tensors become part of the graph. Outputs that are no tensors are left out.
        format: how sparse weights are stored.

            - "auto": for each weight the fastest, for inputs of about the examples' size, that never lost to dense
              where it was measured; where nothing is faster, the smallest.
            - "custom": products as nodes ``topkast.SparseMatMul``, which our kernels run in a session of
              :func:`topkast.onnx.session`; any ONNX Runtime from 1.17 on loads the file too and runs it at dense speed.
            - "block": products by standard operators, faster than dense in any ONNX Runtime, for blocks of 16 x 16 or
              more with about as many in each block row.
            - "compact": the smallest file, unpacked when it is loaded; runs at dense speed.
            - "dense": zeros stored like any number.
            - "sparse_initializer": ONNX's own sparse constants, for other tools; runs at dense speed.

            Weights that a format does not suit stay dense, with the reason in the result.
        dynamic_shapes: which axes may have any size: a dict by argument name, or a tuple or list by position, that
            follows the inputs' structure; for each tensor a dict {axis: name} or a tuple with an entry for each axis.
            A name (or ``torch.export.Dim(name)``) is what the file calls the axis; axes of one name have one size.
            ``Dim(name, min=..., max=...)`` limits the sizes; limits that the model's code sets, such as a table of
            positions, are found and noted. ``Dim.DYNAMIC`` is a name that the export chooses; ``Dim.AUTO`` too, unless
            the code fixes the axis; ``Dim.STATIC``, None and the example's size keep it fixed. Examples of size 1 are
            traced twice as large. None: the first dimension of every input that has the size of the first input's is a
            batch of any size; where the model's code does not allow that, sizes are fixed and a note says so.
        precision: of sparse weights' values in the file. "fp32", or "fp16": they are rounded to float16, which halves
            the file, and widened when it is loaded; products are computed in float32, and compared with the rounded
            model's.
        verify: whether to run and compare.
        opset: version of the standard operators, 18 to 23.

    Raises:
        ConfigError: an unknown format, precision or opset; a weight too large for float16.
        ExportError: the model cannot be traced or written, or what was written does not agree; no file is left. Or
            ``dynamic_shapes`` names what the inputs do not have, gives one name to axes of unequal sizes, or names an
            axis that the model's code fixes.
        ModelError: the model was not converted.
    """
    # ONNX and its runtime take long to import, and training needs neither.
    from topkast.passes.onnx.convert import Wanted
    from topkast.passes.onnx.formats import AUTO, FORMATS
    from topkast.passes.onnx.writer import annotate, save, write

    from .parity import compare

    find(model)
    formats = (AUTO, *FORMATS)
    if format not in formats:
        raise ConfigError(f"format={format!r}: must be one of {', '.join(map(repr, formats))}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r}: must be one of {', '.join(map(repr, PRECISIONS))}")
    if opset not in OPSETS:
        raise ConfigError(f"opset={opset!r}: must be an integer from {OPSETS[0]} to {OPSETS[-1]}")
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"path: the folder {path.parent} does not exist")
    plain = densify(model).cpu().eval()
    if precision == "fp16":
        round_to_half(plain, model)
    names, blocks = known_weights(plain, model)
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
        program, tensors, sizes = trace(flat, inputs, dynamic_shapes, notes)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            file = folder / path.name
            try:
                named = dict(zip(inputs.names, sizes.names, strict=True))
                dims = [
                    (name, t.shape[axis])
                    for t, dims in zip(tensors, sizes.names, strict=True)
                    for axis, name in dims.items()
                ]
                wanted = Wanted(format, precision == "fp16", blocks, names, dict(dims))
                written, found, shrunk = write(
                    program, file, inputs.names, output_names, opset, named, "model.", wanted
                )
                save(written, file)
            except Exception as error:
                raise ExportError(
                    f"torch.onnx.export could not write the model at opset {opset}: {first_line(error)}; replace the "
                    "operation it names by one that ONNX has, or give torch.onnx.export(topkast.densify(model), ...) "
                    "a translation of it"
                ) from error
            del written
            sparse_nodes = any(FORMATS[site.format].needs_library for site in found)
            library = native_library.path() if sparse_nodes else None
            if sparse_nodes and library is None:
                notes.append("topkast's library is not built here: what it computes was not compared")
            checked = compare(flat, file, inputs.names, tensors, dynamic_shapes is None, verify, library, sizes.trials)
            annotate(file, format, precision, found, shrunk, checked.max_error)
            size = sum(part.stat().st_size for part in folder.iterdir())
            for part in sorted(folder.iterdir(), reverse=True):  # the weights beside it first
                os.replace(part, path.parent / part.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return ExportResult(
        path,
        format,
        precision,
        size,
        dense_bytes,
        checked.max_error,
        opset,
        checked.inputs,
        checked.outputs,
        found,
        shrunk,
        notes + checked.notes,
    )
