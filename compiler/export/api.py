"""``topkast.export``: write a trained model as a file that has been run and compared with the model."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from topkast.compiler.densify import densify
from topkast.runtime.doing import doing
from topkast.runtime.errors import ConfigError, ExportError
from topkast.runtime.extras import need
from topkast.runtime.kernels import native_library
from topkast.runtime.new_file import path_of, take_name
from topkast.runtime.state.model import find

from .dimensions.axes import all_axes
from .flatten import Flat, Inputs, without_cache
from .int8.int8_options import read_int8_options
from .kv_cache import CachedInputs
from .names import file_names
from .program import first_line, trace
from .result import ExportResult
from .unfinished import folder_beside
from .weights import known_weights, round_to_half


def export(
    model: Any,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    format: str = "auto",
    library: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    use_cache: bool = False,
    precision: str = "fp32",
    keep_float: Any = None,
    calibration: Iterable[Any] | None = None,
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

            - "auto": for each weight the fastest format for inputs of about the examples' size. The formats that were
              faster than dense in earlier measurements are timed here, each distinct product once in a process; the
              result holds the times. If no format is faster than dense, the smallest format.
            - "custom": products as nodes ``topkast.SparseMatMul``, which topkast's kernels run in a session of
              :func:`topkast.onnx.session`. ONNX Runtime 1.17 and later also load the file without topkast and run the
              model at dense speed.
            - "block": products by standard operators, faster than dense in any ONNX Runtime, for blocks of 16 x 16 or
              more with about the same number of blocks in each block row.
            - "compact": the smallest file. The weights are unpacked when the file is loaded; runs at dense speed.
            - "dense": zeros are stored like any other number.
            - "sparse_initializer": ONNX's own sparse constants, for other tools; runs at dense speed.

            If a format does not suit a weight, the weight stays dense and the result gives the reason.
        library: False: the file may hold only what ONNX Runtime runs fast without topkast's library, so "auto" does not
            choose "custom".
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
        precision: the precision of the weights' values in the file.

            - "fp32": as the model has them.
            - "fp16": the sparse weights' values are rounded to float16, which halves the file, and converted to float32
              when the file is loaded. Products are computed in float32, and are compared with the products of the
              rounded model.
            - "int8": the values are rounded to int8 with a scale for each output. The formats "custom", "block" and
              "dense" (the last two: no convolutions) quantise x at each run and multiply integers; the other formats
              unpack the weights to float32 when the file is loaded. Linear layers that were never sparse,
              such as the head of a decoder, become int8 in the format "dense". ``verify`` then has three parts: the
              same file in float32 is compared with PyTorch; each integer product is compared with integer arithmetic
              in PyTorch, bit for bit; and the result says how much int8 changes the outputs.
            - "auto": for each weight "int8" if that is measured here to be faster than every format in float32,
              otherwise "fp32". Only with ``format="auto"``. The result holds the times of both.
        keep_float: with "int8" or "auto", the weights that stay in float32: a list of globs of parameter names, or a
            number. A number is the largest change that int8 may cause on the batches of ``calibration``: 0.01 is 1 % of
            the loss, or of the outputs if the model gives no loss. The weights that change the outputs most, each
            measured alone, then stay in float32, as few as needed. None (the default): no weight stays for its name
            or for a budget.
        calibration: with "int8" or "auto", an iterable of inputs, each like ``example_inputs``; a batch of a
            transformers model may hold labels too. The result then says how much int8 changes the model's loss (if its
            output has ``.loss``) or its outputs, beside ONNX Runtime's own int8 of the dense model.
        verify: whether to run the file and compare the results.
        opset: the version of the standard operators, 18 to 23.

    Returns:
        Facts about the file: its path and size, the largest error, and how each weight is stored. ``print`` shows them.

    Raises:
        ConfigError: the format, precision or opset is unknown; ``format="custom"`` with ``library=False``;
            ``precision="auto"`` with a format other than "auto"; the names do not fit the model; ``dynamic_shapes`` is
            given with ``use_cache``; a weight is too large for float16; int8 would lose too much of weights, or they
            hold NaN or infinities (the message names all of them); keep_float or calibration is not as described.
        ExportError: the model cannot be traced or written, or the file's results do not agree; no file is left. Also if
            ``dynamic_shapes`` names an input or axis that does not exist, gives one name to axes of different sizes, or
            names an axis that the model's code fixes. With ``use_cache`` also if the model has no key-value cache, or a
            cache of another kind (states instead of keys and values, or an encoder beside the decoder).
        MissingPackageError: the packages of the extra ``topkast[onnx]`` are not installed.
        ModelError: the model was not converted.
    """
    need("onnx", "topkast.export")
    # The import of ONNX and its runtime is slow, and training needs neither.
    from topkast.passes.onnx.convert import Wanted, convert
    from topkast.passes.onnx.formats import FORMATS
    from topkast.passes.onnx.writer import annotate, save

    from .check_arguments import check_arguments
    from .dense_models import Models
    from .int8.batches import Batches
    from .int8.calibrate import calibrate
    from .int8.check_integers import check_integers, distance, in_float32
    from .parity import compare

    find(model)
    path = path_of("path", path)
    check_arguments(path, format, precision, library, opset, use_cache, dynamic_shapes)
    plain = densify(model).cpu().eval()
    if precision == "fp16":
        round_to_half(plain, model)
    int8 = read_int8_options(plain, model, precision, keep_float, calibration)
    names, blocks = known_weights(plain, model)
    without_cache(plain)
    cached = CachedInputs(plain, example_inputs) if use_cache else None
    inputs = cached or Inputs(plain, example_inputs)
    flat, notes, calibrated = Flat(plain, inputs), list[str](), None
    dense_bytes = sum(t.numel() * t.element_size() for t in [*plain.parameters(), *plain.buffers()])
    with doing("exporting"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the exporter's own steps
        try:
            results = flat.named(*inputs.tensors)
        except Exception as error:
            raise ExportError(f"example_inputs: the model does not run on them: {first_line(error)}") from error
        if not results:
            raise ExportError("the model returns no tensor")
        in_file, out_of_file = file_names(inputs.names, list(results), input_names, output_names, notes)
        batches = None if int8.batches is None else Batches(plain, int8.batches)
        program, tensors, sizes = trace(flat, inputs, cached.dynamic_shapes if cached else dynamic_shapes, notes)
        if cached:
            cached.finish(sizes)
        with folder_beside(path) as folder:
            file = folder / path.name
            wanted = Wanted(format, precision, blocks, names, keep_float=int8.patterns, library=library)
            models = Models(wanted, cached.usual if cached else {}, opset)
            try:
                dense = models.dense(program, in_file, tensors, sizes, out_of_file)
                wanted = dense.wanted
                if batches is not None:
                    measured, first = dense, batches.inputs[0]
                    if first.names != in_file:  # they hold labels, or have names of their own
                        traced = trace(Flat(plain, first), first, all_axes(first), [])
                        measured = models.dense(traced[0], first.names, *traced[1:], list(batches.outputs[0]))
                    calibrated, chosen = calibrate(batches, measured.model, measured.wanted, int8.budget, folder)
                    wanted = dataclasses.replace(wanted, keep_float=chosen)
                written = dense.model.clone()
                found, integers = convert(written, wanted)
                save(written, file)
            except (ConfigError, ExportError):
                raise
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
            kernels = native_library.path() if sparse_nodes else None
            if sparse_nodes and kernels is None:
                notes.append("topkast's library is not built here: what it computes was not compared")
            int8_error, lossy = None, verify and any(site.precision == "int8" for site in found)
            if lossy:
                feeds = dict(zip(in_file, tensors, strict=True))
                check_integers(file, integers, feeds, kernels)
                int8_error = distance(file, feeds, flat.named(*tensors))
            # A file with int8 differs from PyTorch, so a file with the same weights in float32 is compared.
            float32 = in_float32(file, dense.model, wanted, found) if lossy else nullcontext(file)
            with doing("verifying"), float32 as compared:
                checked = compare(
                    flat, compared, in_file, tensors, dynamic_shapes is None, verify, kernels, sizes.trials
                )
            annotate(file, format, precision, found, dense.shrunk, checked.max_error, int8_error)
            size = sum(part.stat().st_size for part in folder.iterdir())
            for part in sorted(folder.iterdir(), reverse=True):  # the weights file first, then the model file
                take_name(part, path.parent / part.name)
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
        dense.shrunk,
        notes + checked.notes,
        int8_error,
        calibrated,
    )
