"""The figures that are worth a curve: density, churn, how many weights were ever used, dead rows, work and bytes."""

from __future__ import annotations

from typing import Any

from topkast.compiler.report.cost import count_bytes
from topkast.runtime.kernels.candidates import DENSE
from topkast.runtime.planner.plan import measured
from topkast.runtime.state.model import sites
from topkast.runtime.state.site_module import SiteModule


def metrics(model: Any) -> dict[str, float]:
    """Figures about a sparse model, for a logger. They are counted from the current sets.

    Args:
        model: a model converted by topkast, or a wrapper of such a model.

    Returns:
        By name:

        - ``sparse/density_a``, ``sparse/density_b``: the shares of the sparse weights' elements in A and in B.
        - ``sparse/churn_a``, ``sparse/churn_b``: the shares of A and of B that were new at the last refresh, the mean
          over the weights. Missing before the first refresh.
        - ``sparse/ever_in_a``: the share of the elements that were in A at any time.
        - ``sparse/dead_rows``: the number of rows of blocks (outputs of a layer) that have nothing in A.
        - ``sparse/flops_ratio``: FLOPs of a training step of the sparse weights, divided by those of dense weights.
        - ``sparse/step_ratio``: seconds of the products that the planner has measured, the fastest kernel divided by
          the dense one. Missing if the planner has measured nothing.
        - ``sparse/bytes``, ``sparse/bytes_ratio``: bytes of the sparse weights with gradients, optimizer state, index
          and reservoir, and the same divided by the bytes of dense training.

    Raises:
        ModelError: the model was not converted.
    """
    found = sites(model)
    units = sum(site.geometry.units * site.geometry.unit for site in found.values())
    in_a = sum(_in_a(site) * site.geometry.unit for site in found.values())
    in_b = sum(int(site.row_ptr[-1]) * site.geometry.unit for site in found.values())
    ever = sum(_ever(site) * site.geometry.unit for site in found.values())
    size = count_bytes(found)
    figures = {
        "density_a": in_a / units,
        "density_b": in_b / units,
        "ever_in_a": ever / units,
        "dead_rows": float(sum(_dead(site) for site in found.values())),
        "flops_ratio": (2 * in_a + in_b) / (3 * units),
        "bytes": float(size["sparse"]),
        "bytes_ratio": size["sparse"] / size["dense"],
    }
    last = [site.churn[-1] for site in found.values() if site.churn]
    if last:
        figures["churn_a"], figures["churn_b"] = (sum(churn[i] for churn in last) / len(last) for i in (1, 2))
    if (ratio := _step_ratio(found)) is not None:
        figures["step_ratio"] = ratio
    return {f"sparse/{name}": figure for name, figure in figures.items()}


def _in_a(site: SiteModule) -> int:
    return int((site.row_fwd - site.row_ptr[:-1]).sum())


def _dead(site: SiteModule) -> int:
    return int((site.row_fwd == site.row_ptr[:-1]).sum())


def _ever(site: SiteModule) -> int:
    return sum(int(((site.ever >> bit) & 1).sum()) for bit in range(8))


def _step_ratio(found: dict[str, SiteModule]) -> float | None:
    """Sum of the fastest seconds over sum of the dense seconds, of the products that the planner has measured."""
    fastest = dense = 0.0
    for site in found.values():
        for entry in measured(site.geometry, site.n_fwd, site.n_bwd):
            of_dense = [seconds for kernel, seconds in entry["seconds"].items() if kernel in DENSE]
            if of_dense:
                fastest += min(entry["seconds"].values())
                dense += min(of_dense)
    return fastest / dense if dense else None
