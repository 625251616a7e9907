"""``topkast.export``: write a trained model as a file that has been run and compared with the model."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from topkast.compiler.densify import densify
from topkast.runtime.errors import ConfigError, ExportError
from topkast.runtime.kernels import native_library
from topkast.runtime.state.model import find

from .cache import CachedInputs
from .flatten import Flat, Inputs, without_cache
from .names import file_names
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
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    use_cache: bool = False,
    precision: str = "fp32",
    verify: bool = True,
    opset: int = 18,
) -> ExportResult:
    """Write the model, in evaluation mode and with W_A as its weights, as an ONNX file.

    The file appears only after all checks have passed. onnx.checker always checks the file. With ``verify``, ONNX
    Runtime runs the file with topkast's library and without it, on the example inputs and on random inputs of other
    batch sizes. The results must agree with PyTorch's: a difference may be at most 100 roundings of the output's
    largest magnitude, or 32 times PyTorch's own error (measured against the same model in float64) if that is larger.

    A unit is dead if its row of W_A is all zero or if nothing reads the unit. Dead units are removed from all tensors
    that contain them, if the removal is exact; the result says which dead units stayed, and why.

    The model itself is not changed. A later forward with gradients may refresh the sets; after that the model differs
    from the file. Therefore compare the file with the model under ``no_grad``.

    Args:
        model: a model converted by topkast, or a wrapper of such a model.
        path: the path of the file; its folder must exist.
        example_inputs: the arguments of ``forward``: a tuple of positional arguments, a dict of keywords, or one
            tensor. Values that are no tensors become part of the graph. Outputs that are no tensors are left out.
        format: how sparse weights are stored.

            - "auto": for each weight the fastest format among those that were never slower than dense in measurements,
              for inputs of about the examples' size. If no format is faster than dense, the smallest format.
            - "custom": products as nodes ``topkast.SparseMatMul``, which topkast's kernels run in a session of
              :func:`topkast.onnx.session`. ONNX Runtime 1.17 and later also load the file without topkast and run the
              model at dense speed.
            - "block": products by standard operators, faster than dense in any ONNX Runtime, for blocks of 16 x 16 or
              more with about the same number of blocks in each block row.
            - "compact": the smallest file. The weights are unpacked when the file is loaded; runs at dense speed.
            - "dense": zeros are stored like any other number.
            - "sparse_initializer": ONNX's own sparse constants, for other tools; runs at dense speed.

            If a format does not suit a weight, the weight stays dense and the result gives the reason.
        input_names, output_names: the names in the file, in order. None: the names of ``forward``'s arguments, and the
            names in the model's output; a single tensor is called "output".
        dynamic_shapes: the axes that may have any size: a dict by argument name, or a tuple or list by position, with
            the structure of the inputs. Each tensor has a dict {axis: name} or a tuple with an entry for each axis.

            - A name, or ``torch.export.Dim(name)``, becomes the axis' name in the file. Axes of the same name have the
              same size.
            - ``Dim(name, min=..., max=...)`` limits the sizes. Limits that the model's code sets, such as a table of
              positions, are found and noted.
            - ``Dim.DYNAMIC`` lets the export choose a name. ``Dim.AUTO`` does the same unless the code fixes the axis.
            - ``Dim.STATIC``, None and the example's size keep the axis fixed.

            If an example has size 1 in a dynamic axis, the trace uses twice the size. None (the default): the first
            dimension of the first input is a batch of any size, and so is the first dimension of every input with the
            same size there. If the model's code does not allow this, sizes are fixed and a note says so.
        use_cache: True for a decoder of transformers that generates text: the file takes its key-value cache and
            returns the grown cache, under optimum's names. Inputs are ``input_ids`` [batch_size, sequence_length],
            ``attention_mask`` [batch_size, past_sequence_length + sequence_length], ``position_ids`` like ``input_ids``
            if the model takes them, and for each layer i ``past_key_values.{i}.key`` and ``past_key_values.{i}.value``
            [batch_size, heads, past_sequence_length, size]. Outputs are the model's own, such as ``logits``, and
            ``present.{i}.key`` and ``present.{i}.value``. All these sizes may vary, and a past of 0 tokens is allowed,
            so one file runs the prompt and each new token. ``example_inputs`` are ``input_ids``, and if wanted
            ``attention_mask`` and ``position_ids`` of the same shape; ``dynamic_shapes`` must be None. "auto" chooses
            formats for one new token of each example sequence. False (the default): no cache is read or returned.
        precision: the precision of the sparse weights' values in the file: "fp32" or "fp16". With "fp16" the values are
            rounded to float16, which halves the file, and converted to float32 when the file is loaded. Products are
            computed in float32, and are compared with the products of the rounded model.
        verify: whether to run the file and compare the results.
        opset: the version of the standard operators, 18 to 23.

    Returns:
        Facts about the file: its path and size, the largest error, and how each weight is stored. ``print`` shows them.

    Raises:
        ConfigError: the format, precision or opset is unknown, the names do not fit the model, or a weight is too large
            for float16. Also if ``dynamic_shapes`` is given with ``use_cache``.
        ExportError: the model cannot be traced or written, or the file's results do not agree; no file is left. Also if
            ``dynamic_shapes`` names an input or axis that does not exist, gives one name to axes of different sizes, or
            names an axis that the model's code fixes. With ``use_cache`` also if the model has no key-value cache, or a
            cache of another kind (states instead of keys and values, or an encoder beside the decoder).
        ModelError: the model was not converted.
    """
    # The import of ONNX and its runtime is slow, and training needs neither.
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
    if use_cache and dynamic_shapes is not None:
        raise ConfigError("dynamic_shapes: must be None with use_cache=True, which names all axes that vary")
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"path: the folder {path.parent} does not exist")
    plain = densify(model).cpu().eval()
    if precision == "fp16":
        round_to_half(plain, model)
    names, blocks = known_weights(plain, model)
    without_cache(plain)
    cached = CachedInputs(plain, example_inputs) if use_cache else None
    inputs = cached or Inputs(plain, example_inputs)
    flat, notes = Flat(plain, inputs), list[str]()
    dense_bytes = sum(t.numel() * t.element_size() for t in [*plain.parameters(), *plain.buffers()])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the exporter's own steps
        try:
            outputs = list(flat.named(*inputs.tensors))
        except Exception as error:
            raise ExportError(f"example_inputs: the model does not run on them: {first_line(error)}") from error
        if not outputs:
            raise ExportError("the model returns no tensor")
        in_file, outputs = file_names(inputs.names, outputs, input_names, output_names, notes)
        shapes = cached.dynamic_shapes if cached else dynamic_shapes
        program, tensors, sizes = trace(flat, inputs, shapes, notes)
        if cached:
            cached.finish(sizes)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            file = folder / path.name
            try:
                named = dict(zip(in_file, sizes.names, strict=True))
                dims = [
                    (name, t.shape[axis])
                    for t, dims in zip(tensors, sizes.names, strict=True)
                    for axis, name in dims.items()
                ]
                usual = cached.usual if cached else {}
                wanted = Wanted(format, precision == "fp16", blocks, names, dict(dims) | usual)
                written, found, shrunk = write(program, in_file, outputs, opset, named, "model.", wanted)
                save(written, file)
            except Exception as error:
                raise ExportError(
                    f"torch.onnx.export could not write the model at opset {opset}: {first_line(error)}; replace the "
                    "operation it names by one that ONNX has, or give torch.onnx.export(topkast.densify(model), ...) "
                    "a translation of it"
                ) from error
            del written
            if any(site.format == "sparse_initializer" for site in found):
                notes.append(
                    "onnxruntime.quantization cannot read ONNX's sparse constants; quantise a file of another format"
                )
            sparse_nodes = any(FORMATS[site.format].needs_library for site in found)
            library = native_library.path() if sparse_nodes else None
            if sparse_nodes and library is None:
                notes.append("topkast's library is not built here: what it computes was not compared")
            checked = compare(flat, file, in_file, tensors, dynamic_shapes is None, verify, library, sizes.trials)
            annotate(file, format, precision, found, shrunk, checked.max_error)
            size = sum(part.stat().st_size for part in folder.iterdir())
            for part in sorted(folder.iterdir(), reverse=True):  # the weights file first, then the model file
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
