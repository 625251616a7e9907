"""Facts about a converted model: its weights, its costs and its past, counted from the tensors themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from topkast.runtime.kernels import native_library
from topkast.runtime.layout import slot_units
from topkast.runtime.planner.plan import measured
from topkast.runtime.state.find_sites import joined
from topkast.runtime.state.model import Record, find, owned
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.training.exploration_decay import MOST_DECAY
from topkast.runtime.training.standing_clock import standing_facts

from .cost import count_bytes, count_flops, count_model_bytes, count_parameters, count_places
from .how_it_ran import eager_facts, real_backend
from .pass_logs import passes_of

COLLAPSED = 0.5  # if more than this share of a set's members is zero, the set is mostly chosen by index order


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
        totals: parameters, flops, bytes, churn, ever_active.
        warnings: problems that the user should know.
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
    rows = [_row(name, site, owners[name][1], record) for name, site in found.items()]
    last = [row["churn"][-1] for row in rows if row["churn"]]
    units = sum(site.geometry.units for site in found.values())
    ever = sum(_ever(site) for site in found.values())
    totals = {
        "parameters": count_parameters(root, found),
        "flops": count_flops(rows, found),
        "bytes": {
            "sites": count_bytes(found),
            "model": count_model_bytes(root, found),
            "places": count_places(found),
        },
        "churn": {key: sum(c[key] for c in last) / len(last) for key in ("new_a", "new_b")} if last else None,
        "ever_active": ever / units,
        "step": max(site.step for site in found.values()),
    }
    config = {**asdict(record.config), "block": list(record.config.block)}
    warnings = [*record.warnings, *eager_facts(record, found), *standing_facts(found.values())]
    warnings += [text for name, site in found.items() for text in _warnings(name, site)]
    # The default decay is expected to be capped at SGD's learning rates; only a decay that the user set is warned of.
    fastest, asked = max(site.decayed_by for site in found.values()), record.config.exploration_decay
    if fastest > MOST_DECAY and asked is not None:
        warnings.append(
            f"exploration_decay={asked:g}: exploration_decay × lr is {fastest:.3g}; the decay is capped at "
            f"{MOST_DECAY:g} per step"
        )
    if native_library.library() is None:
        warnings.append(
            "the native CPU kernels were not built at install (no C++ compiler?): products on the CPU run on the "
            "reference kernels, slower than dense; install again with a compiler"
        )
    backend, passes = real_backend(record, found), passes_of(record.family)
    return Facts(rows, dict(record.dense), totals, warnings, record.how, backend, _plain(config), passes)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _row(name: str, site: SiteModule, owners: list[tuple[str, str]], record: Record) -> dict[str, Any]:
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
        "churn": [{"step": step, "new_a": fwd, "new_b": bwd} for step, fwd, bwd in site.churn],
        "ever_active": _ever(site) / geometry.units,
        "bytes": count_bytes({name: site}),
    }


def _ever(site: SiteModule) -> int:
    """The number of units that have been in A at any time."""
    return sum(int(((site.ever >> bit) & 1).sum()) for bit in range(8))


def _warnings(name: str, site: SiteModule) -> list[str]:
    units, in_a = slot_units(site.index, site.geometry)
    values = site.values.view(-1, site.geometry.unit)
    found = []
    if not bool(values.isfinite().all()) or not bool(site.reservoir.isfinite().all()):
        found.append(f"{name}: holds NaN or infinite values")
    if not site.original.requires_grad:
        found.append(f"{name}: frozen (requires_grad is False): sparse for inference only, it stands still")
    if site.late:
        found.append(
            f"{name}: {site.late} refreshes came after a step, not before a forward: the graphs were compiled by a "
            'backend that is not ours; use torch.compile(model, backend="topkast")'
        )
    rows = site.row_fwd.numel()
    empty = int((site.row_fwd == site.row_ptr[:-1]).sum())
    if empty:
        found.append(f"{name}: {empty} of {rows} output rows ({empty / rows:.1%}) have no weight in A: always zero")
    zero = (values == 0).all(1)
    if bool(zero[in_a].all()):
        found.append(f"{name}: every weight of A is zero: a dead layer")
    for label, member in (("A", in_a), ("B", units < site.geometry.units)):
        share = float(zero[member].float().mean())
        if share >= COLLAPSED:
            found.append(f"{name}: {share:.0%} of {label} is exactly zero: the set has collapsed, its members are ties")
    return found
