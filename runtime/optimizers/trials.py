"""Try out an optimizer on small tensors: does a step depend on the place of a weight, and how does its state start?

The elements are shuffled once before the steps and once after the steps, and the results must be the same. This is true
for elementwise rules, and for rules that also use a norm or a sum of the whole tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .sandbox import MEANS, Sandbox, group_of, undisturbed

SMALL = (6, 7)
LARGE = (130, 137)  # for rules that start at a certain size: factored second moments need up to 128 rows and columns
OTHER = (5, 3)  # the shape of a second tensor, which reveals state that spans both tensors
STEPS = 3
NEAR = 1e-4  # relative to the largest difference: far above rounding, far below the effect of another rule
RATES = (0.5, 0.25)  # learning rates; powers of two, so that numbers computed from them are recovered exactly


@dataclass(frozen=True)
class Start:
    """The first value of a state entry, for a new parameter.

    Args:
        constant, per_rate: the first value is ``constant + per_rate * learning rate``.
        value: whether the first value is the parameter's value instead.
    """

    constant: float = 0.0
    per_rate: float = 0.0
    value: bool = False


@dataclass(frozen=True)
class Probe:
    """The findings of the trials, for given settings.

    Args:
        refused: why the optimizer cannot train sparse values; None: the optimizer can.
        coupled: whether a weight's step depends on the other weights of its tensor, through norms and sums.
        starts: entry of the state -> its first value. An entry that is not listed starts at zero.
        failed: why the trials failed; None: they ran.
    """

    refused: str | None = None
    coupled: bool = False
    starts: dict[str, Start] = field(default_factory=dict)
    failed: str | None = None


Gradient = Callable[[int, Tensor], Tensor]  # (step, θ) -> gradient of θ


@dataclass(frozen=True)
class _Way:
    """A way to make the steps of a class. The first way that does not fail is used."""

    source: Optimizer
    parameter: nn.Parameter
    device: torch.device
    dtype: torch.dtype
    rebuild: bool
    closure: bool

    def run(self, theta: Tensor, gradient: Gradient, steps: int, **settings: Any) -> tuple[Tensor, Sandbox]:
        """Make steps from a start θ. Returns the final θ, and the sandbox with the optimizer after these steps."""
        theta = theta.to(self.device, self.dtype)
        tensors = [nn.Parameter(theta.clone()), nn.Parameter(torch.ones(OTHER, dtype=self.dtype, device=self.device))]
        vars(tensors[0]).update(vars(self.parameter))  # some rules depend on attributes of the parameter
        settings = {"lr": RATES[0], **dict.fromkeys(MEANS, False), **settings}
        with undisturbed(self.device, type(self.source)):
            box = Sandbox(self.source, self.parameter, tensors, settings, self.rebuild)
            for step in range(steps):

                def closure(step: int = step) -> Tensor:
                    tensors[0].grad = gradient(step, tensors[0].detach()).to(self.device, self.dtype).clone()
                    tensors[1].grad = tensors[1].detach() * 0.5
                    if not tensors[0].grad.any():
                        tensors[1].grad.zero_()
                    return tensors[0].detach().square().sum()

                closure()  # some optimizers take a closure and also use the gradients from before the step
                box.step(closure if self.closure else None)
        return tensors[0].detach(), box


@torch._disable_dynamo
def tried(
    optimizer: Optimizer,
    parameter: nn.Parameter,
    until: Iterable[str] = (),
    rebuilds: tuple[bool, ...] = (False, True),
) -> Probe:
    """Try out a class with the settings that one optimizer has for one of its parameters. Neither of them is changed.

    Args:
        until: entries of the state that appear late; the trial waits for them.
        rebuilds: see :class:`Sandbox`; the values are tried in this order.
    """
    places = [(torch.device("cpu"), torch.float64), (parameter.device, torch.float32)]
    failed = ""
    for device, dtype in places:
        for rebuild in rebuilds:
            for closure in (False, True):
                way = _Way(optimizer, parameter, device, dtype, rebuild, closure)
                try:
                    return _judged(way, until)
                except Exception as error:  # unknown code may raise anything on tensors that it was not made for
                    failed = failed or f"{type(error).__name__}: {error}"
    return Probe(failed=failed)


def _judged(way: _Way, until: Iterable[str]) -> Probe:
    small, large = _draw(0, SMALL), _draw(0, LARGE)
    # Try the cheapest trial first, because an optimizer that will be refused may be slow.
    for theta, steps in ((small, 1), (small, STEPS), (large, 1)):
        _, box = way.run(theta, _towards, steps)
        odd = _odd(box.state(), theta.numel())
        if odd is not None:
            return Probe(refused=f"keeps {odd!r}, which is not one number per weight")
    if any(_placed(way, *one) for one in ((small, _towards), (small, _across), (large, _towards))):
        return Probe(refused="treats a weight by its place in the matrix")
    return Probe(coupled=_coupled(way, small), starts=_starts(way, small, until))


def _odd(state: dict[str, Any], weights: int) -> str | None:
    """The name of an entry that is neither a number nor one number per weight; None if there is no such entry."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            if value.numel() not in (1, weights):
                return name
        elif isinstance(value, (list, tuple, dict)):
            if any(isinstance(one, (Tensor, list)) for one in (value.values() if isinstance(value, dict) else value)):
                return name
        elif hasattr(value, "__dict__") and not callable(value):
            return name  # an object, such as Shampoo's preconditioner
    return None


def _placed(way: _Way, theta: Tensor, gradient: Gradient) -> bool:
    """Whether the order of the elements changes the result."""
    order = torch.randperm(theta.numel(), generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    back = order.argsort()

    def shuffled(tensor: Tensor, by: Tensor = order) -> Tensor:
        return tensor.reshape(-1)[by.to(tensor.device)].view_as(tensor)

    end, box = way.run(theta, gradient, STEPS)
    other, other_box = way.run(shuffled(theta), lambda step, now: shuffled(gradient(step, shuffled(now, back))), STEPS)
    kept, others = box.state(), other_box.state()
    pairs = [(end - theta.to(end), other - shuffled(theta).to(other))]
    for name, one in kept.items():
        if isinstance(one, Tensor) and one.numel() > 1 and isinstance(others.get(name), Tensor):
            pairs.append((one, others[name]))
    return any(mine.shape != theirs.shape or _differ(shuffled(mine), theirs) for mine, theirs in pairs)


def _coupled(way: _Way, theta: Tensor) -> bool:
    """Whether another gradient for one element changes the steps of the other elements."""

    def altered(step: int, now: Tensor) -> Tensor:
        gradient = _towards(step, now)
        gradient[0, 0] += 1000
        return gradient

    (end, _), (other, _) = way.run(theta, _towards, STEPS), way.run(theta, altered, STEPS)
    return _differ((end - theta.to(end)).view(-1)[1:], (other - theta.to(other)).view(-1)[1:])


def _starts(way: _Way, theta: Tensor, until: Iterable[str]) -> dict[str, Start]:
    """The first value of each state entry. With zero gradients and zero weight decay, a step does not change the
    entries.

    Args:
        until: make more steps until all of these entries exist.
    """
    decays = {name: 0.0 for name in group_of(way.source, way.parameter) if name.endswith("weight_decay")}
    seen: list[dict[str, Any]] = []
    steps = 1
    while True:
        _, box = way.run(theta, lambda _, now: torch.zeros_like(now), steps, **decays)
        if steps == 64 or box.state().keys() >= set(until):
            break
        steps *= 2
    for rate in RATES:
        _, box = way.run(theta, lambda _, now: torch.zeros_like(now), steps, lr=rate, **decays)
        seen.append({name: [box.first().get(name), now] for name, now in box.state().items()})
    found: dict[str, Start] = {}
    for name in seen[0].keys() & seen[1].keys():
        per_weight = [one for one in seen[0][name] if isinstance(one, Tensor) and one.numel() == theta.numel()]
        if any(torch.equal(one.reshape(theta.shape), theta.to(one)) for one in per_weight):
            found[name] = Start(value=True)
        elif per_weight:
            found[name] = _number(seen[0][name][0], seen[1][name][0])
    return found


def _number(at_first: Any, at_second: Any) -> Start:
    """The start of an entry that has one number in all elements, from two rates. Other entries have already changed;
    they count as a start at zero."""
    numbers = []
    for tensor in (at_first, at_second):
        if not isinstance(tensor, Tensor) or not bool((tensor == tensor.reshape(-1)[0]).all()):
            return Start()
        numbers.append(float(tensor.reshape(-1)[0]))
    slope = (numbers[0] - numbers[1]) / (RATES[0] - RATES[1])
    return Start(numbers[0] - slope * RATES[0], slope)


def _differ(mine: Tensor, theirs: Tensor) -> bool:
    mine, theirs = mine.double(), theirs.double()
    if not bool(mine.isfinite().all()):
        return not torch.equal(mine.isfinite(), theirs.isfinite())
    return float((mine - theirs).abs().max()) > NEAR * float(mine.abs().max())


@functools.cache
def _draw(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Random numbers that are always the same, independent of the default device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _towards(step: int, theta: Tensor) -> Tensor:
    """The gradient of a quadratic function whose minimum moves with every step."""
    return _draw(1 + step, tuple(theta.shape)).to(theta) + theta / 2


def _across(step: int, theta: Tensor) -> Tensor:
    """A gradient orthogonal to every row of θ, as behind a normalisation. Some rules have an effect only in this
    case."""
    gradient = _towards(step, theta)
    return gradient - theta * ((gradient * theta).sum(1, keepdim=True) / theta.square().sum(1, keepdim=True))
