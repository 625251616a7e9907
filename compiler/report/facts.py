"""Facts about a converted model: its weights, its costs and its past, counted from the tensors themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.planner.plan import measured
from topkast.runtime.state.find_sites import joined
from topkast.runtime.state.model import Record, find, owned
from topkast.runtime.state.sharding.sums import summed
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.state.when import next_refresh

from .cost import count_bytes, count_flops, count_model_bytes, count_parameters, count_places, for_inference
from .how_it_ran import real_backend
from .pass_logs import passes_of
from .problems import problems_of
from .ranks import churn_of, count_ranks


@dataclass(frozen=True)
class Facts:
    """The facts that :func:`topkast.report` found.

    Args:
        sites: one dict for each sparse weight: name, shape, owners, ops, density_a, density_b (from the stored sets),
            block, balanced, scaled (the factor of θ at the start), matrix, positions, fused (product ->
            kernel -> runs), unfused (product, why, runs), measured (product, shape of the activations, dtype, threads,
            chosen, seconds by kernel; the planner's measurements of similar weights on this machine), churn (step, new
            share of A, new share of B), ever_active, bytes.
        dense: parameter name -> why it stayed dense.
        totals: parameters, flops, bytes (sites, model and places; of a sharded model those of this rank, and in ranks
            those of all ranks), churn, ever_active, step, refresh (last: the step of the last refresh; next: the number
            of completed steps at which the next refresh is due, None if no refresh will come), for_inference (whether
            the model was loaded for inference only).
        warnings: problems that the user should know, the most important first.
        how: how the model was traced.
        backend: the backend that the model was compiled with, and the replacement if that backend cannot run.
        config: the arguments of the conversion.
        passes: for each pass its runs, rewrites by kind, refusals by reason and seconds, over the graphs of this model
            that this process compiled. A graph does not count if the graph holds no sparse weight of the model or came
            from a compile cache.
    """

    sites: list[dict[str, Any]]
    dense: dict[str, str]
    totals: dict[str, Any]
    warnings: list[str]
    how: str
    backend: str
    config: dict[str, Any]
    passes: dict[str, dict[str, Any]]


def facts_of(model: Any) -> Facts:
    """Count and collect; see :func:`topkast.report`."""
    root, record = find(model)
    owners = owned(model)
    found = {name: site for name, (site, _) in owners.items()}
    ever_in_a = summed({site: _ever(site) for site in found.values()})
    rows = [_row(name, site, owners[name][1], record, int(ever_in_a[site])) for name, site in found.items()]
    last = [row["churn"][-1] for row in rows if row["churn"]]
    units = sum(site.geometry.units for site in found.values())
    ever = sum(row["ever_active"] * site.geometry.units for row, site in zip(rows, found.values(), strict=True))
    sizes: dict[str, Any] = {
        "sites": count_bytes(found),
        "model": count_model_bytes(root, found),
        "places": count_places(found),
    }
    totals = {
        "parameters": count_parameters(root, found),
        "flops": count_flops(rows, found),
        "bytes": {**sizes, "ranks": count_ranks(found, sizes)},
        "churn": {key: sum(c[key] for c in last) / len(last) for key in ("new_a", "new_b")} if last else None,
        "ever_active": ever / units if units else 0.0,
        "step": max((site.step for site in found.values()), default=0),
        "refresh": _refresh(found),
        "for_inference": for_inference(found),
    }
    config = {**asdict(record.config), "block": list(record.config.block)}
    backend, passes = real_backend(record, found), passes_of(record.family)
    return Facts(
        rows, dict(record.dense), totals, problems_of(record, found), record.how, backend, _plain(config), passes
    )


def _refresh(found: dict[str, SiteModule]) -> dict[str, int | None]:
    """The step of the last refresh of any site, and the step of the first refresh that will come."""
    coming = [step for site in found.values() if (step := next_refresh(site)) is not None]
    return {"last": max((site.refreshed_at for site in found.values()), default=0), "next": min(coming, default=None)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _row(name: str, site: SiteModule, owners: list[tuple[str, str]], record: Record, ever: int) -> dict[str, Any]:
    geometry = site.geometry
    in_a = int((site.row_fwd - site.row_ptr[:-1]).sum())
    fused: dict[str, dict[str, int]] = {}
    unfused = []
    for (product, kernel, why), runs in sorted(site.ran.items()):
        if product.startswith("read"):
            unfused.append({"product": product, "why": why, "runs": runs})
        else:
            fused.setdefault(product, {})[kernel] = runs
    return {
        "name": name,
        "shape": list(geometry.shape),
        "owners": [joined(*owner) for owner in owners],
        "ops": list(record.ops[site.name]),
        "density_a": in_a / geometry.units,
        "density_b": int(site.row_ptr[-1]) / geometry.units,
        "block": list(geometry.block),
        "balanced": site.rule.balanced,
        "scaled": record.scaled.get(site.name, 1.0),
        "matrix": {"rows": geometry.rows, "cols": geometry.cols, "perm": list(geometry.perm), "lead": geometry.lead},
        "positions": record.positions[site.name],
        "fused": fused,
        "unfused": unfused,
        "measured": [
            {**entry, "chosen": min(entry["seconds"], key=entry["seconds"].get)}
            for entry in measured(geometry, site.n_fwd, site.n_bwd)
        ],
        "churn": [{"step": step, "new_a": fwd, "new_b": bwd} for step, fwd, bwd in churn_of(site)],
        "ever_active": ever / geometry.units,
        "bytes": count_bytes({name: site}),
    }


def _ever(site: SiteModule) -> Tensor:
    """The number of units that have been in A at any time; of a sharded site, those that this rank holds."""
    return torch.stack([((site.ever >> bit) & 1).sum() for bit in range(8)]).sum()
