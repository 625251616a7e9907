"""``topkast.package``: compile a trained model ahead of time with AOTInductor, into a file that PyTorch runs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from topkast.compiler.capture.traceable import in_the_open
from topkast.compiler.convert.use_forward_sets import ForwardSet, use_forward_sets
from topkast.compiler.densify import densify
from topkast.passes.aten import PassLog
from topkast.runtime.errors import ExportError
from topkast.runtime.layout import forward_part
from topkast.runtime.new_file import path_of, take_name
from topkast.runtime.state.model import find, owned, sites

from .flatten import arguments, flatten_outputs
from .program import first_line
from .unfinished import check_folder, folder_beside

SUFFIX = ".pt2"
ROUNDINGS = 100  # by which a compiled graph, which sums in another order, may differ from the model


def package(model: Any, path: str | os.PathLike[str], example_inputs: Any, *, dynamic_shapes: Any = None) -> Path:
    """Compile the model, in evaluation mode and with A only, into one file for PyTorch (AOTInductor).

    ``torch._inductor.aoti_load_package(path)`` gives a function with the model's arguments and results, on the device
    of the model. The sparse products are topkast's operators, which are registered in Python. Therefore the process
    that runs the file must import topkast first. A C++ program without Python cannot run the file; for such a program
    :func:`topkast.export` writes ONNX.

    The file is run on the example inputs, and must give the results of the model, before this function returns. The
    kernels that are the fastest on this machine, for inputs of about the examples' size, are fixed in the file. The
    model itself is not changed.

    Args:
        model: a model converted by topkast, or a wrapper of such a model, also one that was loaded for inference.
        path: the path of the file; it must end in ``.pt2``, and its folder must exist.
        example_inputs: the arguments of ``forward``: a tuple of positional arguments, a dict of keywords, or one
            tensor.
        dynamic_shapes: the axes that may have any size, as for ``torch.export.export``. None: no axis.

    Returns:
        The path of the file.

    Raises:
        ExportError: there is no C++ compiler, the model cannot be traced or compiled, or the file's results differ; no
            file is left.
        ModelError: the model was not converted.
    """
    find(model)
    path = path_of("path", path)
    if path.suffix != SUFFIX:
        raise ExportError(f"path: {path.name!r} must end in {SUFFIX}; topkast.export writes ONNX files")
    check_folder(path)
    args, kwargs = arguments(example_inputs)
    twin = _forward_only(model)
    with folder_beside(path) as folder:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the steps of torch's exporter and compiler
            wanted = flatten_outputs(twin(*args, **kwargs))
            file = _compiled(twin, folder / path.name, args, kwargs, dynamic_shapes)
            given = flatten_outputs(torch._inductor.aoti_load_package(str(file))(*args, **kwargs))
        _compare(given, wanted)
        take_name(file, path)
    return path


def _forward_only(model: Any) -> nn.Module:
    """A copy of the model that holds A only."""
    _, record = find(model)
    weights = {
        name: ForwardSet(*forward_part(site.values, site.index, site.geometry), site.geometry, site.rule.seed)
        for name, site in sites(model).items()
    }
    twin = densify(model)
    values = {f"{path}.{name}".lstrip(".") for _, owners in owned(model).values() for path, name in owners}
    rest = {key: value for key, value in twin.state_dict().items() if key not in values}
    use_forward_sets(twin, record.config, weights, rest, "of the model")
    return twin


def _compiled(twin: nn.Module, file: Path, args: Any, kwargs: Any, dynamic_shapes: Any) -> Path:
    from topkast.passes.aten.joint_pass import JointPass

    # A key is the number of a site in this process. In another process the number would belong to another site.
    for site in sites(twin).values():
        site.key.zero_()
    try:
        with in_the_open():
            program = torch.export.export(twin, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        options = {"joint_custom_pre_pass": JointPass(PassLog())}
        torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
    except Exception as error:
        raise ExportError(f"AOTInductor could not compile the model: {first_line(error)}") from error
    return file


def _compare(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Raise ExportError if a result differs from the model's by more than :data:`ROUNDINGS` of its largest value."""
    for name, tensor in wanted.items():
        result, eps = given.get(name), torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
        if result is None or result.shape != tensor.shape or result.dtype != tensor.dtype:
            raise ExportError(f"the compiled file does not agree with the model: it gives no {name!r} of its shape")
        most = float(tensor.abs().max()) if tensor.numel() else 0.0
        if not torch.allclose(result, tensor, rtol=0.0, atol=ROUNDINGS * eps * most, equal_nan=True):
            raise ExportError(
                f"the compiled file does not agree with the model: output {name!r}, of at most {most:.3g}, is off by "
                f"{float((result - tensor).abs().max()):.3g}"
            )
