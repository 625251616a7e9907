"""The norm of W_A at the start. The norm of the largest freshly drawn weights can be too large for training.

Measured (``tools/results/study``): at high learning rates, a model that starts with the largest fifth of its fresh
weights ends worse than a model with a random fifth. If W_A is scaled to the norm of the largest tenth, the model ends
better than with a random fifth. Trained weights keep their norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime.reference.selection import largest
from topkast.runtime.state.content.choose_sets import scores
from topkast.runtime.state.site_module import SiteModule

from .distribute import units_at

# Scaling was measured to help between these densities of A. Up to a tenth a smaller start is worse, at 0.3 scaling
# makes no difference, and at a half scaling is worse again.
TENTH, QUARTER = 0.1, 0.25

ENOUGH = 4096  # entries; fewer entries do not show reliably how they were made
DEVIATIONS = 6  # standard deviations by which a draw may differ from its mean
ITERATIONS = 20  # of the power method: a direction that training wrote stands out at once


@torch.no_grad()
def start_scale(site: SiteModule, initial: str | None) -> float | None:
    """The factor for a θ, as it was made, that gives W_A the norm that ``initial`` asks for. The factor changes no set.

    Args:
        site: a site with all of its θ.
        initial: "auto", "random" or None, see :func:`topkast.compile`.

    Returns:
        None if the weight was trained: then no weight of the model is scaled, because in a model that was trained a
        little some weights still look freshly drawn.
    """
    if initial is None or (initial == "auto" and not _too_many(site)):
        return 1.0
    if initial == "auto" and not as_drawn(_matrix(site)):
        return None
    return _scale(site, initial)


def start_scales(sites: dict[str, SiteModule], initial: str | None, known: dict[str, float | None]) -> dict[str, float]:
    """The factor for each θ of a model.

    Args:
        sites: all sites of the model, as they were made.
        initial: as for :func:`start_scale`.
        known: name of a site that has only a part of its θ by now -> its :func:`start_scale`.

    Returns:
        Parameter name -> the factor. A weight that is not scaled has no entry.
    """
    found: dict[str, float] = {}
    for name, site in sites.items():
        scale = known[name] if name in known else start_scale(site, initial)
        if scale is None:
            return {}
        if scale != 1.0:
            found[name] = scale
    return found


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
    """Whether A holds the largest weights, A is denser than the density with the best measured norm, and the weight has
    enough entries to show how they were made."""
    low, high = (_units(site, density) for density in (TENTH, QUARTER))
    return site.method.largest_first and low < site.n_fwd <= high and site.geometry.numel >= ENOUGH


def _units(site: SiteModule, density: float) -> int:
    return units_at(density, site.geometry, site.rule.balanced)


def as_drawn(matrix: Tensor) -> bool:
    """Whether a weight looks freshly initialised: its entries are independent draws from one distribution.

    Training changes rows (important outputs), columns (important inputs) and directions of both. Two tests follow. The
    mean squares of rows and of columns may differ no more than in independent draws, by a χ² statistic. The largest
    singular value must be the one of a random matrix (its edge and scale: Johnstone 2001, "On the distribution of the
    largest eigenvalue in principal components analysis", theorem 1.1). Orthogonal weights and zeros pass. Values that
    all have the same size do not pass, and values that are not finite do not pass.

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
    generator = torch.Generator("cpu").manual_seed(0)  # the user's own random generator stays unchanged
    direction = torch.randn(weight.shape[1], generator=generator, device="cpu").to(weight.device)
    for _ in range(ITERATIONS):
        direction = torch.nn.functional.normalize(weight.mT @ (weight @ direction), dim=0)
    largest_squared = float((weight @ direction).square().sum() / mean)
    return largest_squared <= (rows + cols) ** 2 + DEVIATIONS * (rows + cols) * (1 / rows + 1 / cols) ** (1 / 3)
