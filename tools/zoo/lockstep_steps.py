"""Three AdamW steps with a refresh, beside masked dense training in plain PyTorch; what of them ran sparse."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import topkast
from topkast.runtime.kernels.candidates import DENSE
from topkast.runtime.planner import plan as planner
from topkast.tests.support.truth.builders import Case
from topkast.tests.support.truth.lockstep import Trio, adamw, compiled, sites_of, without_onednn
from topkast.tests.support.truth.ways import ORDERS, SUMS, WITHOUT_ONEDNN, Way

from .dense_stages import BESIDE
from .model_entry import loss_of

OPTIONS = {"fwd": 0.9, "bwd": 0.8, "min_size": 1, "refresh_every": 2, "backend": "aot_eager"}
STEPS = 3
ONE_SIDED = "a gradient on one side only"
# In a record: what the eager oracle's error alone would not have allowed, and in how many weights rounding chose.
WIDER, TIES = "beyond the eager oracle's error", "near-ties decided by rounding"


# Plain PyTorch in ways that round in other places: compiled by the same backend, and with another library's sums.
WAYS: dict[str, Callable[[nn.Module], None]] = {
    "compiled": compiled,
    **WITHOUT_ONEDNN,
    "compiled, without oneDNN": Way(compiled, without_onednn),
}
TRIES = ((), ("without oneDNN",), tuple(WAYS))
# Kernels that sum in an order of their own are compared with further orders of plain PyTorch's sums; in the last try
# with all of them, for a gradient that only compiled code gives as zeros.
OTHER_ORDERS = ((), tuple(SUMS), (*WAYS, *ORDERS))


def start(state: dict[str, Any], ways: dict[str, Callable[[nn.Module], None]] | None = None) -> None:
    """Convert the model and put the oracle and the truth beside it, and plain PyTorch in further ``ways``."""
    entry = state["entry"]
    state.pop("trio", None)  # two at a time are too much for the memory
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    case = Case(entry.name, entry.model, None, (), lambda output, _: loss_of(output))
    begun = time.perf_counter()
    options = {**OPTIONS, "example_inputs": entry.example(), **entry.options}
    trio = Trio(case, options, adamw, ways=ways or {}, ties=True)
    state["trio"], state["converting"] = trio, time.perf_counter() - begun
    truth: Any = trio.truth.model
    if hasattr(truth, "set_experts_implementation"):  # grouped products have no float64
        truth.set_experts_implementation("eager")


def equal(state: dict[str, Any], said: Callable[[BaseException], str]) -> dict[str, Any]:
    """Three AdamW steps with a refresh, equal to the oracle's; gradients complete; what ran sparse.

    The budget is twice plain PyTorch's error, and that is the largest over the eager oracle and :data:`WAYS`. They take
    time and memory, so they run only where fewer of them are too small a budget: with a larger one, what was within the
    budget stays there.
    """
    why = None
    tries = TRIES if planner.setting() in DENSE else OTHER_ORDERS
    for ways in tries:
        if ways:
            start(state, {way: (WAYS | ORDERS)[way] for way in ways})
        try:
            return _steps(state) | ({WIDER: why} if why else {})
        except AssertionError as error:
            if ("of its budget" not in str(error) and ONE_SIDED not in str(error)) or ways == tries[-1]:
                raise
            why = why or said(error)
        # Only here, outside of the handling of the error, whose traceback holds all systems: large models fit once.
    raise AssertionError("no ways were tried")


def _steps(state: dict[str, Any]) -> dict[str, Any]:
    trio: Trio = state["trio"]
    seen: dict[str, Any] = {}
    lacking: dict[Any, set[int]] = {}

    def loop(system: Any, optimizer: torch.optim.Optimizer, trio: Trio) -> Iterator[Tensor]:
        ours = system is trio.ours
        for step in range(1, STEPS + 1):
            args, kwargs = tree_map(lambda a: trio.cast(system, a) if isinstance(a, Tensor) else a,
                                    state["entry"].at(step))  # fmt: skip
            torch.manual_seed(step)
            begun = time.perf_counter()
            try:
                loss = loss_of(system(*args, **kwargs))
                if ours and step == 1:
                    seen["forward"] = ran(system.model)
                loss.backward()
            except Exception as error:
                if not ours:
                    error.add_note(BESIDE)
                raise
            if ours and step == 1:
                seen["both"] = ran(system.model)
                seen["compile"] = state["converting"] + time.perf_counter() - begun
                seen["breaks"] = breaks()
            optimizer.step()
            lacking[system] = without_gradient(system)
            optimizer.zero_grad()  # at once: the gradients of all systems together are too much for the memory
            yield loss.detach()

    try:
        trio.run(loop)
        complete_gradients(trio, lacking)
    finally:
        found: dict[str, Any] = (
            {"topkast": {"breaks": seen["breaks"], "compile": round(seen["compile"], 2)}} if "both" in seen else {}
        )
        if "both" in seen:
            found |= shares(trio.ours.model, seen["forward"], seen["both"])
        if trio.oracle.ties:
            found[TIES] = trio.oracle.ties
        state["partial"] = found
    return found


def breaks() -> int:
    """Graph breaks since the counters were cleared."""
    return sum(torch._dynamo.utils.counters["graph_break"].values())


def ran(model: nn.Module) -> dict[str, Counter[tuple[str, str, str]]]:
    return {name: Counter(site.ran) for name, site in sites_of(model).items()}


def shares(model: nn.Module, forward: dict[str, Any], both: dict[str, Any]) -> dict[str, Any]:
    """Shares of the weight FLOPs in sparse ops, and why the rest is not."""
    rows = {row["name"]: row for row in topkast.report(model).sites}
    total, sparse, kernels = Counter[str](), Counter[str](), Counter[str]()
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
            for (product, kernel, reason), count in counts.items():
                if product.startswith("read"):
                    why[reason] += 1
                else:
                    kernels[kernel] += weight * count / runs
    found = {part: round(sparse[part] / total[part], 4) for part in total}
    by = {kernel: round(part / sum(total.values()), 4) for kernel, part in kernels.items()}
    return {"share": found, "kernels": by, "unfused": dict(why.most_common(6)), "sites": len(rows)}


def without_gradient(system: Any) -> set[int]:
    """Identities of the parameters that got none."""
    return {id(p) for p in system.parameters() if p.grad is None}


def complete_gradients(trio: Trio, lacking: dict[Any, set[int]]) -> None:
    """Whatever has a gradient in plain PyTorch has one in ours, and nothing else; a compiled graph may give zeros to
    what the model does not use, where eager code gives nothing: ours is to be as one of the two.

    Args:
        trio: after its steps.
        lacking: :func:`without_gradient` of each system, after a backward.
    """
    found = sites_of(trio.ours.model)
    values = {id(site.original) for site in found.values()}
    ours = {name: p for name, p in trio.ours.model.named_parameters() if id(p) not in values}
    ours |= {name: site.original for name, site in found.items()}
    plain = [(one, {**one.theta, **one.dense}) for one in (trio.oracle, *trio.twins.values())]
    for name in plain[0][1]:
        if (id(ours[name]) in lacking[trio.ours]) not in {id(held[name]) in lacking[one] for one, held in plain}:
            raise AssertionError(f"{name}: {ONE_SIDED}")
