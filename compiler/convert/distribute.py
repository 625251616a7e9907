"""How many units each site keeps in A and in B."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from topkast.compiler.config import Config
from topkast.runtime.layout import Geometry

# The smallest mean number of A's blocks in a row for which a weight is balanced. With this bound, rounding to whole
# blocks changes a density by a third at most.
FEWEST = 0.75


class Count(NamedTuple):
    """Units of one site in A and in B; if balanced, both are whole multiples of the number of block rows."""

    fwd: int
    bwd: int
    balanced: bool


Counts = dict[str, Count]


def units_at(density: float, geometry: Geometry, balanced: bool) -> int:
    """The number of units nearest to a density, at least one (if balanced, at least one in every block row)."""
    rows, columns = geometry.grid
    if balanced:
        return rows * max(1, round(density * columns))
    return max(1, round(density * geometry.units))


def erk(geometries: dict[str, Geometry], density: float) -> dict[str, float]:
    """Erdős-Rényi-Kernel densities with the given mean over all weights (Evci et al. 2020, section 3).

    A layer's density is proportional to the sum of its dims divided by their product. A layer whose density would be
    above 1 is dense, and the other layers share the rest.
    """
    raw = {name: sum(g.shape) / g.numel for name, g in geometries.items()}
    full: set[str] = set()
    while True:
        rest = [name for name in raw if name not in full]
        budget = density * sum(g.numel for g in geometries.values()) - sum(geometries[n].numel for n in full)
        scale = budget / sum(raw[n] * geometries[n].numel for n in rest) if rest else 0.0
        over = {name for name in rest if scale * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in full else scale * raw[name] for name in raw}
        full |= over


def distribute(config: Config, geometries: dict[str, Geometry]) -> Counts:
    """Parameter name -> units in A and in B, and whether every row of blocks has the same number.

    Constant fan-in was measured to learn better (``tools/results/study``), above all if rows have few blocks. If blocks
    are chosen freely, some rows have no block, and their outputs have no input (Lasby et al. 2024, "Dynamic Sparse
    Training with Structured Sparsity", found the same for unstructured sets).

    Args:
        config: the options.
        geometries: the geometry of every site, by parameter name.
    """
    assert config.bwd is not None
    wanted = [1 - config.fwd, 1 - config.bwd]
    if config.distribution == "erk":
        shares = [erk(geometries, density) for density in wanted]
    else:
        shares = [dict.fromkeys(geometries, density) for density in wanted]
    if isinstance(config.distribution, dict):
        for name in geometries:
            for glob, pair in config.distribution.items():
                if fnmatchcase(name, glob):
                    for share, sparsity in zip(shares, pair, strict=True):
                        share[name] = 1 - sparsity
                    break
    found = {}
    for name, geometry in geometries.items():
        balanced = config.balanced
        if balanced is None:
            balanced = shares[0][name] * geometry.grid[1] >= FEWEST
        fwd, bwd = (units_at(share[name], geometry, balanced) for share in shares)
        found[name] = Count(fwd, max(fwd, bwd), balanced)
    return found
