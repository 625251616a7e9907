"""The norm of W_A at the start: that of the largest weights, as they were drawn, can be more than training wants.

Measured (``tools/results/study``): with the largest fifth of fresh weights a model ends behind a random fifth at high
learning rates; with the norm of their largest tenth ahead of it. Weights that are trained keep theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime.choose import largest
from topkast.runtime.methods import METHODS
from topkast.runtime.site import Site

# Densities of A between which it was measured to help: up to a tenth a smaller start loses, at 0.3 it is level, and at
# a half it loses again.
TENTH, QUARTER = 0.1, 0.25

ENOUGH = 4096  # entries; fewer tell too little of where they come from
DEVIATIONS = 6  # how far by luck what is drawn may be from what is expected of it
ITERATIONS = 20  # of the power method: a direction that training wrote stands out at once


@torch.no_grad()
def rescale(site: Site, initial: str) -> float:
    """Multiply θ by one number, so that no set changes, and W_A has the norm that ``initial`` asks for.

    Args:
        site: as it was made.
        initial: "auto", "random" or "dense", see :func:`topkast.compile`.

    Returns:
        The number; 1.0 where nothing was to be done.
    """
    if initial == "auto" and not _too_many(site):
        return 1.0
    theta, in_a = site.theta(), ~site.explored()
    norm, full = float(site.original[in_a].norm()), float(theta.norm())
    of_random = (int(in_a.sum()) / theta.numel()) ** 0.5 * full
    wanted = {"random": of_random, "dense": full}.get(initial, norm)
    if initial == "auto" and as_drawn(theta.permute(site.geometry.perm).reshape(site.geometry.rows, -1)):
        tenth = largest(site._score(theta), _units(site, TENTH)).view(-1)
        wanted = min(norm, max(of_random, float(site.geometry.to_blocks(theta)[tenth].norm())))
    if norm == 0 or wanted == norm:
        return 1.0
    site.original.mul_(wanted / norm)
    site.reservoir.mul_(wanted / norm)
    return wanted / norm


def _too_many(site: Site) -> bool:
    """Whether A is the largest weights, more of them than have the norm that was measured best."""
    low, high = (site.groups * _units(site, density) for density in (TENTH, QUARTER))
    return METHODS[site.rule.method].largest_first and low < site.n_fwd <= high


def _units(site: Site, density: float) -> int:
    """Units of a group at that density, rounded as :func:`topkast.compiler.distribute.distribute` does."""
    return max(1, round(density * (site.geometry.units // site.groups)))


def as_drawn(matrix: Tensor) -> bool:
    """Whether a weight looks as an initialiser leaves it: entries drawn one by one, all alike.

    Training writes into rows (an output that matters), columns (an input that does) and directions of both. So the mean
    squares of rows and of columns must differ no more than those of such draws, by a χ² statistic, and the largest
    singular value must be that of a random matrix (its edge and scale: Johnstone 2001, "On the distribution of the
    largest eigenvalue in principal components analysis", theorem 1.1). Orthogonal weights pass. What is too small to
    tell does not, nor do zeros, values of one size, and what is not finite.

    Args:
        matrix: [rows, columns].
    """
    if matrix.numel() < ENOUGH:
        return False
    weight = matrix.float()
    square = weight.square()
    mean = square.mean()
    spread = (square / mean).var()
    if not 0 < float(spread) < torch.inf:
        return False
    for dim in (0, 1):
        means = square.mean(dim) / mean
        statistic = float((means - 1).square().sum() * weight.shape[dim] / spread)
        if statistic > means.numel() + DEVIATIONS * (2 * means.numel()) ** 0.5:
            return False
    rows, cols = (size**0.5 for size in weight.shape)
    generator = torch.Generator("cpu").manual_seed(0)  # nothing of the user's own random numbers is used up
    direction = torch.randn(weight.shape[1], generator=generator, device="cpu").to(weight.device)
    for _ in range(ITERATIONS):
        direction = torch.nn.functional.normalize(weight.mT @ (weight @ direction), dim=0)
    largest_squared = float((weight @ direction).square().sum() / mean)
    return largest_squared <= (rows + cols) ** 2 + DEVIATIONS * (rows + cols) * (1 / rows + 1 / cols) ** (1 / 3)
