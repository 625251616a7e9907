"""``topkast.estimate``: before a training run, which weights become sparse, and what a step takes against dense."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from topkast.compiler.backend import check_backend
from topkast.compiler.capture.only_tensors import tensors_in
from topkast.compiler.capture.trace import arguments, stand_in
from topkast.compiler.config import OPTIONS, Config
from topkast.compiler.convert.check import check_model
from topkast.compiler.convert.select import select
from topkast.compiler.convert.sparsify import cut
from topkast.compiler.options import pick
from topkast.compiler.start import Start
from topkast.runtime.doing import doing
from topkast.runtime.errors import ConfigError, ModelError
from topkast.runtime.kernels import native_library
from topkast.runtime.planner import plan as planner
from topkast.runtime.planner.before import beside_before

from .expectation import Expectation, Product
from .our_loop import has_recurrent_layers, in_our_loop
from .site_costs import SiteCost, rest_step, seconds_of, site_cost
from .step_products import step_products
from .trial import own_randomness

GAIN = 0.95  # a step that is expected to take a larger share of the dense step is no gain
FEWEST_STEPS, MOST_STEPS, ENOUGH = 2, 20, 1.0  # steps are timed until so many seconds have passed; the least counts
FORWARDS = 30  # the steps and products of an estimate take about as long as so many forwards
PRODUCTS, LONGEST = 4.0, 0.3  # seconds for all products, and for one product at most
LOOPS = "its recurrent layers would run as loops, and a dense layer has a faster operator of oneDNN"
SIDES = ("dense", "sparse")


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

    The plain model makes a few forwards and backwards. Each kind of product with a weight that would become sparse is
    timed by itself, sparse and dense, and so is AdamW. The sparse step is computed: the dense step without its dense
    products, with the sparse products in their place. The model is neither copied nor converted, and nothing is
    compiled. Inductor makes the rest of a step shorter on both sides, so the ratio of compiled models differs somewhat;
    the page on choosing has figures. For a choice between settings, and for losses, use :func:`topkast.advise`.

    Args:
        model: the plain model, as for :func:`topkast.compile`. It is not changed.
        example_inputs: one batch of the usual size: a tensor, a tuple of arguments or a dict of keywords.
        fwd, bwd: the sparsities, as for :func:`topkast.compile`.
        seconds: about how long steps and products may take. If the batch is too large for that, and every tensor of the
            example has the same first dimension, a part of the batch is run, of at least two examples. Tracing the
            model comes on top.
        options: further arguments of :func:`topkast.compile`, except ``backend``.

    Raises:
        ConfigError: an argument has a value that is not allowed.
        ModelError: the model cannot be converted, has no values yet (it is on the meta device), no weight of it can be
            sparse, or no output of it needs a gradient.
    """
    check_model(model)
    if not seconds > 0:
        raise ConfigError(f"seconds={seconds!r}: must be above 0")
    config = _config(fwd, bwd, options)
    if any(p.is_meta for p in model.parameters()):
        raise ModelError("model: on the meta device, without values; topkast.estimate runs the model")
    args, kwargs = arguments(example_inputs)
    parameters = dict(model.named_parameters())
    with own_randomness(model, 0):
        step = _Step(model, args, kwargs)
        (args, kwargs), examples = _part((args, kwargs), seconds / (FORWARDS * seconds_of(step.forward)))
        step.args, step.kwargs = args, kwargs
        whole = step.seconds(ENOUGH)
        loose = step.seconds_in_loops()
        selection = select(model, config, kwargs if kwargs else args)
        geometries, counts = cut(model, config, selection)
        products = _products(step_products(selection.capture, model, geometries, counts))
    kinds: Counter[Any] = Counter((geometries[name], counts[name], parameters[name].dtype) for name in geometries)
    example = {(geometries[name], counts[name], p.dtype): p for name, p in parameters.items() if name in geometries}
    costs = [(number, site_cost(example[kind], kind[0], kind[1], config)) for kind, number in kinds.items()]
    rest = [p for name, p in parameters.items() if name not in geometries]
    share = 1.0 if examples is None else examples[0] / examples[1]
    loose = whole if loose is None else loose
    step_seconds = _step_seconds(whole, loose, products, costs, rest, share, config.refresh_every)
    return Expectation(
        sparse={
            name: (count.fwd / g.units, count.bwd / g.units)
            for name, g, count in ((name, g, counts[name]) for name, g in geometries.items())
        },
        dense=selection.dense,
        products=products,
        examples=examples,
        seconds=step_seconds,
        memory={side: _rest_bytes(rest) + sum(number * cost.bytes[side] for number, cost in costs) for side in SIDES},
        gains=(gains := step_seconds["sparse"] < GAIN * step_seconds["dense"]),
        why="" if gains else LOOPS if loose > whole else _why(products, step_seconds["dense"], selection.how),
    )


def _config(fwd: float, bwd: float | None, options: dict[str, Any]) -> Config:
    """The options of the conversion; the others are checked, and make no difference here."""
    Start(**pick(Start, options))
    known = {one.name for one in OPTIONS}
    check_backend("aot_eager", {name: value for name, value in options.items() if name not in known})
    return Config(fwd, bwd, **pick(Config, options))


def _step_seconds(
    run: float,
    loose: float,
    products: list[Product],
    costs: list[tuple[int, SiteCost]],
    rest: list[nn.Parameter],
    share: float,
    refresh_every: int,
) -> dict[str, float]:
    """Seconds of a step, dense and sparse.

    Args:
        run: seconds of a dense forward and backward.
        loose: the same with recurrent layers in loops, as the sparse model has them.
        products: those with sparse weights.
        costs: of each kind of weight, with the number of such weights.
        rest: the parameters that stay dense.
        share: of the batch that was run; what happens once a step counts by this share.
        refresh_every: steps from one refresh to the next.
    """
    dense, sparse = (sum(one.runs * getattr(one, side) for one in products) for side in SIDES)
    # If the products are slower by themselves than in the step, both sides are.
    scale = min(1.0, loose / dense) if dense else 1.0
    found = {"dense": run, "sparse": loose + scale * (sparse - dense)}
    updates = rest_step([p for p in rest if p.requires_grad])
    for side in SIDES:
        found[side] += share * (updates + sum(number * cost.step[side] for number, cost in costs))
    found["sparse"] += share * sum(number * cost.refresh for number, cost in costs) / refresh_every
    return found


def _rest_bytes(rest: list[nn.Parameter]) -> int:
    """Bytes of parameters that stay dense: values, and if they are trained, the gradient and AdamW's state."""
    return sum(p.nbytes * (4 if p.requires_grad else 1) for p in rest)


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


def _why(products: list[Product], step: float, how: str) -> str:
    """Why a model does not gain; ``step``: seconds of a dense step; ``how``: how the model was read."""
    if native_library.library() is None and not torch.cuda.is_available():
        return "the native kernels are not built, so every product is dense; install again with a C++ compiler"
    slow = [one for one in products if one.sparse >= one.dense]
    if not products:
        return f"no product with a sparse weight was found in its step; it was read by {how}"
    if 2 * sum(one.dense * one.runs for one in slow) > sum(one.dense * one.runs for one in products):
        sizes = ", ".join(dict.fromkeys(f"{one.weight[0]} x {one.weight[1]}" for one in slow))
        return f"its weights are small ({sizes}): a dense product is as fast as a sparse product"
    share = sum(one.dense * one.runs for one in products) / step
    return f"products with sparse weights are only {min(1.0, share):.0%} of a step"


def _products(found: list[tuple[planner.Problem, int]]) -> list[Product]:
    counted: Counter[planner.Problem] = Counter()
    for problem, runs in found:
        counted[problem] += runs
    products, each = [], min(LONGEST, PRODUCTS / max(1, len(counted)))
    by_weight: dict[Any, list[planner.Problem]] = {}
    for problem in counted:
        by_weight.setdefault((problem.geometry, problem.n_fwd, problem.n_bwd), []).append(problem)
    for (g, *_), problems in by_weight.items():
        index = planner.draw_index(problems[0])
        for problem in problems:
            times, dense = beside_before(problem, each, index)
            kernel = min(times, key=lambda name: times[name])
            products.append(Product(problem.product, (g.rows, g.cols), counted[problem], kernel, times[kernel], dense))
    return products


class _Step:
    """A forward and a backward on the example: the loss is the mean square of all outputs.

    A stand-in runs, which has the model's values and its own gradients and buffers.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.args, self.kwargs = stand_in(model, {})[0], args, kwargs

    def run(self) -> None:
        self.model.zero_grad()
        outputs = tensors_in(self.model(*self.args, **self.kwargs))
        losses = [one.float().square().mean() for one in outputs if one.requires_grad]
        if not losses:
            raise ModelError("model: no output of it needs a gradient, so there is no training step to estimate")
        torch.stack(losses).sum().backward()

    def forward(self) -> None:
        """A forward alone: a warm-up that takes a third of the time."""
        self.model(*self.args, **self.kwargs)

    def seconds(self, enough: float) -> float:
        """Seconds of a step: the least of as many as fit in ``enough`` seconds, but of two at least."""
        runs: list[float] = []
        while len(runs) < FEWEST_STEPS or (sum(runs) < enough and len(runs) < MOST_STEPS):
            runs.append(seconds_of(self.run))
        return min(runs)

    def seconds_in_loops(self) -> float | None:
        """Seconds with our loop in the place of each recurrent layer; None if the model has no such layer.

        The loop has dense products, which the caller replaces by sparse ones.
        """
        if not has_recurrent_layers(self.model):
            return None
        with in_our_loop():
            return self.seconds(ENOUGH / 2)
