"""The oracle: Top-KAST and the methods beside it with full θ, full optimizer state and explicit masks.

Plain PyTorch, slow and obvious.

It shares no code with the package: it is handed a dense model and, for each sparsified parameter, the counts and the
view as a matrix of blocks, and does the rest itself. How sets are chosen is in :mod:`choice`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .choice import Choice, Plan, Rules, Sets
from .starts import begin, with_inner


class MaskedWeight(torch.autograd.Function):
    """θ on A forward; the gradient on B backward, all of it also left in ``seen[name]`` where that is wanted."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, fwd: Tensor, bwd: Tensor, seen: dict[str, Tensor] | None, name: str) -> Tensor:
        # Not save_for_backward: reentrant checkpoints walk this node once for each recomputed segment.
        ctx.bwd, ctx.seen, ctx.name = bwd, seen, name
        return torch.where(fwd, theta, torch.zeros_like(theta))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.seen is not None:
            ctx.seen[ctx.name] = grads[0]
        return torch.where(ctx.bwd, grads[0], torch.zeros_like(grads[0])), None, None, None, None


class Oracle(Choice):
    """A dense model trained as Top-KAST says.

    Args:
        model: the dense model; it is copied.
        plans: by the names of ``model.named_parameters()``.
        rules: see :class:`Rules`.
        dtype: what the copy is cast to.
        leader: another oracle that always runs first and whose sets are taken over instead of chosen. The truth in
            float64 follows the oracle in the dtype under test, so that one flipped near-tie does not count as an error.
        draw: where sets are drawn at random: gives those of the model under test, whose draw nobody can foretell. What
            is not drawn in them must be ours, and their sizes.
        witness: gives the sets of the model under test and its θ when it chose them. Where its sets are not ours, they
            must be exactly what the rule makes of its θ, which is compared with ours after every step; then the two
            differ by a near-tie that rounding has decided, and ours become the same, so that both go on alike.
    """

    def __init__(
        self,
        model: nn.Module,
        plans: dict[str, Plan],
        rules: Rules,
        dtype: torch.dtype | None = None,
        leader: Oracle | None = None,
        draw: Callable[[], Sets] | None = None,
        witness: Callable[[], tuple[Sets, dict[str, Tensor]]] | None = None,
    ) -> None:
        self.model = copy.deepcopy(model).to(dtype)
        super().__init__(plans, rules)
        self.leader, self.draw, self.witness = leader, draw, witness
        self.dense: dict[str, nn.Parameter] = {}
        self.owners: dict[str, list[tuple[nn.Module, str]]] = {}
        self.keys: dict[str, str] = {}
        for name, parameter in list(self.model.named_parameters()):
            (self.theta if name in plans else self.dense)[name] = parameter
        if missing := plans.keys() - self.theta.keys():
            raise KeyError(f"no such parameters: {sorted(missing)}")
        self._release()
        self.refreshed_at = self.ties = 0
        self.history: list[Sets] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self.asked: Sets | None = None
        self.stepped: Sets = {}  # those of the last step
        self.before: dict[str, Tensor] = {}
        self._choose()

    def _release(self) -> None:
        # The sparsified weights become plain attributes, set to W_A before each forward and left there: a checkpointed
        # segment that is computed again during backward then reads the same W_A. Ties share one tensor.
        by_id = {id(parameter): name for name, parameter in self.theta.items()}
        for path, module in self.model.named_modules():
            for attribute, parameter in list(module._parameters.items()):
                name = by_id.get(id(parameter))
                if name is not None:
                    del module._parameters[attribute]
                    self.owners.setdefault(name, []).append((module, attribute))
                    self.keys[f"{path}.{attribute}" if path else attribute] = name

    # --- the model as a user sees it ---------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and self.rules.method != "rigl":
            self._refresh_if_due()
        seen = self.gradients if self.rules.method == "rigl" else None  # large models are near the memory's limit
        for name, owners in self.owners.items():
            weight = MaskedWeight.apply(self.theta[name], *self.sets[name], seen, name)
            for module, attribute in owners:
                object.__setattr__(module, attribute, weight)
        return self.model(*args, **kwargs)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.theta.values(), *self.dense.values()]

    def train(self, mode: bool = True) -> None:
        self.model.train(mode)

    def state(self, values: str) -> dict[str, Tensor]:
        """The dense state dict with the original keys: θ (``"all"``) or W_A (``"forward"``)."""
        return {key: self.value(key, values) for key in self.entries()}

    def entries(self) -> set[str]:
        """The keys of :meth:`state`."""
        return {*self.model.state_dict(), *self.keys}

    def value(self, key: str, values: str) -> Tensor:
        """One entry of :meth:`state`."""
        if key not in self.keys:
            return self.model.state_dict()[key]
        name = self.keys[key]
        theta = self.theta[name].detach()
        return theta if values == "all" else torch.where(self.sets[name][0], theta, 0)

    # --- optimizer steps ---------------------------------------------------------------------------------------------

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Do in each step of ``optimizer`` what Top-KAST asks for. A closure's gradient gets the penalty each time."""
        plain = optimizer.step

        def step(self_: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            def penalised() -> Any:
                self._show_outside(True)
                loss = closure()
                self._penalise(optimizer)
                self._show_outside(False)
                return loss

            self.before = {name: theta.detach().clone() for name, theta in self.theta.items()}
            if closure is None:
                self._penalise(optimizer)
            self._show_outside(False)
            loss = plain() if closure is None else plain(penalised)
            self._after_step(optimizer)
            return loss

        optimizer.step = MethodType(step, optimizer)
        self.optimizers.append(optimizer)

    @torch.no_grad()
    def _penalise(self, optimizer: torch.optim.Optimizer) -> None:
        # A fused optimizer under GradScaler divides the gradient by this itself.
        scale = float(getattr(optimizer, "grad_scale", None) or 1)
        for name, theta in self.theta.items():
            if self.rules.l2 and theta.grad is not None:
                fwd, bwd = self.sets[name]
                density = self._counts(name)[0] / self._units(name)
                theta.grad += scale * self.rules.l2 * torch.where(fwd, theta, 0)
                theta.grad += scale * self.rules.l2 / density * torch.where(bwd & ~fwd, theta, 0)

    @torch.no_grad()
    def _show_outside(self, shown: bool) -> None:
        """θ outside B as it was before the step, or zero: an optimizer that takes a weight's norm takes that of B."""
        for name, theta in self.theta.items():
            theta.copy_(torch.where(self.sets[name][1], theta, self.before[name] if shown else 0))

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._show_outside(True)
        self.before = {}
        # A fused optimizer under GradScaler runs its step also when it skips it.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return
        for name, theta in self.theta.items():
            for module, attribute in self.owners[name]:
                # W_A and its graph go, the next forward makes another; some modules read theirs for a state dict.
                object.__setattr__(module, attribute, theta.detach())
        self._clear_state()
        # An optimizer leaves alone what has no gradient, with its weight decay: so does the decay of what is explored.
        held = ((group["lr"], p) for group in optimizer.param_groups for p in group["params"])
        self.step({id(p): float(lr) for lr, p in held if p.grad is not None})

    @torch.no_grad()
    def step(self, lr: dict[int, float] | float = 0.0) -> None:
        """Count a step and decay the explored weights; a loop without an optimizer calls this itself."""
        for name, theta in self.theta.items():
            fwd, bwd = self.sets[name]
            rate = lr if isinstance(lr, float) else lr.get(id(theta), 0.0)
            decay = self.rules.decay
            if decay is None:
                count = self._counts(name)[0] * math.prod(self.plans[name].block)
                size = (float(theta[fwd].double().square().sum()) / count) ** 0.5
                decay = 4 / max(size, torch.finfo(theta.dtype).tiny)
            theta.copy_(torch.where(bwd & ~fwd, theta * (1 - min(rate * decay, 0.25)), theta))
        self.steps += 1
        self.stepped = self.sets
        if self.rules.method == "rigl":
            self._refresh_if_due()
            self.gradients.clear()

    def _clear_state(self, entering: dict[str, Tensor] | None = None) -> None:
        """Begin anew whatever is kept outside B, or has just entered, as for a new parameter of these values: optimizer
        state, and a gradient that outlives its step."""
        held = [(one, group) for optimizer in self.optimizers for one in with_inner(optimizer)
                for group in one.param_groups]  # fmt: skip
        for name, theta in self.theta.items():
            outside = ~self.sets[name][1]
            if entering is not None:
                outside |= entering[name]
            if theta.grad is not None:
                theta.grad[outside] = 0
            for optimizer, group in held:
                state = optimizer.state.get(theta, {}) if any(p is theta for p in group["params"]) else {}
                for entry, value in state.items():
                    if isinstance(value, Tensor) and value.numel() == theta.numel() > 1:
                        value.view(theta.shape)[outside] = begin(optimizer, group, entry, theta)[outside]

    # --- sets --------------------------------------------------------------------------------------------------------

    def _refresh_if_due(self) -> None:
        end, method = self.rules.stop, self.rules.method
        stop = end is not None and self.steps >= end and not self.stopped
        due = self._intervals(self.steps) > self._intervals(self.refreshed_at)
        if method in ("topkast", "magnitude-ste"):
            due = due or stop or self.refreshed_at < self.rules.reached <= self.steps
        elif method == "gmp":
            due = (due or stop) and not self.stopped
        elif method in ("set", "rigl"):
            due = due and (end is None or self.steps < end)
        else:
            due = False
        if due:
            self.refresh() if stop or not self.rules.background else self._swap()

    def _intervals(self, step: int) -> int:
        count, length, end = 0, float(self.rules.refresh_every), self.rules.refresh_every
        while end <= step:
            count, length = count + 1, length * self.rules.growth
            end += round(length)
        return count

    @torch.no_grad()
    def refresh(self) -> None:
        """Choose A and B again from all of θ."""
        self.stopped = self.rules.stop is not None and self.steps >= self.rules.stop
        self.refreshed_at = self.steps
        self.asked = None
        before = self.sets
        self._choose()
        entering = {name: self.sets[name][1] & ~before[name][1] for name in self.theta}
        if self.rules.method in ("set", "rigl"):
            for name, theta in self.theta.items():
                theta[entering[name]] = 0
        self._clear_state(entering)

    @torch.no_grad()
    def _swap(self) -> None:
        """The sets that θ gave at the end of the last interval come into force; what θ gives now waits for the next."""
        self.refreshed_at = self.steps
        before = self.sets
        if self.asked is not None:
            self._choose(self.asked)
            self._clear_state({name: self.sets[name][1] & ~before[name][1] for name in self.theta})
        self.asked = {name: self._select(name) for name in self.theta}

    def _choose(self, asked: Sets | None = None) -> None:
        start = not self.sets
        drawn = (self.rules.explore == "random" and not self.stopped) or self.rules.method in ("static", "set")
        if self.leader is not None:
            self.sets = self.leader.history[len(self.history)]
        elif drawn or (start and self.rules.method == "rigl"):
            assert self.draw is not None, "sets are drawn: give draw"
            self.sets = {name: self._adopt(name, drawn, asked) for name, drawn in self.draw().items()}
        else:
            self.sets = asked or {name: self._select(name) for name in self.theta}
            if self.witness is not None and not start:
                self._settle(*self.witness())
        self.history.append(self.sets)

    def _settle(self, sets: Sets, theta: dict[str, Tensor]) -> None:
        assert self.rules.method in ("topkast", "magnitude-ste", "gmp"), "a near-tie is one of sizes of θ"
        for name, mine in self.sets.items():
            if not all(map(torch.equal, mine, sets[name])):
                score = self._score(name, theta[name])
                if all(map(torch.equal, self._by_size(name, score), sets[name])):
                    self.sets[name] = sets[name]
                    self.ties += 1
