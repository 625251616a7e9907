"""``topkast.estimate``: before a training run, which weights become sparse, and what a step takes against dense."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from topkast.compiler.capture.trace import arguments, compiled, forget
from topkast.compiler.compile import compile, refresh
from topkast.compiler.config import Config
from topkast.compiler.convert.check import check_model
from topkast.compiler.report.cost import count_model_bytes
from topkast.compiler.report.report import report
from topkast.passes.aten.finish.choose_kernel import observed
from topkast.runtime.doing import doing
from topkast.runtime.errors import ConfigError
from topkast.runtime.kernels import native_library
from topkast.runtime.planner import plan as planner
from topkast.runtime.planner.before import seconds_before
from topkast.runtime.state.model import sites

from .expectation import Expectation, Product
from .trial import own_randomness

GAIN = 0.95  # a step that is expected to take a larger share of the dense step is no gain
LEAST = 5  # steps that are made in any case
STEPS = 3  # timed of both sides, in turn; the minimum counts


@doing("estimating")
def estimate(
    model: nn.Module,
    example_inputs: Any,
    fwd: float = Config.fwd,
    bwd: float | None = Config.bwd,
    seconds: float = 10.0,
    **options: Any,
) -> Expectation:
    """Say which weights of a model would become sparse, and what a training step would cost in time and memory.

    Two copies of the model make a few steps with AdamW and a learning rate of 0: the plain model, and the converted
    model with ``backend="aot_eager"``. Each kind of product in the step is also timed by itself, sparse and dense, and
    explains the times of the steps. Nothing is compiled with Inductor. Inductor makes the rest of a step shorter on
    both sides, so the ratio of compiled models differs somewhat. For a choice between settings, and for losses, use
    :func:`topkast.advise`.

    Args:
        model: the plain model, as for :func:`topkast.compile`. It is not changed.
        example_inputs: one batch of the usual size: a tensor, a tuple of arguments or a dict of keywords.
        fwd, bwd: the sparsities, as for :func:`topkast.compile`.
        seconds: about how long the steps may take. If the batch is too large for that, and every tensor of the example
            has the same first dimension, a part of the batch is run, of at least two examples. Nothing is repeated when
            the time is over. Tracing the model and timing its products come on top.
        options: further arguments of :func:`topkast.compile`, except ``backend``.

    Raises:
        ConfigError: an argument has a value that is not allowed.
        ModelError: the model cannot be converted, or no weight of it can be sparse.
    """
    check_model(model)
    if not seconds > 0:
        raise ConfigError(f"seconds={seconds!r}: must be above 0")
    args, kwargs = arguments(example_inputs)
    dense, sparse = copy.deepcopy(model), copy.deepcopy(model)
    before = compiled()
    with own_randomness(model, 0):
        compile(sparse, fwd, bwd, example_inputs=example_inputs, backend="aot_eager", **options)
        end = time.perf_counter() + seconds
        needed = LEAST * _seconds(_Step(dense, args, kwargs).run)
        (args, kwargs), examples = _part((args, kwargs), seconds / needed)
        steps = [_Step(twin, args, kwargs) for twin in (dense, sparse)]
        try:
            with observed() as found:
                steps[1].train()
        finally:
            forget(before)
        for step in steps:  # makes the optimizer's state
            step.run()
        rounds = [[_seconds(step.run) for step in steps]]
        while len(rounds) < STEPS and time.perf_counter() < end:
            rounds.append([_seconds(step.run) for step in steps])
        refreshing = min(_seconds(lambda: refresh(sparse)) for _ in range(2))
    plain, converted = (min(times) for times in zip(*rounds, strict=True))
    products = _products(found)
    facts = report(sparse)
    every = next(iter(sites(sparse).values())).rule.refresh_every
    share = 1.0 if examples is None else examples[0] / examples[1]
    step_seconds = {"dense": plain, "sparse": converted + share * refreshing / every}
    size = count_model_bytes(sparse, sites(sparse))
    gains = step_seconds["sparse"] < GAIN * plain
    return Expectation(
        sparse={row["name"]: (row["density_a"], row["density_b"]) for row in facts.sites},
        dense=facts.dense,
        products=products,
        examples=examples,
        seconds=step_seconds,
        memory={"dense": size["dense"], "sparse": size["sparse"]},
        gains=gains,
        why="" if gains else _why(products, plain),
    )


def _part(given: Any, share: float) -> tuple[Any, tuple[int, int] | None]:
    """A part of a batch.

    Args:
        given: arguments with tensors.
        share: the wanted share; from 1 on, the batch stays whole.

    Returns:
        The arguments; the number of examples in them and before, None if the batch is whole.
    """
    tensors = [one for one in tree_leaves(given) if isinstance(one, Tensor)]
    counts = {one.shape[0] if one.ndim else 0 for one in tensors}
    count = min(counts, default=0)
    kept = max(2, int(count * share))
    if len(counts) > 1 or kept >= count:
        return given, None
    return tree_map_only(Tensor, lambda one: one[:kept], given), (kept, count)


def _why(products: list[Product], step: float) -> str:
    """Why a model does not gain; ``step``: seconds of a dense step."""
    if native_library.library() is None and not torch.cuda.is_available():
        return "the native kernels are not built, so every product is dense; install again with a C++ compiler"
    slow = [one for one in products if one.sparse >= one.dense]
    if not products:
        return "no product with a sparse weight was found in its step"
    if 2 * sum(one.dense * one.runs for one in slow) > sum(one.dense * one.runs for one in products):
        sizes = ", ".join(dict.fromkeys(f"{one.weight[0]} x {one.weight[1]}" for one in slow))
        return f"its weights are small ({sizes}): a dense product is as fast as a sparse product"
    share = sum(one.dense * one.runs for one in products) / step
    return f"products with sparse weights are only {min(1.0, share):.0%} of a step"


def _products(found: list[tuple[planner.Problem, int]]) -> list[Product]:
    counted: Counter[planner.Problem] = Counter()
    for problem, runs in found:
        counted[problem] += runs
    products = []
    for problem, runs in counted.items():
        times = planner.times(problem)
        kernel = min(times, key=lambda name: times[name])
        g = problem.geometry
        product = Product(problem.product, (g.rows, g.cols), runs, kernel, times[kernel], seconds_before(problem))
        products.append(product)
    return products


class _Step:
    """A training step on the example: the loss is the mean square of all outputs."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def train(self) -> None:
        self.optimizer.zero_grad()
        outputs = tree_leaves(self.model(*self.args, **self.kwargs))
        losses = [one.float().square().mean() for one in outputs if isinstance(one, Tensor) and one.requires_grad]
        torch.stack(losses).sum().backward()

    def run(self) -> None:
        self.train()
        self.optimizer.step()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
