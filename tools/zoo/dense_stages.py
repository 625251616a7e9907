"""The stages, asked of the dense model in plain PyTorch: what fails there too is not topkast's failing."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from topkast.compiler.export.flatten import Flat, Inputs, without_cache
from topkast.compiler.export.parity import compare

from .model_entry import Entry, loss_of, tensors

BESIDE = "in plain PyTorch, beside our model"
NO_MEMORY = "can't allocate memory"  # says as much of the limit as of the model
OF_VALUES = ("of its budget", "not finite", "differs")  # what lockstep says of values, and of sets that follow them


def fails(stage: str, entry: Entry, ours: Exception) -> Exception | None:
    """The dense model's error in the same stage; None where it has none, or where the stage has no dense form.

    Args:
        stage: its name.
        entry: the model.
        ours: the error with topkast. Of the oracle's stage it says what is asked. Where our values are others, whether
            the model has values of its own; nothing excuses a broken promise of another kind, as a weight outside B
            that moved. Where our model could not run, whether the dense one compiles; where plain PyTorch beside it
            (:data:`BESIDE` in the error's notes) could not, whether the dense one runs as that does.
    """
    if NO_MEMORY in str(ours):
        asked = []
    elif stage != "oracle":
        asked = DENSE.get(stage, [])
    elif BESIDE in getattr(ours, "__notes__", ()):
        asked = [compiled, _in_float64]
    elif isinstance(ours, AssertionError):
        asked = [_steady] if any(words in str(ours) for words in OF_VALUES) else []
    else:
        asked = [compiled]
    for question in asked:
        torch._dynamo.reset()
        try:
            question(entry)
        except Exception as error:
            return error
    return None


def compiled(entry: Entry) -> float:
    """One forward and backward through plain torch.compile; returns the seconds."""
    model = entry.model()
    args, kwargs = entry.at(1)
    start = time.perf_counter()
    loss_of(torch.compile(model, backend="aot_eager")(*args, **kwargs)).backward()
    return time.perf_counter() - start


def _steady(entry: Entry) -> None:
    """Two runs from one seed are equal bit for bit, and finite."""
    model = entry.model()
    args, kwargs = entry.at(1)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(_values(model(*args, **kwargs)))
    if not all(bool(value.isfinite().all()) for value in found[0]):
        raise ValueError("the dense model's output is not finite")
    if not _same(*found):
        raise ValueError("the dense model computes something else in each run from one seed")


def _in_float64(entry: Entry) -> None:
    args, kwargs = tree_map(_doubled, entry.at(1))
    loss_of(entry.model().double()(*args, **kwargs)).backward()


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _copied(entry: Entry) -> None:
    """After a step of training: a copy computes the same, and so does an altered one with the same state dict."""
    model = entry.model()
    args, kwargs = entry.at(1)
    loss_of(model(*args, **kwargs)).backward()
    twin, other = copy.deepcopy(model).eval(), entry.model().eval()
    with torch.no_grad():
        before = _values(twin(*args, **kwargs))
        if not _same(_values(copy.deepcopy(twin)(*args, **kwargs)), before):
            raise ValueError("a copy of the dense model computes something else")
        for parameter in other.parameters():
            parameter.copy_(torch.rand_like(parameter))
        other.load_state_dict(twin.state_dict())
        if not _same(_values(other(*args, **kwargs)), before):
            raise ValueError("a dense model with the same state dict computes something else")


def _values(output: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors(output)]


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def _exported(entry: Entry) -> None:
    """torch.export with fixed sizes, torch.onnx.export and ONNX Runtime, compared as topkast's file is."""
    model = entry.model().eval()
    without_cache(model)
    inputs = Inputs(model, entry.example())
    flat = Flat(model, inputs)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        program = torch.export.export(flat, tuple(inputs.tensors), strict=False)
        names = list(flat.named(*inputs.tensors))
        file = torch.onnx.export(
            program, dynamo=True, verbose=False, opset_version=18, input_names=inputs.names, output_names=names
        )
        assert file is not None
        file.save(str(path))
        compare(flat, path, inputs.names, inputs.tensors, False, True)


DENSE: dict[str, list[Callable[[Entry], Any]]] = {"compile": [compiled], "copies": [_copied], "export": [_exported]}
