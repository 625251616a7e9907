"""What is asked of one model, stage by stage. Each stage's result is handed on at once: a later one may be killed."""

from __future__ import annotations

import copy
import inspect
import logging
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _zoo_entry import Entry, loss_of
from builders import Case
from lockstep import Trio, adamw, sites_of
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import topkast
from topkast.compiler.backend import compile_module

OPTIONS = {"fwd": 0.9, "bwd": 0.8, "min_size": 1, "refresh_every": 2, "backend": "aot_eager"}
STEPS = 3
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
            _check({"entry": entry}, tell, stages)
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
            tell({name: said(error), "seconds": spent, **state.pop("told", {})})
            if name in ("model", "compile"):
                return
        else:
            tell({name: "ok", "seconds": {name: round(time.perf_counter() - start, 1)}, **(found or {})})


def said(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _batch(entry: Entry, step: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return entry.batch(torch.Generator().manual_seed(step))


def _model(state: dict[str, Any]) -> dict[str, Any]:
    """The package's model itself: does it run, and can its output be differentiated?"""
    model = state["entry"].model()
    args, kwargs = _batch(state["entry"], 1)
    loss_of(model(*args, **kwargs)).backward()
    return {"parameters": sum(p.numel() for p in model.parameters())}


def breaks() -> int:
    """Graph breaks since the counters were cleared."""
    return sum(torch._dynamo.utils.counters["graph_break"].values())


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Plain torch.compile of the dense model: its graph breaks, its seconds."""
    entry = state["entry"]
    model = entry.model()
    args, kwargs = _batch(entry, 1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    start = time.perf_counter()
    loss_of(torch.compile(model, backend="aot_eager")(*args, **kwargs)).backward()
    return {"plain": {"breaks": breaks(), "compile": round(time.perf_counter() - start, 2)}}


def _compile(state: dict[str, Any]) -> dict[str, Any]:
    """topkast.compile, unchanged, beside the oracle and the truth."""
    try:
        _start(state)
    except topkast.ModelError as error:
        if "no weight can be sparse" in str(error):
            raise Stop(f"refused: {error}") from error
        raise
    report = topkast.report(state["trio"].ours.model)
    reasons = Counter(why for name, why in report.dense.items() if _matrix(state["trio"].ours.model, name))
    return {"how": report.how.split("(")[0].strip(), "dense": dict(reasons.most_common(8))}


def _start(state: dict[str, Any]) -> None:
    entry = state["entry"]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    case = Case(entry.name, entry.model, None, (), lambda output, _: loss_of(output))
    start = time.perf_counter()
    trio = Trio(case, {**OPTIONS, "example_inputs": _example(entry), **entry.options}, adamw)
    state["trio"], state["converting"] = trio, time.perf_counter() - start
    if hasattr(trio.truth.model, "set_experts_implementation"):  # grouped products have no float64
        trio.truth.model.set_experts_implementation("eager")


def _example(entry: Entry) -> Any:
    """One batch as topkast takes it: a tuple of positional arguments, or a dict of keywords."""
    args, kwargs = _batch(entry, 1)
    if args and kwargs:
        kwargs = {**inspect.signature(entry.model().forward).bind(*args).arguments, **kwargs}
    return kwargs or args


def _matrix(model: nn.Module, name: str) -> bool:
    return model.get_parameter(name).ndim > 1


def _oracle(state: dict[str, Any]) -> dict[str, Any]:
    """Three AdamW steps with a refresh, equal to the oracle's; gradients complete; what ran sparse.

    The budget is twice plain PyTorch's error. A compiled graph rounds in other places than eager code, by chance more
    than twice as far: then the oracle is compiled too, by the same backend without a sparse op, and has to agree.
    """
    try:
        return _steps(state)
    except AssertionError as error:
        if "of its budget" not in str(error):
            raise
        _start(state)
        compile_module(state["trio"].oracle.model, str(OPTIONS["backend"]), {})
        return {**_steps(state), "oracle compiled, since in eager mode": said(error)}


def _steps(state: dict[str, Any]) -> dict[str, Any]:
    trio, seen = state["trio"], {}

    def loop(system: Any, optimizer: torch.optim.Optimizer, trio: Trio) -> Iterator[Tensor]:
        ours = system is trio.ours
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            args, kwargs = tree_map(lambda a: trio.cast(system, a) if isinstance(a, Tensor) else a,
                                    _batch(state["entry"], step))  # fmt: skip
            torch.manual_seed(step)
            start = time.perf_counter()
            loss = loss_of(system(*args, **kwargs))
            if ours and step == 1:
                seen["forward"] = ran(system.model)
            loss.backward()
            if ours and step == 1:
                seen["both"] = ran(system.model)
                seen["compile"] = state["converting"] + time.perf_counter() - start
                seen["breaks"] = breaks()
            optimizer.step()
            yield loss.detach()

    try:
        trio.run(loop)
        complete_gradients(trio)
    finally:
        found = {"topkast": {"breaks": seen["breaks"], "compile": round(seen["compile"], 2)}} if "both" in seen else {}
        if "both" in seen:
            found |= shares(trio.ours.model, seen["forward"], seen["both"])
        state["told"] = found
    return found


def ran(model: nn.Module) -> dict[str, Counter[tuple[str, str, str]]]:
    return {name: Counter(site.ran) for name, site in sites_of(model).items()}


def shares(model: nn.Module, forward: dict[str, Any], both: dict[str, Any]) -> dict[str, Any]:
    """Shares of the weight FLOPs in sparse ops, and why the rest is not."""
    rows = {row["name"]: row for row in topkast.report(model).sites}
    total, sparse = Counter[str](), Counter[str]()
    why = Counter[str]()
    for name, row in rows.items():
        work = row["positions"] or 1
        for part, counts in (("forward", forward[name]), ("backward", both[name] - forward[name])):
            runs = sum(counts.values())
            fused = sum(n for (product, _, _), n in counts.items() if not product.startswith("read"))
            if runs:
                weight = work * row["matrix"]["rows"] * row["matrix"]["cols"]
                total[part] += weight
                sparse[part] += weight * fused / runs
            for product, _, reason in counts:
                if product.startswith("read"):
                    why[reason] += 1
    found = {part: round(sparse[part] / total[part], 4) for part in total}
    return {"share": found, "unfused": dict(why.most_common(6)), "sites": len(rows)}


def complete_gradients(trio: Trio) -> None:
    """Whatever has a gradient in the oracle has one in ours."""
    found = sites_of(trio.ours.model)
    values = {id(site.original) for site in found.values()}
    ours = {name: p for name, p in trio.ours.model.named_parameters() if id(p) not in values}
    ours |= {name: site.original for name, site in found.items()}
    for name, parameter in {**trio.oracle.theta, **trio.oracle.dense}.items():
        if (parameter.grad is None) != (ours[name].grad is None):
            raise AssertionError(f"{name}: a gradient on one side only")


def _copies(state: dict[str, Any]) -> None:
    """deepcopy computes the same, `.to` keeps θ, a state dict makes an altered copy the same again."""
    entry, model = state["entry"], state["trio"].ours.model
    args, kwargs = _batch(entry, 9)
    twin = copy.deepcopy(model).eval()
    other = copy.deepcopy(twin)
    with torch.no_grad():
        before = loss_of_values(twin(*args, **kwargs))
        theta = topkast.dense_state_dict(other, values="all")
        noise = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in theta.items()}
        topkast.load_dense_state_dict(other, {k: _tied(noise, theta, k) for k in theta})
        other.load_state_dict(twin.state_dict())
        if not torch.equal(loss_of_values(other(*args, **kwargs)), before):
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


def loss_of_values(output: Any) -> Tensor:
    from _zoo_entry import _tensors

    return torch.stack([t.double().sum() for t in _tensors(output)])


def _export(state: dict[str, Any]) -> dict[str, Any]:
    """An ONNX file in format "auto" that ONNX Runtime computes the same with."""
    with tempfile.TemporaryDirectory() as folder:
        result = topkast.export(state["trio"].ours.model, Path(folder) / "m.onnx", _example(state["entry"]))
    return {"onnx error": result.max_error}


STAGES: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "model": _model,
    "plain compile": _plain,
    "compile": _compile,
    "oracle": _oracle,
    "copies": _copies,
    "export": _export,
}
