"""The oracle: Top-KAST with full θ, full optimizer state and explicit masks, in plain PyTorch, slow and obvious.

It shares no code with the package: it is handed a dense model and, for each sparsified parameter, the counts and the
view as a matrix of blocks (:class:`Plan`), and does the rest itself.
"""

from __future__ import annotations

import copy
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
    """When sets are chosen again, and what is done to the explored weights."""

    refresh_every: int = 100
    explore: str = "topk"
    decay: float = 10.0
    l2: float = 0.0
    stop: int | None = None
    background: bool = False


class MaskedWeight(torch.autograd.Function):
    """θ on A forward; the gradient on B backward."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, fwd: Tensor, bwd: Tensor) -> Tensor:
        # Not save_for_backward: reentrant checkpoints walk this node once for each recomputed segment.
        ctx.bwd = bwd
        return torch.where(fwd, theta, torch.zeros_like(theta))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return torch.where(ctx.bwd, grads[0], torch.zeros_like(grads[0])), None, None


class Oracle:
    """A dense model trained as Top-KAST says.

    Args:
        model: the dense model; it is copied.
        plans: by the names of ``model.named_parameters()``.
        rules: see :class:`Rules`.
        dtype: what the copy is cast to.
        leader: another oracle that always runs first and whose sets are taken over instead of chosen. The truth in
            float64 follows the oracle in the dtype under test, so that one flipped near-tie does not count as an error.
        draw: for ``explore="random"``: gives the sets of the model under test, whose draw nobody can foretell. Their
            A must be ours, their B of the right size around it.
    """

    def __init__(
        self,
        model: nn.Module,
        plans: dict[str, Plan],
        rules: Rules,
        dtype: torch.dtype | None = None,
        leader: Oracle | None = None,
        draw: Callable[[], Sets] | None = None,
    ) -> None:
        self.model = copy.deepcopy(model).to(dtype)
        self.plans, self.rules, self.leader, self.draw = plans, rules, leader, draw
        self.theta: dict[str, nn.Parameter] = {}
        self.dense: dict[str, nn.Parameter] = {}
        self.owners: dict[str, list[tuple[nn.Module, str]]] = {}
        self.keys: dict[str, str] = {}
        for name, parameter in list(self.model.named_parameters()):
            (self.theta if name in plans else self.dense)[name] = parameter
        if missing := plans.keys() - self.theta.keys():
            raise KeyError(f"no such parameters: {sorted(missing)}")
        self._release()
        self.steps = self.refreshed_at = 0
        self.stopped = False
        self.history: list[Sets] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self.sets: Sets = {}
        self.asked: Sets | None = None
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
        if torch.is_grad_enabled():
            self._refresh_if_due()
        for name, owners in self.owners.items():
            weight = MaskedWeight.apply(self.theta[name], *self.sets[name])
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
            theta.copy_(torch.where(bwd & ~fwd, theta * (1 - rate * self.rules.decay), theta))
        self.steps += 1

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
        every = self.rules.refresh_every
        stop = self.rules.stop is not None and self.steps >= self.rules.stop and not self.stopped
        if stop or self.steps // every > self.refreshed_at // every:
            self.refresh() if stop or not self.rules.background else self._swap()

    def refresh(self) -> None:
        """Choose A and B again from all of θ."""
        self.stopped = self.rules.stop is not None and self.steps >= self.rules.stop
        self.refreshed_at = self.steps
        self.asked = None
        self._choose()
        self._clear_state()

    def _swap(self) -> None:
        """The sets that θ gave at the end of the last interval come into force; what θ gives now waits for the next."""
        self.refreshed_at = self.steps
        if self.asked is not None:
            self._choose(self.asked)
            self._clear_state()
        self.asked = {name: self._select(name) for name in self.theta}

    def _choose(self, asked: Sets | None = None) -> None:
        if self.leader is not None:
            self.sets = self.leader.history[len(self.history)]
        elif self.rules.explore == "random" and not self.stopped:
            assert self.draw is not None, "random exploration: give draw"
            chosen = asked or {name: self._select(name) for name in self.theta}
            self.sets = {name: self._adopt(name, drawn, chosen[name][0]) for name, drawn in self.draw().items()}
        else:
            self.sets = asked or {name: self._select(name) for name in self.theta}
        self.history.append(self.sets)

    def _adopt(self, name: str, drawn: tuple[Tensor, Tensor], largest: Tensor) -> tuple[Tensor, Tensor]:
        fwd, bwd = drawn
        assert torch.equal(largest, fwd), f"{name}: A is not the largest"
        assert not bool((fwd & ~bwd).any()), f"{name}: A is not inside B"
        held = int(_blocked(bwd, self.plans[name]).any(-1).sum())
        assert held == self._counts(name)[1], f"{name}: B has {held} blocks, not {self._counts(name)[1]}"
        return fwd.clone(), bwd.clone()

    def _counts(self, name: str) -> tuple[int, int]:
        plan = self.plans[name]
        return plan.fwd, plan.fwd if self.stopped else plan.bwd

    def _units(self, name: str) -> int:
        return _blocked(self.theta[name], self.plans[name]).shape[:2].numel()

    def _select(self, name: str) -> tuple[Tensor, Tensor]:
        plan, theta = self.plans[name], self.theta[name].detach()
        blocks = _blocked(theta, plan)
        score = blocks[..., 0].abs() if blocks.shape[-1] == 1 else blocks.double().square().sum(-1)
        groups = score.shape[0] if plan.balanced else 1
        score = score.reshape(groups, -1)
        order = torch.argsort(score, dim=1, descending=True, stable=True)
        masks = []
        for count in self._counts(name):
            chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order[:, : count // groups], True)
            masks.append(_unblocked(chosen.reshape(blocks.shape[:2]), theta, plan))
        return masks[0], masks[1]


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
