"""Optimizers that make another one's step: one step of the user is one step of the clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer

import topkast
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, plain, sgd, sites_of

optim = torch.optim
SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "eager"}


class SAM(optim.Optimizer):
    """Sharpness-aware minimisation, as it is commonly written."""

    def __init__(self, params: Any, base: Callable[..., optim.Optimizer], rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["old_p"] = p.data.clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


class Forgetful(SAM):
    """For the oracle, which clears what is kept outside B: old_p is θ itself afterwards."""

    def second_step(self) -> None:
        super().second_step()
        self.state.clear()


class Lookahead(optim.Optimizer):
    """k steps forward, one back."""

    def __init__(self, base: optim.Optimizer, alpha: float = 0.5, k: int = 2) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.base, self.param_groups, self.alpha, self.k, self.done = base, base.param_groups, alpha, k, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.base.step(closure)
        self.done += 1
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            slow = self.base.state[p].setdefault("slow", p.detach().clone())
            if self.done % self.k == 0:
                slow.add_(p - slow, alpha=self.alpha)
                p.copy_(slow)


class Derived(optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def counts(model: nn.Module) -> set[int]:
    return {site.step for site in sites_of(model).values()}


def sharp(system: Any, optimizer: Any, trio: Trio, by_hand: bool) -> Iterator[Tensor]:
    made = (SAM if system is trio.ours else Forgetful)(system.parameters(), optim.SGD, lr=0.05, momentum=0.9)
    system.watch(made.base_optimizer if by_hand else made)
    if system is not trio.ours and not by_hand:
        system.optimizers.append(made.base_optimizer)  # it has the momentum
    for batch in trio.case.batches(7):
        made.zero_grad()

        def evaluate(batch: Any = batch) -> Tensor:
            loss = trio.loss(system, batch)
            loss.backward()
            return loss.detach()

        loss = evaluate()
        if by_hand:
            made.first_step()
            evaluate()
            made.second_step()
        else:
            made.step(evaluate)
        yield loss


@pytest.mark.parametrize("by_hand", [False, True])
def test_sam(by_hand: bool) -> None:
    trio = Trio(CASES["mlp"], SPARSE, None)
    assert trio.run(partial(sharp, by_hand=by_hand)) == 7
    assert any(share for site in sites_of(trio.ours.model).values() for *_, share in site.churn)


@pytest.mark.parametrize("method", ["topkast", "rigl"])
def test_a_class_that_calls_its_base(method: str) -> None:
    optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)  # from now on SGD.step runs the hooks, and so does Derived.step
    options = {**SPARSE, "method": method}
    if method == "rigl":
        del options["bwd"]
    Trio(CASES["mlp"], options, partial(Derived, lr=0.02, momentum=0.9)).run(partial(plain, steps=7))


def trained(wrap: Callable[[list[nn.Parameter]], Any], steps: int = 3) -> nn.Module:
    case = CASES["mlp"]
    model = topkast.compile(case.model(), min_size=1, **SPARSE)
    optimizer = wrap(list(model.parameters()))
    for args, target in case.batches(steps):
        optimizer.zero_grad()
        case.loss(model(*args), target).backward()
        optimizer.step()
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    ends = [topkast.dense_state_dict(model, values="all") for model in (one, other)]
    return all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_lookahead_counts_once() -> None:
    assert counts(trained(lambda p: Lookahead(sgd(p)))) == {3}


def test_a_step_that_only_passes_on_is_that_of_its_base() -> None:
    assert same(trained(lambda p: Lookahead(sgd(p), k=100)), trained(sgd))


def test_sharded_over_one_rank(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.05}
        found = trained(lambda p: ZeroRedundancyOptimizer(p, optim.SGD, **options), steps=7)
        assert counts(found) == {7} and same(found, trained(sgd, steps=7))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("scaled", [False, True])
def test_accelerate(scaled: bool) -> None:
    accelerate = pytest.importorskip("accelerate")

    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0) if scaled else None
    if scaled:
        accelerator.scaler.scale(torch.zeros(()))
    assert counts(trained(lambda p: accelerator.prepare_optimizer(sgd(p)))) == {3}


class Failing(Lookahead):
    """Inside its step its base raises, the first time."""

    def step(self, closure: Any = None) -> None:
        self.done += 1
        if self.done == 1:
            self.base.step(self.fail)
        self.base.step()

    def fail(self) -> None:
        raise ArithmeticError("a closure that fails")


def test_a_step_that_raises_is_over() -> None:
    """Its exception is kept, with all its frames; the next step counts, also in another optimizer."""
    case = CASES["mlp"]
    model = topkast.compile(case.model(), min_size=1, **SPARSE)
    base = sgd(list(model.parameters()))
    optimizer = Failing(base)
    (args, target), *_ = case.batches(1)
    case.loss(model(*args), target).backward()
    with pytest.raises(ArithmeticError) as kept, pytest.warns(match="could not be tried out"):
        optimizer.step()
    assert counts(model) == {0}
    for number, each in enumerate((optimizer, base, optimizer), start=1):
        each.step()
        assert counts(model) == {number}
    assert kept.value.__traceback__ is not None


def test_an_inner_step_that_raises_and_is_caught() -> None:
    class Catching(Failing):
        def fail(self) -> None:
            try:
                super().fail()
            finally:
                self.seen = True

        def step(self, closure: Any = None) -> None:
            with pytest.raises(ArithmeticError):
                self.base.step(self.fail)
            self.base.step()

    model = trained(lambda p: Catching(sgd(p)))
    assert counts(model) == {3} and same(model, trained(sgd))


def test_threads_do_not_see_each_others_steps() -> None:
    """While one thread is inside a step, another one's step of another model counts."""
    inside, leave = threading.Event(), threading.Event()
    case = CASES["mlp"]
    models = [topkast.compile(case.model(), min_size=1, **SPARSE) for _ in range(2)]

    def wait() -> None:
        inside.set()
        assert leave.wait(60)

    every = [p for model in models for p in model.parameters()]
    thread = threading.Thread(target=lambda: sgd(every).step(wait))
    thread.start()
    assert inside.wait(60)
    sgd(list(models[1].parameters())).step()
    assert counts(models[1]) == {1}
    leave.set()
    thread.join()
    assert counts(models[0]) == {1} and counts(models[1]) == {2}


def test_another_models_step_in_a_closure_counts() -> None:
    """The sites of an inner step that the outer one does not hold are its own."""
    outer, inner = (topkast.compile(CASES["mlp"].model(), min_size=1, **SPARSE) for _ in range(2))
    step: Any = sgd(list(inner.parameters())).step
    sgd(list(outer.parameters())).step(lambda: step())
    assert counts(outer) == {1} and counts(inner) == {1}
