"""Optimizers are tried out on small tensors: who is refused before anything moves, what a weight that enters B gets,
and that a dense run goes on sparse."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import optim_db

import topkast
from topkast.runtime.errors import OptimizerError
from topkast.runtime.optimizers import probe as probing
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Ours, Trio, adamw, plain, sites_of
from topkast.tests.support.truth.starts import begin

optim = torch.optim
MLP = CASES["mlp"]
SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "min_size": 1, "backend": "eager"}


class Simple(optim.Optimizer):
    """A base for rules of a few lines; ``rule(group, state, θ, gradient)`` moves θ."""

    def __init__(self, params: Any, lr: float = 0.01, **defaults: Any) -> None:
        super().__init__(params, {"lr": lr, **defaults})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.rule(group, self.state[parameter], parameter, parameter.grad)
        return loss

    def rule(self, group: dict[str, Any], state: dict[str, Any], theta: Tensor, grad: Tensor) -> None:
        """A subclass says what happens to θ."""
        raise AssertionError(f"{type(self).__name__} must say its rule")


class Anchored(Simple):
    """SGD drawn back to where a weight began."""

    def rule(self, group: dict[str, Any], state: dict[str, Any], theta: Tensor, grad: Tensor) -> None:
        if "x0" not in state:
            state["x0"] = theta.clone()
        theta.sub_(grad + theta - state["x0"], alpha=group["lr"])


class Averaged(Simple):
    """As schedule-free SGD: θ lies between a fast sequence and its mean; no step unless it was told to train."""

    training = False

    def train(self) -> None:
        self.training = True

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert self.training, "not in train mode"
        return super().step(closure)

    def rule(self, group: dict[str, Any], state: dict[str, Any], theta: Tensor, grad: Tensor) -> None:
        z = state.setdefault("z", theta.clone())
        theta.lerp_(z, 0.3).sub_(grad, alpha=0.1 * group["lr"])
        z.sub_(grad, alpha=group["lr"])


class Lars(Simple):
    """Steps as long as the weight's own norm says."""

    def rule(self, group: dict[str, Any], state: dict[str, Any], theta: Tensor, grad: Tensor) -> None:
        theta.sub_(grad * (theta.norm() / grad.norm().clamp(min=1e-12)).clamp(max=10), alpha=group["lr"])


class Centred(Simple):
    """The gradient's mean of every row is taken away."""

    def rule(self, group: dict[str, Any], state: dict[str, Any], theta: Tensor, grad: Tensor) -> None:
        theta.sub_(grad - grad.flatten(1).mean(1, keepdim=True) if grad.dim() > 1 else grad, alpha=group["lr"])


class Projected(Simple):
    """As AdamP: what is left along a row is taken away, if the gradient is nearly at right angles to it."""

    def rule(self, group: dict[str, Any], state: dict[str, Any], theta: Tensor, grad: Tensor) -> None:
        rows, along = theta.flatten(1) if theta.dim() > 1 else theta[None], grad.view(len(grad), -1)
        if theta.dim() > 1 and bool((nn.functional.cosine_similarity(rows, along).abs() < 0.01).all()):
            along = along + rows
        theta.sub_(along.view_as(theta), alpha=group["lr"])


class Buffered(Simple):
    """SGD with momentum."""

    def rule(self, group: dict[str, Any], state: dict[str, Any], theta: Tensor, grad: Tensor) -> None:
        buffer = state.setdefault("buffer", torch.zeros_like(theta))
        theta.sub_(buffer.mul_(0.9).add_(grad), alpha=group["lr"])


class Strange(Buffered):
    """Trains the parameters that it was made with and no others, and is made with what nobody can know."""

    def __init__(self, params: Any, secret: Any, **defaults: Any) -> None:
        super().__init__(params, **defaults)
        self.mine = [id(p) for group in self.param_groups for p in group["params"]]

    def rule(self, group: dict[str, Any], state: dict[str, Any], theta: Tensor, grad: Tensor) -> None:
        if id(theta) not in self.mine:
            raise LookupError("not mine")
        super().rule(group, state, theta, grad)


def converted(seed: int = 0, **options: Any) -> nn.Module:
    return topkast.compile(MLP.model(seed), **{**SPARSE, **options})


def closures(model: nn.Module, steps: int, seed: int = 1) -> Iterator[Callable[[], Tensor]]:
    """One for each batch: clears the gradients, and computes those of the batch."""
    for (x,), target in MLP.batches(steps, seed):

        def closure(x: Tensor = x, target: Tensor = target) -> Tensor:
            model.zero_grad()
            loss = MLP.loss(model(x), target)
            loss.backward()
            return loss

        yield closure


def train(model: nn.Module, optimizer: optim.Optimizer, steps: int = 3, seed: int = 1) -> None:
    for closure in closures(model, steps, seed):
        optimizer.step(closure)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(mine: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)


# --- who is refused ---------------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[..., optim.Optimizer]] = {
    "LBFGS": partial(optim.LBFGS, max_iter=2),
    "Adafactor": optim.Adafactor,
    "Centred": Centred,
    "Projected": Projected,
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("sites_only", [False, True])
def test_refused_before_anything_moves(name: str, sites_only: bool) -> None:
    model = converted()
    sparse = [site.original for site in sites_of(model).values()]
    optimizer = REFUSED[name](sparse if sites_only else list(model.parameters()))
    before = bits(model)
    for _ in range(2):
        with pytest.raises(OptimizerError, match=f"{name} .*0.weight.*SGD, Adam"):
            train(model, optimizer)
        assert same(bits(model), before)
        assert not optimizer.state
        assert {site.step for site in sites_of(model).values()} == {0}


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="this torch has no Muon")
def test_muon_is_refused_before_anything_moves() -> None:
    """Whatever the rank of the values is; its constructor takes no vectors, so they come in later."""
    model = converted()
    optimizer = optim.Muon([nn.Parameter(torch.randn(4, 6))])
    optimizer.param_groups[0]["params"] = [site.original for site in sites_of(model).values()]
    before = bits(model)
    with pytest.raises(OptimizerError, match=r"Muon treats a weight by its place in the matrix.*0\.weight.*SGD, Adam"):
        train(model, optimizer)
    assert same(bits(model), before) and not optimizer.state


@pytest.mark.parametrize("name", ["LBFGS", "Adafactor", "Centred"])
def test_dense_parameters_have_what_they_like(name: str) -> None:
    model = converted()
    sparse = [site.original for site in sites_of(model).values()]
    dense = [p for p in model.parameters() if not any(p is one for one in sparse)]
    other, optimizer = REFUSED[name](dense), optim.SGD(sparse, lr=0.1)
    before = [p.detach().clone() for p in (*dense, *sparse)]
    for closure in closures(model, 4):
        other.step(closure)
        optimizer.step()
    assert all(bool((p != old).any()) for p, old in zip((*dense, *sparse), before, strict=True))


def test_what_cannot_be_tried_is_said_once() -> None:
    """Then it is taken for elementwise; what enters starts at zero, as it does with one that is known."""
    model, twin = converted(), converted()
    optimizer = Strange(model.parameters(), secret=object(), lr=0.02)
    with pytest.warns(UserWarning, match="Strange could not be tried out on small tensors .LookupError: not mine"):
        train(model, optimizer, 1)
    train(model, optimizer, 7, seed=2)  # no second warning, which would be an error
    other = Buffered(twin.parameters(), lr=0.02)
    train(twin, other, 1)
    train(twin, other, 7, seed=2)
    assert same(bits(model), bits(twin))


# --- what a new weight gets -------------------------------------------------------------------------------------------


def cases() -> Iterator[Any]:
    info: Any
    for info in optim_db:
        if info.optim_cls.__name__ in ("LBFGS", "Adafactor", "Muon", "SparseAdam"):
            continue
        for one in info.optim_inputs_func(device="cpu"):
            yield pytest.param(info.optim_cls, one.kwargs, id=f"{info.optim_cls.__name__} {one.desc}")


def test_every_optimizer_of_torch() -> None:
    """With all settings of torch's own tests: not refused, not coupled, and with the state that it makes itself."""
    made = 0
    for case in cases():
        kind, options = case.values
        parameter = nn.Parameter(torch.randn(4, 6) + 3)
        optimizer = kind([parameter], **copy.deepcopy(options))
        found = probing.probe(optimizer, parameter)
        assert found.refused is found.failed is None and not found.coupled, case.id
        parameter.grad = torch.randn(4, 6)
        optimizer.step()
        kept = {name for name, value in optimizer.state[parameter].items() if getattr(value, "shape", ()) == (4, 6)}
        assert found.starts.keys() >= kept, case.id
        group = {**optimizer.param_groups[0], "lr": 0.125}
        for name, one in found.starts.items():
            number = torch.full((4, 6), one.constant + 0.125 * one.per_rate)
            expected = begin(optimizer, group, name, parameter)
            torch.testing.assert_close(parameter.detach() if one.value else number, expected, rtol=1e-6, atol=0)
            made += 1
    assert made > 100


MAKES: dict[str, Callable[..., optim.Optimizer]] = {
    "rprop": partial(optim.Rprop, lr=0.01),
    "rprop foreach": partial(optim.Rprop, lr=0.01, foreach=True),
    "adagrad": partial(optim.Adagrad, lr=0.02, initial_accumulator_value=0.5),
    "adagrad fused": partial(optim.Adagrad, lr=0.02, initial_accumulator_value=0.5, fused=True),
    "anchored": Anchored,
    "lars": partial(Lars, lr=0.01),
    "adamw": partial(optim.AdamW, lr=0.01),
    "adam capturable": partial(optim.Adam, lr=torch.tensor(0.01), foreach=False),
}


def averaged(parameters: list[nn.Parameter]) -> optim.Optimizer:
    optimizer = Averaged(parameters, lr=0.05)
    optimizer.train()
    return optimizer


@pytest.mark.long
@pytest.mark.parametrize("name", [*MAKES, "averaged"])
@pytest.mark.parametrize("options", [{}, {"block": (2, 2), "balanced": False}], ids=["", "blocks"])
def test_ten_steps_after_entering(name: str, options: dict[str, Any]) -> None:
    """The oracle gives a weight that enters B the state of a new parameter; so must we."""
    trio = Trio(MLP, {**SPARSE, **options}, MAKES.get(name, averaged))
    trio.run(partial(plain, steps=14))
    entered = [step for site in sites_of(trio.ours.model).values() for step, _, share in site.churn if share]
    assert entered and min(entered) <= 4, "nothing entered B ten steps before the end"


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_what_grows_begins_at_zero(method: str) -> None:
    """A weight that grows enters as zero; its anchor is zero then, not the value it had before."""
    options = {name: value for name, value in SPARSE.items() if name != "bwd"}
    Trio(MLP, {**options, "method": method}, Anchored).run(partial(plain, steps=8))


def test_norms_are_told_from_elements() -> None:
    parameter = nn.Parameter(torch.randn(4, 6))
    assert probing.probe(Lars([parameter]), parameter).coupled
    assert not probing.probe(Anchored([parameter]), parameter).coupled


def test_a_checkpoint_whose_refresh_is_due() -> None:
    """The state waits while the first forward chooses new sets, and follows when its optimizer is first seen."""
    whole = converted()
    optimizer = optim.Rprop(whole.parameters(), lr=0.01)
    train(whole, optimizer, 3)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    train(whole, optimizer, 11, seed=2)
    again = converted(seed=1)
    other = optim.Rprop(again.parameters(), lr=0.01)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(again, other, 11, seed=2)
    assert same(bits(whole), bits(again))


# --- a dense run goes on sparse ---------------------------------------------------------------------------------------

CONTINUED: dict[str, Callable[..., optim.Optimizer]] = {
    "adamw": adamw,
    "sgd": partial(optim.SGD, lr=0.02, momentum=0.9),
    "rprop": partial(optim.Rprop, lr=0.01),
    "adagrad": partial(optim.Adagrad, lr=0.02, initial_accumulator_value=0.5),
    "anchored": Anchored,
}


def trained_densely(make: Callable[..., optim.Optimizer]) -> tuple[nn.Module, optim.Optimizer]:
    model = MLP.model()
    optimizer = make(model.parameters())
    train(model, optimizer, 3, seed=5)
    return model, optimizer


@pytest.mark.parametrize("name", CONTINUED)
def test_dense_state_is_cut_to_b(name: str) -> None:
    """The oracle has all of the dense state, ours what the optimizer had for the dense model."""
    dense, trained = trained_densely(CONTINUED[name])
    trio = Trio(MLP, SPARSE, CONTINUED[name], build=lambda: copy.deepcopy(dense))
    state = {path: trained.state[p] for path, p in dense.named_parameters()}
    mine = {path: p for path, p in trio.ours.model.named_parameters() if "weight" not in path}
    mine |= {path: site.original for path, site in sites_of(trio.ours.model).items()}
    assert mine.keys() == state.keys()
    of_systems = [mine, *({**one.theta, **one.dense} for one in trio.systems[1:])]
    for system, optimizer, parameters in zip(trio.systems, trio.optimizers, of_systems, strict=True):
        for path, entries in state.items():
            optimizer.state[parameters[path]] = {
                entry: trio.cast(system, value) if torch.is_tensor(value) and value.dim() else value
                for entry, value in copy.deepcopy(entries).items()
            }
    trio.run(partial(plain, steps=8))


@pytest.mark.parametrize("name", CONTINUED)
def test_the_optimizer_of_the_dense_model_goes_on(name: str) -> None:
    """Converted in the middle of a run, and resumed from a dense checkpoint: bit by bit the same."""
    ends = []
    for loaded in (False, True, "after a step"):
        dense, optimizer = trained_densely(CONTINUED[name])
        names, saved = [p for p in dense.parameters()], copy.deepcopy(optimizer.state_dict())
        theta = copy.deepcopy(dense.state_dict())
        model = topkast.compile(dense, **SPARSE)
        if loaded:
            optimizer = CONTINUED[name](names)  # in the dense model's order
            if loaded != True:  # noqa: E712
                train(model, optimizer, 1)
                topkast.load_dense_state_dict(model, theta)
                for site in sites_of(model).values():
                    site.step = site.refreshed_at = 0
            optimizer.load_state_dict(saved)
        train(model, optimizer, 7)
        ends.append(Ours(model).state("all"))
    assert same(ends[0], ends[1]) and same(ends[0], ends[2])


# --- no trace ---------------------------------------------------------------------------------------------------------


def test_trying_out_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noisy(optim.SGD):
        """Draws numbers, and calls the step of its base class."""

        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            torch.rand(3), random.random()
            return super().step(closure)

    model = converted()
    seen: list[Any] = []
    hooks = [
        register_optimizer_step_pre_hook(lambda one, *_: seen.append(one)),
        register_optimizer_step_post_hook(lambda one, *_: seen.append(one)),
    ]
    optim.SGD([nn.Parameter(torch.ones(1))])  # its class has hooks now, if it had none before
    optimizer = Noisy(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    optimizer.register_step_pre_hook(lambda one, *_: seen.append(one))
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    kept = optimizer.param_groups[0]
    before, states = dict(kept), (torch.get_rng_state(), random.getstate())
    with torch.device("meta"):  # what the default device is must not matter
        for site in sites_of(model).values():
            assert probing.probe(optimizer, site.original).refused is None
    assert not seen and not optimizer.state
    assert all(kept[name] is value for name, value in before.items()) and optimizer.param_groups[0] is kept
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert not optimizer._opt_called if hasattr(optimizer, "_opt_called") else scheduler is not None
    train(model, optimizer, 1)
    assert seen and all(one is optimizer for one in seen)
    for hook in hooks:
        hook.remove()


def test_once_per_class_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(optim.SGD):
        pass

    tried: list[Any] = []
    real = probing.tried
    monkeypatch.setattr(probing, "tried", lambda *given: tried.append(given) or real(*given))
    for lr in (0.1, 0.2):
        model = converted()
        optimizer = Mine(model.parameters(), lr=lr, momentum=0.5)
        train(model, optimizer, 7)
    assert len(tried) == 1
    values = [site.original for site in sites_of(model).values()]
    groups = [{"params": [one], "nesterov": not number} for number, one in enumerate(values)]
    optimizer = Mine(groups, lr=0.1, momentum=0.5)
    train(model, optimizer, 1)
    assert len(tried) == 2  # the group without Nesterov is known


def test_a_mode_is_kept() -> None:
    """An optimizer that makes no step says so itself, and stays as it was."""
    model = converted()
    optimizer = Averaged(model.parameters())
    with pytest.raises(AssertionError, match="not in train mode"), warnings.catch_warnings():
        train(model, optimizer)
    assert not optimizer.training
