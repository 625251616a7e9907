"""The oracle: Top-KAST and the methods beside it with full θ, full optimizer state and explicit masks.

Plain PyTorch, slow and obvious.

It shares no code with the package: it is handed a dense model and, for each sparsified parameter, the counts and the
view as a matrix of blocks (:class:`Plan`), and does the rest itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Sets = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Plan:
    """One sparsified parameter.

    Args:
        fwd, bwd: number of blocks in A and in B.
        block: (rows, columns) of a block of the weight seen as a matrix.
        perm, lead: the dims' order that makes that matrix, and how many of them form its rows.
        balanced: the counts hold per block row (``fwd`` and ``bwd`` are still totals).
    """

    fwd: int
    bwd: int
    block: tuple[int, int]
    perm: tuple[int, ...]
    lead: int
    balanced: bool = False


@dataclass(frozen=True)
class Rules:
    """By which method and when sets are chosen again, and what is done to the explored weights."""

    refresh_every: int = 100
    explore: str = "topk"
    decay: float = 30.0
    l2: float = 0.0
    stop: int | None = None
    background: bool = False
    method: str = "topkast"
    drop: float = 0.3


class MaskedWeight(torch.autograd.Function):
    """θ on A forward; the gradient on B backward, all of it also left in ``seen[name]``."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, fwd: Tensor, bwd: Tensor, seen: dict[str, Tensor], name: str) -> Tensor:
        # Not save_for_backward: reentrant checkpoints walk this node once for each recomputed segment.
        ctx.bwd, ctx.seen, ctx.name = bwd, seen, name
        return torch.where(fwd, theta, torch.zeros_like(theta))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        ctx.seen[ctx.name] = grads[0]
        return torch.where(ctx.bwd, grads[0], torch.zeros_like(grads[0])), None, None, None, None


class Oracle:
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
        self.plans, self.rules, self.leader, self.draw = plans, rules, leader, draw
        self.witness = witness
        self.theta: dict[str, nn.Parameter] = {}
        self.dense: dict[str, nn.Parameter] = {}
        self.owners: dict[str, list[tuple[nn.Module, str]]] = {}
        self.keys: dict[str, str] = {}
        for name, parameter in list(self.model.named_parameters()):
            (self.theta if name in plans else self.dense)[name] = parameter
        if missing := plans.keys() - self.theta.keys():
            raise KeyError(f"no such parameters: {sorted(missing)}")
        self._release()
        self.steps = self.refreshed_at = self.ties = 0
        self.stopped = False
        self.history: list[Sets] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self.sets: Sets = {}
        self.asked: Sets | None = None
        self.stepped: Sets = {}  # those of the last step
        self.before: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
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
        for name, owners in self.owners.items():
            weight = MaskedWeight.apply(self.theta[name], *self.sets[name], self.gradients, name)
            for module, attribute in owners:
                object.__setattr__(module, attribute, weight)
        return self.model(*args, **kwargs)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.theta.values(), *self.dense.values()]

    def train(self, mode: bool = True) -> None:
        self.model.train(mode)

    def state(self, values: str) -> dict[str, Tensor]:
        """The dense state dict with the original keys: θ (``"all"``) or W_A (``"forward"``)."""
        found = dict(self.model.state_dict())
        for key, name in self.keys.items():
            theta = self.theta[name].detach()
            found[key] = theta if values == "all" else torch.where(self.sets[name][0], theta, 0)
        return found

    # --- optimizer steps ---------------------------------------------------------------------------------------------

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Do after each step of ``optimizer`` what Top-KAST asks for."""
        optimizer.register_step_pre_hook(lambda opt, *_: self._before_step())
        optimizer.register_step_post_hook(lambda opt, *_: self._after_step(opt))
        self.optimizers.append(optimizer)

    @torch.no_grad()
    def _before_step(self) -> None:
        for name, theta in self.theta.items():
            self.before[name] = theta.detach().clone()
            if self.rules.l2 and theta.grad is not None:
                fwd, bwd = self.sets[name]
                density = self._counts(name)[0] / self._units(name)
                theta.grad += self.rules.l2 * torch.where(fwd, theta, 0)
                theta.grad += self.rules.l2 / density * torch.where(bwd & ~fwd, theta, 0)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        # A fused optimizer under GradScaler runs its step also when it skips it.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return
        for name, theta in self.theta.items():
            theta.copy_(torch.where(self.sets[name][1], theta, self.before[name]))
        self._clear_state()
        lrs = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        self.step(lrs)

    @torch.no_grad()
    def step(self, lr: dict[int, float] | float = 0.0) -> None:
        """Count a step and decay the explored weights; a loop without an optimizer calls this itself."""
        for name, theta in self.theta.items():
            fwd, bwd = self.sets[name]
            rate = lr if isinstance(lr, float) else lr.get(id(theta), 0.0)
            theta.copy_(torch.where(bwd & ~fwd, theta * (1 - min(rate * self.rules.decay, 0.25)), theta))
        self.steps += 1
        self.stepped = self.sets
        if self.rules.method == "rigl":
            self._refresh_if_due()

    def _clear_state(self) -> None:
        """Zero whatever is kept outside B: optimizer state, and a gradient that outlives its step."""
        for name, theta in self.theta.items():
            outside = ~self.sets[name][1]
            if theta.grad is not None:
                theta.grad[outside] = 0
            for optimizer in self.optimizers:
                for value in optimizer.state.get(theta, {}).values():
                    if isinstance(value, Tensor) and value.shape == theta.shape:
                        value[outside] = 0

    # --- sets --------------------------------------------------------------------------------------------------------

    def _refresh_if_due(self) -> None:
        every, end, method = self.rules.refresh_every, self.rules.stop, self.rules.method
        stop = end is not None and self.steps >= end and not self.stopped
        due = self.steps // every > self.refreshed_at // every
        if method in ("topkast", "magnitude-ste"):
            due = due or stop
        elif method == "gmp":
            due = (due or stop) and not self.stopped
        elif method in ("set", "rigl"):
            due = due and (end is None or self.steps < end)
        else:
            due = False
        if due:
            self.refresh() if stop or not self.rules.background else self._swap()

    @torch.no_grad()
    def refresh(self) -> None:
        """Choose A and B again from all of θ."""
        self.stopped = self.rules.stop is not None and self.steps >= self.rules.stop
        self.refreshed_at = self.steps
        self.asked = None
        before = self.sets
        self._choose()
        self._clear_state()
        if self.rules.method in ("set", "rigl"):
            for name, theta in self.theta.items():
                theta[self.sets[name][1] & ~before[name][1]] = 0

    @torch.no_grad()
    def _swap(self) -> None:
        """The sets that θ gave at the end of the last interval come into force; what θ gives now waits for the next."""
        self.refreshed_at = self.steps
        if self.asked is not None:
            self._choose(self.asked)
            self._clear_state()
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
        for name, mine in self.sets.items():
            if not all(map(torch.equal, mine, sets[name])):
                score = self._score(name, theta[name])
                if all(map(torch.equal, self._by_size(name, score), sets[name])):
                    self.sets[name] = sets[name]
                    self.ties += 1

    def _adopt(self, name: str, drawn: tuple[Tensor, Tensor], asked: Sets | None) -> tuple[Tensor, Tensor]:
        fwd, bwd = drawn
        if self.rules.method == "topkast":
            largest = (asked[name] if asked else self._select(name))[0]
            assert torch.equal(largest, fwd), f"{name}: A is not the largest"
        if self.rules.method == "set" and self.sets:
            kept = self._mask(self._kept(name)[0], name)
            assert not bool((kept & ~fwd).any()), f"{name}: a unit was dropped that is not among the smallest"
        assert not bool((fwd & ~bwd).any()), f"{name}: A is not inside B"
        for label, mask, count in zip("AB", drawn, self._counts(name), strict=True):
            held = int(_blocked(mask, self.plans[name]).any(-1).sum())
            assert held == count, f"{name}: {label} has {held} blocks, not {count}"
        return fwd.clone(), bwd.clone()

    def _counts(self, name: str) -> tuple[int, int]:
        plan = self.plans[name]
        if self.rules.method == "gmp":
            assert self.rules.stop
            left = (1 - min(1.0, self.steps / self.rules.stop)) ** 3
            groups = self._score(name, self.theta[name]).shape[0]
            units, last = self._units(name) // groups, plan.fwd // groups
            return (groups * (units - round((units - last) * (1 - left))),) * 2
        return plan.fwd, plan.fwd if self.stopped else plan.bwd

    def _units(self, name: str) -> int:
        return _blocked(self.theta[name], self.plans[name]).shape[:2].numel()

    def _score(self, name: str, dense: Tensor) -> Tensor:
        """[groups, n]: one group, or a block row each."""
        blocks = _blocked(dense.detach(), self.plans[name])
        score = blocks[..., 0].abs() if blocks.shape[-1] == 1 else blocks.double().square().sum(-1)
        return score if self.plans[name].balanced else score.reshape(1, -1)

    def _mask(self, chosen: Tensor, name: str) -> Tensor:
        theta, plan = self.theta[name], self.plans[name]
        return _unblocked(chosen.reshape(_blocked(theta, plan).shape[:2]), theta, plan)

    def _select(self, name: str) -> tuple[Tensor, Tensor]:
        score = self._score(name, self.theta[name])
        if self.rules.method == "rigl":
            kept, count = self._kept(name)
            gradient = self._score(name, self.gradients[name])
            fwd = self._mask(kept | _top(gradient.masked_fill(kept, -1), count), name)
            return fwd, fwd
        return self._by_size(name, score)

    def _by_size(self, name: str, score: Tensor) -> tuple[Tensor, Tensor]:
        masks = [self._mask(_top(score, count // len(score)), name) for count in self._counts(name)]
        return masks[0], masks[1]

    def _kept(self, name: str) -> tuple[Tensor, int]:
        """What of A a drop of the smallest leaves, and how many of a group must grow."""
        score = self._score(name, self.theta[name])
        share, stop, held = self.rules.drop, self.rules.stop, self.plans[name].fwd // len(score)
        if stop is not None:
            share *= 0.5 * (1 + math.cos(math.pi * min(1.0, self.steps / stop)))
        count = round(share * held)
        old = _blocked(self.sets[name][0], self.plans[name]).any(-1).reshape(score.shape)
        return _top(score.masked_fill(~old, -1), held - count), count


def _top(score: Tensor, count: int) -> Tensor:
    """The ``count`` largest of each row; ties go to the lower index."""
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order[:, :count], True)


def _blocked(theta: Tensor, plan: Plan) -> Tensor:
    """[block rows, block columns, r * c], padded with zeros."""
    r, c = plan.block
    permuted = theta.permute(plan.perm)
    matrix = permuted.flatten(plan.lead).flatten(0, plan.lead - 1)
    padded = theta.new_zeros(-(-matrix.shape[0] // r) * r, -(-matrix.shape[1] // c) * c)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded.unfold(0, r, r).unfold(1, c, c).flatten(2)


def _unblocked(chosen: Tensor, theta: Tensor, plan: Plan) -> Tensor:
    """The mask of shape θ of the chosen blocks [block rows, block columns]."""
    r, c = plan.block
    permuted = theta.permute(plan.perm)
    rows = permuted.shape[: plan.lead].numel()
    matrix = chosen.repeat_interleave(r, 0).repeat_interleave(c, 1)[:rows, : theta.numel() // rows]
    mask = torch.empty_like(theta, dtype=torch.bool)
    mask.permute(plan.perm).copy_(matrix.reshape(permuted.shape))
    return mask
