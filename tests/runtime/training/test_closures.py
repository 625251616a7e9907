"""``optimizer.step(closure)``: all that belongs to a step is right, whoever computes the gradient, and how often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, adamw, sgd, sites_of

SPARSE = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2}
PENALTY = {**SPARSE, "exploration_decay": 0, "exploration_l2": 0.3}
Loop = Iterator[Tensor | None]
Closure = Callable[[], Any]


def compute(system: Any, optimizer: Any, trio: Trio, batch: Any, set_to_none: bool = True) -> Closure:
    """What every tutorial's closure does."""

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad(set_to_none)
        loss = trio.loss(system, batch)
        loss.backward()
        return loss

    return closure


def tutorial(system: Any, optimizer: Any, trio: Trio, set_to_none: bool = True) -> Loop:
    for batch in trio.case.batches(5):
        loss = optimizer.step(compute(system, optimizer, trio, batch, set_to_none))
        yield loss.detach()


def keyword(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """As Lightning calls it: a partial object, by name, around which a schedule has put itself."""
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
    for batch in trio.case.batches(5):
        optimizer.step(closure=partial(compute(system, optimizer, trio, batch)))
        schedule.step()
        yield None


def zeroed_in_place(system: Any, optimizer: Any, trio: Trio) -> Loop:
    yield from tutorial(system, optimizer, trio, set_to_none=False)


def silent(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """It returns nothing."""
    for batch in trio.case.batches(5):

        def closure(batch: Any = batch) -> None:
            compute(system, optimizer, trio, batch)()

        assert optimizer.step(closure) is None
        yield None


def clipped(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """The loss's gradient is clipped, as it is before a step without a closure: the penalty comes after."""
    for batch in trio.case.batches(5):

        def closure(batch: Any = batch) -> Tensor:
            loss = compute(system, optimizer, trio, batch)()
            nn.utils.clip_grad_value_(system.parameters(), 0.01)
            return loss

        optimizer.step(closure)
        yield None


def accumulated(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """A first micro-batch outside, as Lightning has it, the second in the closure."""
    batches = trio.case.batches(10)
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        optimizer.zero_grad()
        trio.loss(system, first).backward()

        def closure(second: Any = second) -> Tensor:
            loss = trio.loss(system, second)
            loss.backward()
            return loss

        optimizer.step(closure)
        yield None


def already_there(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """The gradient is computed before; the closure does nothing."""
    for batch in trio.case.batches(5):
        compute(system, optimizer, trio, batch)()
        optimizer.step(lambda: None)
        yield None


def in_turns(system: Any, optimizer: Any, trio: Trio) -> Loop:
    """With a closure and without."""
    for number, batch in enumerate(trio.case.batches(6)):
        closure = compute(system, optimizer, trio, batch)
        if number % 2:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        yield None


LOOPS = [tutorial, keyword, zeroed_in_place, silent, clipped, accumulated, already_there, in_turns]


@pytest.mark.parametrize("loop", LOOPS)
def test_penalty(loop: Any) -> None:
    trio = Trio(CASES["mlp"], {**PENALTY, "backend": "eager"}, sgd)
    trio.run(loop)
    assert trio.oracle.refreshed_at >= 4


@pytest.mark.long
@pytest.mark.parametrize("make", [sgd, adamw, partial(adamw, fused=True), partial(sgd, foreach=True)])
def test_penalty_compiled(make: Any) -> None:
    Trio(CASES["mlp"], {**PENALTY, "backend": "aot_eager"}, make).run(tutorial)


def test_penalty_with_a_scaled_gradient() -> None:
    """A fused optimizer divides by ``grad_scale`` itself, and skips a step by ``found_inf``, closure or not."""

    def scaled(system: Any, optimizer: Any, trio: Trio) -> Loop:
        optimizer.grad_scale = torch.tensor(8.0)
        for number, batch in enumerate(trio.case.batches(6)):
            optimizer.found_inf = torch.tensor(float(number == 2))

            def closure(batch: Any = batch) -> Tensor:
                optimizer.zero_grad()
                loss = trio.loss(system, batch)
                (8 * loss).backward()
                return loss

            if number % 2:
                closure()
                optimizer.step()
            else:
                optimizer.step(closure)
            yield None

    trio = Trio(CASES["mlp"], {**PENALTY, "backend": "eager"}, partial(adamw, fused=True))
    trio.run(scaled)
    assert trio.oracle.steps == 5


class LooksAhead(torch.optim.Optimizer):
    """Goes half a step, asks again, and makes a whole step from where it was (the midpoint method)."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: Closure) -> Any:
        for share in (0.5, 1.0):
            with torch.enable_grad():
                loss = closure()
            held = [p for p in self.param_groups[0]["params"] if p.grad is not None]
            if share == 0.5:
                before = [p.clone() for p in held]
            for p, start in zip(held, before, strict=True):
                p.copy_(start - share * self.param_groups[0]["lr"] * p.grad)
        return loss


@pytest.mark.parametrize("loop", [tutorial, zeroed_in_place])
def test_penalty_of_a_closure_that_is_called_twice(loop: Any) -> None:
    Trio(CASES["mlp"], {**PENALTY, "backend": "eager"}, LooksAhead).run(loop)


class Records(torch.optim.Optimizer):
    """Moves nothing, and keeps the gradient that it would have used."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.used = torch.empty(0)

    def step(self, closure: Closure | None = None) -> None:
        if closure is not None:
            closure()
        self.used = self.param_groups[0]["params"][0].grad.clone()


class Outer(torch.optim.Optimizer):
    """Leaves the step to another one, and the closure too or only its gradient."""

    def __init__(self, inner: torch.optim.Optimizer, passes_on: bool) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.passes_on = inner, passes_on

    def step(self, closure: Closure) -> None:
        if self.passes_on:
            self.inner.step(closure)
        else:
            closure()
            self.inner.step()


@pytest.mark.parametrize("passes_on", [True, False])
def test_penalty_once_if_optimizers_are_nested(passes_on: bool) -> None:
    case = CASES["mlp"]
    model = topkast.compile(case.model(), min_size=1, backend="eager", **PENALTY)
    ((x,), target) = case.batches(1)[0]

    def closure() -> None:
        model.zero_grad()
        case.loss(model(x), target).backward()

    plain, inner = (Records([site.original for site in sites_of(model).values()]) for _ in range(2))
    closure()
    raw = next(iter(sites_of(model).values())).original.grad.clone()
    plain.step()
    Outer(inner, passes_on).step(closure)
    assert torch.equal(inner.used, plain.used) and not torch.equal(inner.used, raw)


@pytest.mark.parametrize("method", ["topkast", "gmp", "rigl", "set", "magnitude-ste"])
def test_methods(method: str) -> None:
    """Clock, decay, state and refreshes, at the end of a step or before the forward inside of it."""
    extra = {"bwd": 0.6} if method == "topkast" else {}
    stop = {"stop_exploring_after": 4} if method in ("gmp", "topkast") else {}
    options = {"fwd": 0.8, "refresh_every": 2, "method": method, "backend": "eager", **extra, **stop}
    trio = Trio(CASES["mlp"], options, adamw)
    trio.run(tutorial)
    assert all(site.refreshed_at >= 4 and site.late == 0 for site in sites_of(trio.ours.model).values())


def test_state_loaded_when_a_refresh_was_due() -> None:
    """The first refresh after a resume comes inside the first step: the optimizer's state follows it."""

    def resumed(system: Any, optimizer: Any, trio: Trio) -> Loop:
        for number, batch in enumerate(trio.case.batches(6)):
            if number in (2, 4):  # due; what was there is forgotten, as in a new process
                optimizer.load_state_dict(optimizer.state_dict())
                for site in sites_of(system.model).values():
                    site.optimizers.clear()
            optimizer.step(compute(system, optimizer, trio, batch))
            yield None

    Trio(CASES["mlp"], {**SPARSE, "backend": "eager"}, adamw).run(resumed)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of this machine and of its dependencies
def test_lightning(tmp_path: Path) -> None:
    """Its trainer calls every optimizer with a closure: the sets and θ are those of the tutorial's loop without one."""
    lightning = pytest.importorskip("lightning", reason="an extra: examples")
    case = CASES["mlp"]

    class Module(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = topkast.compile(case.model(), min_size=1, backend="eager", **PENALTY)

        def training_step(self, batch: Any) -> Tensor:
            (x,), target = batch
            return case.loss(self.net(x), target)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(list(self.parameters()))

    torch.manual_seed(0)
    module, batches = Module(), case.batches(6)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, default_root_dir=tmp_path, gradient_clip_val=0.05,
        gradient_clip_algorithm="value", enable_model_summary=False, **quiet,
    )  # fmt: skip
    trainer.fit(module, loader)
    model = topkast.compile(case.model(), min_size=1, backend="eager", **PENALTY)
    optimizer = sgd(list(model.parameters()))
    for (x,), target in batches:
        optimizer.zero_grad()
        case.loss(model(x), target).backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.05)
        optimizer.step()
    mine, other = (topkast.dense_state_dict(each, values="all") for each in (module.net, model))
    assert all(torch.equal(mine[key], other[key]) for key in mine)
    assert all(site.step == 6 and site.refreshed_at == 4 for site in sites_of(model).values())
