"""A topkast model, the oracle and the truth in float64, trained side by side and compared after every step.

A training loop is a generator: it gets a system, its optimizer and the case, and yields after each optimizer step.
Copies of it run in lockstep, one a system.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import topkast

from .budget import assert_budget, tally
from .builders import Case
from .choice import Plan, Rules, Sets
from .exact import Truth
from .oracle import Oracle
from .starts import kept


def assert_sets(ours: Sets, oracle: Sets, where: str) -> None:
    """Exact sets, A inside B."""
    assert ours.keys() == oracle.keys(), f"{where}: sites {sorted(ours)}, not {sorted(oracle)}"
    for name, (fwd, bwd) in ours.items():
        assert not bool((fwd & ~bwd).any()), f"{where}: {name}: A is not inside B"
        for label, mine, other in zip("AB", (fwd, bwd), oracle[name], strict=True):
            differ = int((mine != other).sum())
            assert differ == 0, f"{where}: {name}: {label} differs in {differ} of {mine.numel()}"


def sites_of(model: nn.Module) -> dict[str, Any]:
    """The sites of a topkast model by parameter name, found by what they carry."""
    found = [m for m in model.modules() if hasattr(m, "n_fwd") and hasattr(m, "geometry")]
    return {site.name: site for site in found}


def plans_of(model: nn.Module) -> dict[str, Plan]:
    """What the oracle is told of a topkast model."""
    plans = {}
    for name, site in sites_of(model).items():
        block, perm = tuple(site.geometry.block), tuple(site.geometry.perm)
        plans[name] = Plan(site.n_fwd, site.n_bwd, block, perm, site.geometry.lead, site.rule.balanced)
    return plans


@torch.no_grad()
def dense_slots(site: Any, slots: Tensor, bwd: Tensor) -> Tensor:
    """A compact tensor (optimizer state, gradient) in the weight's own shape, zero outside B."""
    held = site.original.data
    try:
        site.original.data = slots.detach()
        return torch.where(bwd, site.theta(), 0)
    finally:
        site.original.data = held


class Ours:
    """A topkast model behind the oracle's face."""

    dtype = torch.float32

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def train(self, mode: bool = True) -> None:
        self.model.train(mode)

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: topkast sees optimizers by itself."""

    def step(self, lr: float = 0.0) -> None:
        topkast.step(self.model, lr=lr)

    def state(self, values: str) -> dict[str, Tensor]:
        found = topkast.dense_state_dict(self.model, values=values)
        return {key: value.detach().clone() for key, value in found.items()}


System = Any  # Ours | Oracle
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def compiled(model: nn.Module, backend: str = "aot_eager") -> None:
    """A way of plain PyTorch that rounds in other places, for :class:`Trio`'s ``ways``."""
    # Dynamo skips _call_impl if the root is a class of torch.nn, and from then on whatever else comes through it: nn's
    # own compile would leave this model eager, and ours beside it.
    call = torch._dynamo.external_utils.wrap_inline(model._call_impl)
    # As topkast does: without it Dynamo leaves recurrent layers out of its graphs.
    run = torch._dynamo.config.patch(allow_rnn=True)(torch.compile(call, backend=backend))

    def quietly(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            # Dynamo asks every input, and an oracle's W_A is the result of θ.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            return run(*args, **kwargs)

    model._compiled_call_impl = quietly


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


# Every Trio's ``further`` unless it has its own: conftest.py fills it if the tests run with kernels that are not dense.
FURTHER: dict[str, Callable[[nn.Module], Any]] = {}


@dataclass
class Trio:
    """One case, three systems or more.

    Args:
        case: what is trained.
        options: of ``topkast.compile``; those the oracle needs are read from here too.
        make_optimizer: from a list of parameters; ``None`` for a loop without one.
        dtype: of the model under test; None: as it is built, inputs in float32.
        ways: further oracles that round in other places, by name: each is done to an oracle's model, and what it has
            as ``around`` is a context that this oracle trains in. The budget is then twice the largest error among all
            of plain PyTorch's, in all steps so far (see :mod:`budget`, :mod:`ways`).
        further: ways that are run only if the budget is missed without them: with them what was within it stays there.
        ties: whether the oracle takes over sets that are exactly what the rule makes of our own θ, where rounding has
            put two scores in another order than in its θ (see :class:`oracle.Oracle`).
    """

    case: Case
    options: dict[str, Any]
    make_optimizer: MakeOptimizer | None
    dtype: torch.dtype | None = torch.float32
    build: Callable[[], nn.Module] | None = None
    ways: dict[str, Callable[[nn.Module], Any]] = field(default_factory=dict)
    further: dict[str, Callable[[nn.Module], Any]] = field(default_factory=lambda: dict(FURTHER))
    ties: bool = False
    optimizers: list[Any] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)  # plain PyTorch's largest, where there are further ways
    before: dict[str, Tensor] = field(default_factory=dict)  # our θ after the last step

    def __post_init__(self) -> None:
        method = self.options.get("method", "topkast")
        dense = (self.build or self.case.model)().to(self.dtype)
        rules = Rules(
            self.options.get("refresh_every", 100),
            self.options.get("explore", "topk"),
            self.options.get("exploration_decay") if method == "topkast" else 0.0,
            self.options.get("exploration_l2", 0.0),
            self.options.get("stop_exploring_after"),
            self.options.get("refresh_in_background", False),
            method,
            self.options.get("drop_fraction", 0.3),
            self.options.get("refresh_growth", 1.0),
            self.options.get("fwd_start"),
            self.options.get("fwd_reached_after", 0),
        )
        # The oracle starts from θ as it is.
        options = {"min_size": 1, "initial": None, **self.case.options, **self.options}
        compiled = topkast.compile(copy.deepcopy(dense), **options)
        assert compiled is not None
        self.ours = Ours(compiled)
        plans = plans_of(compiled)
        missing = set(self.case.sites) - plans.keys()
        assert not missing, f"not sparsified: {sorted(missing)}: {topkast.report(compiled).details()}"
        witness = self._witness if self.ties else None
        self.oracle = Oracle(dense, plans, rules, draw=lambda: topkast.masks(compiled), witness=witness)
        self.truth = Truth(dense, plans, rules, dtype=torch.float64, leader=self.oracle)
        self.twins = {name: Oracle(dense, plans, rules, leader=self.oracle) for name in self.ways}
        for name, change in self.ways.items():
            change(self.twins[name].model)
        self.systems: list[System] = [self.ours, self.oracle, self.truth, *self.twins.values()]
        for system in self.systems:
            optimizer = self.make_optimizer(system.parameters()) if self.make_optimizer else None
            if optimizer is not None:
                system.watch(optimizer)
            self.optimizers.append(optimizer)

    def _witness(self) -> tuple[Sets, dict[str, Tensor]]:
        """Our sets, and the θ they were chosen from: that before the step we have just taken."""
        return topkast.masks(self.ours.model), {name: self.before[key] for key, name in self.oracle.keys.items()}

    def _compare(self, where: str, what: str, ours: Tensor, oracle: Tensor, truth: Tensor, *twins: Tensor) -> None:
        error = assert_budget(ours, oracle, truth, f"{where}: {what}", twins, self.errors.get(what, 0.0))
        if self.ways:
            self.errors[what] = error

    def compare(self, where: str, bitwise: bool = False) -> None:
        """Sets exact; θ, W_A, buffers and dense parameters within budget, or equal bit for bit."""
        assert_sets(topkast.masks(self.ours.model), self.oracle.sets, where)
        for values in ("all", "forward"):
            ours, keys = self.ours.state(values), self.oracle.entries()
            assert ours.keys() == keys, f"{where}: keys differ: {sorted(ours.keys() ^ keys)}"
            for key in ours:
                if bitwise:
                    same = torch.equal(ours[key], self.oracle.value(key, values))
                    assert same, f"{where}: {key} ({values}) is not equal bit for bit"
                else:
                    theirs = [one.value(key, values) for one in self.systems[1:]]
                    self._compare(where, f"{key} ({values})", ours[key], *theirs)

    def compare_state(self, where: str, bitwise: bool = False) -> None:
        """Optimizer state: what has the parameter's shape follows its index, the rest is the same."""
        mine, other, exact, *rest = self.optimizers
        sets = topkast.masks(self.ours.model)
        compared = 0
        for name, site in sites_of(self.ours.model).items():
            state = kept(mine, site.original)
            theirs, truths = kept(other, self.oracle.theta[name]), kept(exact, self.truth.theta[name])
            twins = [kept(one, twin.theta[name]) for one, twin in zip(rest, self.twins.values(), strict=True)]
            assert state.keys() == theirs.keys(), f"{where}: state of {name}: {sorted(state)}, not {sorted(theirs)}"
            for key, value in state.items():
                if isinstance(value, Tensor) and value.numel() == site.original.numel() > 1:
                    dense = dense_slots(site, value.view_as(site.original), sets[name][1])
                    # Outside B the oracle keeps what a weight begins with that enters.
                    within = [
                        torch.where(sets[name][1], one[key].view_as(dense), 0) for one in (theirs, truths, *twins)
                    ]
                    if bitwise:
                        assert torch.equal(dense, within[0]), f"{where}: {key} of {name}"
                    else:
                        self._compare(where, f"{key} of {name}", dense, *within)
                    compared += 1
                elif isinstance(value, Tensor) and not torch.equal(value, theirs[key]):
                    # A count would be equal; a norm is a sum, whose order is nobody's promise.
                    one = truths[key].to(torch.float64)
                    self._compare(where, f"{key} of {name}", value, theirs[key], one, *(twin[key] for twin in twins))
                elif not isinstance(value, Tensor):
                    assert value == theirs[key], f"{where}: {key} of {name}"
        states = [state for state in mine.state.values() if isinstance(state, dict)]
        any_kept = any(isinstance(value, Tensor) for state in states for value in state.values())
        assert compared or not any_kept, f"{where}: no state tensor compared"

    def run(self, loop: Callable[..., Iterator[Tensor | None]], bitwise: bool = False) -> int:
        """Run ``loop`` of all systems in lockstep; compare after each step. Returns the number of steps."""
        try:
            return self._run(loop, bitwise)
        except AssertionError as error:
            if bitwise or not self.further or "of its budget" not in str(error):
                raise
        torch._dynamo.reset()
        self.ways, self.further = {**self.ways, **self.further}, {}
        self.optimizers, self.errors = [], {}
        self.__post_init__()
        return self._run(loop, bitwise)

    def _run(self, loop: Callable[..., Iterator[Tensor | None]], bitwise: bool) -> int:
        loops = [
            self._within(system, loop(system, opt, self))
            for system, opt in zip(self.systems, self.optimizers, strict=True)
        ]
        steps = 0
        self.before = self.ours.state("all")
        for outputs in zip(*loops, strict=True):
            steps += 1
            where = f"{self.case.name} step {steps}"
            if outputs[0] is not None:
                self._compare(where, "output", *outputs)
            self.compare(where, bitwise)
            if self.make_optimizer is not None:
                self.compare_state(where, bitwise)
            after = self.ours.state("all")
            self.still(self.before, after, where)
            self.before = after
            tally(1, 0.0, where)
        assert {system.steps for system in self.systems[1:]} == {self.oracle.steps}
        counted = {site.step for site in sites_of(self.ours.model).values()}
        assert counted == {self.oracle.steps}, f"{self.case.name}: counted {counted} steps, not {self.oracle.steps}"
        return steps

    def _within(self, system: System, loop: Iterator[Tensor | None]) -> Iterator[Tensor | None]:
        """A system's loop, each of its steps in the context of the system's way."""
        way = next((self.ways[name] for name, twin in self.twins.items() if twin is system), None)
        around = getattr(way, "around", contextlib.nullcontext)
        while True:
            with around():
                try:
                    found = next(loop)
                except StopIteration:
                    return
            yield found

    def still(self, before: dict[str, Tensor], after: dict[str, Tensor], where: str) -> None:
        """θ outside B has not moved by one bit in this step; a method that refreshes at its end had another B in it."""
        for key, name in self.oracle.keys.items():
            outside = ~self.oracle.sets[name][1]
            if self.oracle.rules.method == "rigl":
                outside &= ~self.oracle.stepped[name][1]
            assert torch.equal(before[key][outside], after[key][outside]), f"{where}: {key} moved outside B"

    def cast(self, system: System, tensor: Tensor) -> Tensor:
        """A batch's tensor in the dtype of a system."""
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.float64 if system is self.truth else self.dtype or torch.float32)

    def loss(self, system: System, batch: tuple[tuple[Tensor, ...], Tensor]) -> Tensor:
        args, target = batch
        return self.case.loss(system(*(self.cast(system, a) for a in args)), self.cast(system, target))


def plain(system: System, optimizer: Any, trio: Trio, steps: int = 5, seed: int = 1) -> Iterator[Tensor | None]:
    """The loop of every tutorial."""
    for batch in trio.case.batches(steps, seed):
        optimizer.zero_grad()
        loss = trio.loss(system, batch)
        loss.backward()
        optimizer.step()
        yield loss.detach()


def in_closure(system: System, optimizer: Any, trio: Trio) -> Iterator[Tensor | None]:
    """The loop in which a closure computes the gradient, inside of the optimizer's step."""
    for batch in trio.case.batches(5):

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = trio.loss(system, batch)
            loss.backward()
            return loss

        yield optimizer.step(closure).detach()


def adamw(parameters: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    """AdamW whose eps is above the rounding noise of gradients that are zero in exact arithmetic.

    A bias before a batch norm, or that of attention's keys, has such a gradient; with a smaller eps Adam takes steps of
    full size in the direction of the noise, and two right programs part ways.
    """
    return torch.optim.AdamW(parameters, **{"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-4, **options})


def sgd(parameters: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, **{"lr": 2e-2, "momentum": 0.9, "weight_decay": 0.05, **options})
