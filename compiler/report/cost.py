"""The costs of a converted model, compared with the same model trained dense: parameters, FLOPs, bytes.

Of a sharded model, parameters and FLOPs are those of the whole model, and bytes are those of this rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.state.content.shards.shard import local
from topkast.runtime.state.site_module import SiteModule


def count_parameters(root: nn.Module, found: dict[str, SiteModule]) -> dict[str, int]:
    weights = sum(site.geometry.numel for site in found.values())
    others = _others(root, found)
    return {
        "all": weights + sum(p.numel() for p in others),
        "trainable_now": sum(p.numel() for p in root.parameters() if p.requires_grad),
        "in_sites": weights,
    }


def _others(root: nn.Module, found: dict[str, SiteModule]) -> list[nn.Parameter]:
    """The parameters that are no part of a site. The columns of a sharded site are a parameter, too."""
    own = {id(p) for site in found.values() for p in (site.original, *site.parameters())}
    return [p for p in root.parameters() if id(p) not in own]


def count_flops(rows: list[dict[str, Any]], found: dict[str, SiteModule]) -> dict[str, Any]:
    """FLOPs of the sparse sites: two for each multiply-add of a weight; one product forward, two more to train."""
    known = all(row["positions"] is not None for row in rows)
    dense = sparse = training = 0.0
    for row, site in zip(rows, found.values(), strict=True):
        work = 2.0 * site.geometry.numel * (row["positions"] if known else 1)
        dense += work
        sparse += work * row["density_a"]
        training += work * (2 * row["density_a"] + row["density_b"])
    return {
        "per": "traced call" if known else "position",
        "dense_forward": dense,
        "sparse_forward": sparse,
        "dense_training": 3 * dense,
        "sparse_training": training,
    }


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


def _state(optimizers: Iterable[torch.optim.Optimizer], parameter: Tensor) -> list[Tensor]:
    states = (optimizer.state.get(parameter, {}) for optimizer in optimizers)
    return [local(value) for state in states for value in state.values() if isinstance(value, Tensor)]


def _index(site: SiteModule) -> list[Tensor]:
    """The tensors that say which weights are in A and B, as far as this rank has them."""
    cols = site.own_columns if site.shard is not None and not site.index_is_whole else site.columns
    return [site.row_ptr, site.row_fwd, cols, site.ever]


def _dense_numel(site: SiteModule) -> int:
    """The number of weights that this rank would have of the dense weight: all, or those of its rows."""
    (rows, *rest), shard = site.geometry.shape, site.shard
    span = slice(0, rows) if shard is None else shard.span(rows)
    return (span.stop - span.start) * prod(rest)


def count_bytes(found: dict[str, SiteModule]) -> dict[str, int]:
    """Bytes of these sites, and bytes of the same weights trained dense with the same optimizer. A site for inference
    is compared with a dense weight without a gradient; this rank's part of a site with this rank's part of the dense
    weight."""
    total = dict.fromkeys(("values", "gradient", "optimizer", "index", "reservoir", "sparse", "dense"), 0)
    for site in found.values():
        state = _state(site.optimizers, site.original)
        values, numel = local(site.original), _dense_numel(site)
        part = {
            "values": values.nbytes,
            "gradient": 0 if site.for_inference else values.nbytes,
            "optimizer": _nbytes(state),
            "index": _nbytes(_index(site)),
            "reservoir": _nbytes([site.reservoir]),
        }
        # The state of dense training: one number for each weight instead of one number for each stored value.
        dense_state = sum(
            numel * value.element_size() if value.shape == values.shape else value.nbytes for value in state
        )
        copies = 1 if site.for_inference else 2  # values, gradient
        part["sparse"], part["dense"] = sum(part.values()), copies * numel * values.element_size() + dense_state
        total = {key: total[key] + part[key] for key in total}
    return total


def count_places(found: dict[str, SiteModule]) -> dict[str, dict[str, int]]:
    """Bytes of sparse training for each place: "cpu", "cuda:0", or "disk" for a mapped reservoir. A GPU also has its
    peak: the most bytes of all torch tensors of this process since torch.cuda.reset_peak_memory_stats."""
    places: Counter[str] = Counter()
    for site in found.values():
        state = _state(site.optimizers, site.original)
        values = local(site.original)
        gradient = () if site.for_inference else (values,)
        for tensor in (values, *gradient, *state, *_index(site)):
            places[str(tensor.device)] += tensor.nbytes
        on_disk = site.rule.reservoir == "disk"
        places["disk" if on_disk else str(site.reservoir.device)] += site.reservoir.nbytes
    gpus = [place for place in places if place.startswith("cuda")]
    return {"now": dict(places), "peak": {place: torch.cuda.max_memory_allocated(place) for place in gpus}}


def for_inference(found: dict[str, SiteModule]) -> bool:
    """Whether the model was loaded for inference only."""
    return any(site.for_inference for site in found.values())


def count_model_bytes(root: nn.Module, found: dict[str, SiteModule]) -> dict[str, Any]:
    """Bytes of the whole model, sparse and dense; tensors outside the sites cost the same on both sides."""
    optimizers = {id(o): o for site in found.values() for o in site.optimizers}.values()
    others = _others(root, found)
    rest = _nbytes(others)
    if not for_inference(found):
        rest += _nbytes(p for p in others if p.requires_grad)
    rest += sum(_nbytes(_state(optimizers, p)) for p in others)
    own = count_bytes(found)
    return {"sparse": own["sparse"] + rest, "dense": own["dense"] + rest, "optimizer_seen": bool(optimizers)}
