"""What is asked of one model, stage by stage. Each stage's result is handed on at once: a later one may be killed."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import topkast

from . import dense_stages as _zoo_dense
from . import inductor as _zoo_inductor
from . import kernel_sample as _zoo_kernels
from . import lockstep_steps as _zoo_oracle
from .model_entry import Entry, loss_of, tensors

Tell = Callable[[dict[str, Any]], None]


def warm() -> None:
    """Fill the caches that every model would fill again: called before the processes part. No gradients: autograd's
    engine does not survive a fork."""
    layer = nn.Linear(2, 2)
    with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        torch.compile(layer, backend="aot_eager")(torch.ones(1, 2))
        topkast.export(topkast.sparsify(layer, min_size=1), Path(folder) / "m.onnx", (torch.ones(1, 2),))
    torch._dynamo.reset()


class Stop(Exception):
    """The stages that follow make no sense."""


def check(entry: Entry, tell: Tell, stages: tuple[str, ...]) -> None:
    """Run the stages; ``tell`` is called with what each one found, the first line of its error under its name.

    What fails is asked of the dense model as well, in plain PyTorch; if that fails too, its error stands in the
    record's "not ours".

    Args:
        entry: the model.
        tell: takes a dict that is added to the model's record.
        stages: names of :data:`STAGES`, of those that are wanted; what a stage needs of an earlier one, it skips.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages
            _check({"entry": entry, "not ours": {}}, tell, stages)
    finally:
        logging.disable(before)


def _check(state: dict[str, Any], tell: Tell, stages: tuple[str, ...]) -> None:
    for name, stage in STAGES.items():
        if name not in stages:
            continue
        start = time.perf_counter()
        try:
            found = stage(state)
        except Stop as stop:
            tell({name: str(stop)})
            return
        except Exception as error:
            spent = {name: round(time.perf_counter() - start, 1)}
            tell({name: said(error), "seconds": spent, **state.pop("partial", {})})
            if (dense := _zoo_dense.fails(name, state["entry"], error)) is not None:
                state["not ours"][name] = said(dense)
                tell({"not ours": state["not ours"]})
            if name in ("model", "compile"):
                return
        else:
            tell({name: "ok", "seconds": {name: round(time.perf_counter() - start, 1)}, **(found or {})})


def said(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _model(state: dict[str, Any]) -> dict[str, Any]:
    """The package's model itself: does it run, and can its output be differentiated?"""
    model = state["entry"].model()
    args, kwargs = state["entry"].at(1)
    loss_of(model(*args, **kwargs)).backward()
    return {"parameters": sum(p.numel() for p in model.parameters())}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Plain torch.compile of the dense model: its graph breaks, its seconds."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    seconds = _zoo_dense.compiled(state["entry"])
    return {"plain": {"breaks": _zoo_oracle.breaks(), "compile": round(seconds, 2)}}


def _compile(state: dict[str, Any]) -> dict[str, Any]:
    """topkast.compile, unchanged, beside the oracle and the truth."""
    try:
        used = _zoo_kernels.fitting(state, _zoo_oracle.start)
    except topkast.ModelError as error:
        if "no weight can be sparse" in str(error):
            raise Stop(f"refused: {error}") from error
        raise
    model = state["trio"].ours.model
    report = topkast.report(model)
    reasons = Counter(why for name, why in report.dense.items() if model.get_parameter(name).ndim > 1)
    return {"how": report.how.split("(")[0].strip(), "dense": dict(reasons.most_common(8)), **used}


def _oracle(state: dict[str, Any]) -> dict[str, Any]:
    return _zoo_oracle.equal(state, said)


def _copies(state: dict[str, Any]) -> None:
    """deepcopy computes the same, `.to` keeps θ, a state dict makes an altered copy the same again."""
    entry, model = state["entry"], state["trio"].ours.model
    args, kwargs = entry.at(9)
    twin = copy.deepcopy(model).eval()
    other = copy.deepcopy(twin)
    with torch.no_grad():
        before = sums(twin(*args, **kwargs))
        theta = topkast.dense_state_dict(other, values="all")
        noise = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in theta.items()}
        topkast.load_dense_state_dict(other, {k: _tied(noise, theta, k) for k in theta})
        other.load_state_dict(twin.state_dict())
        if not torch.equal(sums(other(*args, **kwargs)), before):
            raise AssertionError("a copy with the same state dict computes something else")
        entry.model().load_state_dict(topkast.dense_state_dict(twin, values="all"))
        other.double().float()
        again = topkast.dense_state_dict(other, values="all")
        if any(not torch.equal(again[k], theta[k]) for k in theta):
            raise AssertionError("θ is another after .double().float()")


def _tied(noise: dict[str, Tensor], theta: dict[str, Tensor], key: str) -> Tensor:
    """Keys over one tensor get one value."""
    first = next(other for other in theta if theta[other].data_ptr() == theta[key].data_ptr())
    return noise[first] if noise[first].shape == theta[key].shape else noise[key]


def sums(output: Any) -> Tensor:
    """A number for each tensor of an output."""
    return torch.stack([t.double().sum() for t in tensors(output)])


def _export(state: dict[str, Any]) -> dict[str, Any]:
    """An ONNX file in format "auto" that ONNX Runtime computes the same with."""
    with tempfile.TemporaryDirectory() as folder:
        result = topkast.export(state["trio"].ours.model, Path(folder) / "m.onnx", state["entry"].example())
    return {"onnx error": result.max_error}


def _inductor(state: dict[str, Any]) -> dict[str, Any] | None:
    return _zoo_inductor.compile_times(state["entry"])


STAGES: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "model": _model,
    "plain compile": _plain,
    "compile": _compile,
    "oracle": _oracle,
    "copies": _copies,
    "export": _export,
    "inductor": _inductor,
}
