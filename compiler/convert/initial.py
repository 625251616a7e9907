"""The norm of W_A at the start: that of the largest weights, as they were drawn, can be more than training wants.

Measured (``tools/results/study``): with the largest fifth of fresh weights a model ends behind a random fifth at high
learning rates; with the norm of their largest tenth ahead of it. Weights that are trained keep theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime.reference.selection import largest
from topkast.runtime.state.choose_sets import scores
from topkast.runtime.state.site_module import SiteModule

from .distribute import units_at

# Densities of A between which it was measured to help: up to a tenth a smaller start loses, at 0.3 it is level, and at
# a half it loses again.
TENTH, QUARTER = 0.1, 0.25

ENOUGH = 4096  # entries; fewer tell too little of where they come from
DEVIATIONS = 6  # how far by luck what is drawn may be from what is expected of it
ITERATIONS = 20  # of the power method: a direction that training wrote stands out at once


@torch.no_grad()
def start_scales(sites: dict[str, SiteModule], initial: str | None) -> dict[str, float]:
    """What each θ is to be multiplied by, so that no set changes, and W_A has the norm that ``initial`` asks for.

    Args:
        sites: all of a model, as they were made.
        initial: "auto", "random" or None, see :func:`topkast.compile`.

    Returns:
        Parameter name -> the number, where one was asked for.
    """
    if initial is None:
        return {}
    if initial == "auto":
        sites = {name: site for name, site in sites.items() if _too_many(site)}
        # All or none: in a model that was trained a little, some weights look as they did.
        if not all(as_drawn(_matrix(site)) for site in sites.values()):
            return {}
    return {name: _scale(site, initial) for name, site in sites.items()}


def _scale(site: SiteModule, initial: str) -> float:
    theta, in_a = site.theta(), ~site.explored()
    norm, full = float(site.values[in_a].norm()), float(theta.norm())
    wanted = (int(in_a.sum()) / theta.numel()) ** 0.5 * full
    if initial == "auto":
        tenth = largest(scores(site.set_state(), theta), _units(site, TENTH) // site.groups).view(-1)
        wanted = min(norm, max(wanted, float(site.geometry.to_blocks(theta)[tenth].norm())))
    return 1.0 if norm == 0 or wanted == norm else wanted / norm


def _matrix(site: SiteModule) -> Tensor:
    return site.theta().permute(site.geometry.perm).reshape(site.geometry.rows, site.geometry.cols)


def _too_many(site: SiteModule) -> bool:
    """Whether A is the largest weights, more of them than have the norm that was measured best, and there are enough to
    tell where they come from."""
    low, high = (_units(site, density) for density in (TENTH, QUARTER))
    return site.method.largest_first and low < site.n_fwd <= high and site.geometry.numel >= ENOUGH


def _units(site: SiteModule, density: float) -> int:
    return units_at(density, site.geometry, site.rule.balanced)


def as_drawn(matrix: Tensor) -> bool:
    """Whether a weight looks as an initialiser leaves it: entries drawn one by one, all alike.

    Training writes into rows (an output that matters), columns (an input that does) and directions of both. So the mean
    squares of rows and of columns must differ no more than those of such draws, by a χ² statistic, and the largest
    singular value must be that of a random matrix (its edge and scale: Johnstone 2001, "On the distribution of the
    largest eigenvalue in principal components analysis", theorem 1.1). Orthogonal weights and zeros pass; values of
    one size do not, nor what is not finite.

    Args:
        matrix: [rows, columns].
    """
    weight = matrix.float()
    square = weight.square()
    mean = square.mean()
    if mean == 0:
        return True
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
