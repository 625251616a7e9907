"""How the oracle chooses A and B: each method's rule, on a weight seen as a matrix of blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    decay: float | None = None  # None: 4 / the root mean square of A
    l2: float = 0.0
    stop: int | None = None
    background: bool = False
    method: str = "topkast"
    drop: float = 0.3
    growth: float = 1.0  # of the intervals
    start: float | None = None  # A's sparsity at the start, if it falls to another until step ``reached``
    reached: int = 0


class Choice:
    """What sets are chosen from, and the rules; whoever inherits it keeps the attributes up to date.

    Args:
        plans, rules: see :class:`Plan` and :class:`Rules`.
    """

    def __init__(self, plans: dict[str, Plan], rules: Rules) -> None:
        self.plans, self.rules = plans, rules
        self.theta: dict[str, nn.Parameter] = {}
        self.gradients: dict[str, Tensor] = {}  # dense ones, of the last backward
        self.sets: Sets = {}  # in force
        self.steps = self.refreshed_at = 0
        self.stopped = False  # exploring: B = A from then on

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
        fwd, bwd = plan.fwd, plan.bwd
        if self.rules.start is not None:
            groups = self._score(name, self.theta[name]).shape[0]
            units, last, room = self._units(name) // groups, plan.fwd // groups, plan.bwd // groups
            first = min(room, max(last, round((1 - self.rules.start) * units)))
            now = last + round((first - last) * (1 - min(1.0, self.refreshed_at / self.rules.reached)) ** 3)
            fwd, bwd = groups * now, groups * max(now, round(room * now / first))
        return fwd, fwd if self.stopped else bwd

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
        if self.rules.method == "rigl" and name not in self.gradients:
            return self.sets[name]  # no backward went through it: nothing says where to grow
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
