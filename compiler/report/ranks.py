"""What the ranks of a sharded model have together: their bytes, and the churn of all rows. Every rank calls these
functions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from topkast.runtime.state.content.shards.shard_outside import rows_of
from topkast.runtime.state.sharding.sums import summed
from topkast.runtime.state.site_module import SiteModule


def count_ranks(found: dict[str, SiteModule], own: dict[str, Any]) -> dict[str, Any] | None:
    """The bytes of all ranks together.

    Args:
        found: parameter name -> site.
        own: this rank's bytes, as in the report: "sites", "model" and "places".

    Returns:
        The number of ranks, the sums of "sites" and "model", and the list of the ranks' bytes by place; None if no site
        is sharded. Replicas of a part count too.
    """
    shards = [site.shard for site in found.values() if site.shard is not None]
    if not shards:
        return None
    ranks = [own]
    for group in (shards[0].group, *shards[0].copies):
        lists: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(lists, ranks, group=group)
        ranks = [one for some in lists for one in some]
    sites, model = Counter[str](), Counter[str]()
    for one in ranks:
        sites.update(one["sites"])
        model.update({key: one["model"][key] for key in ("sparse", "dense")})
    places = [one["places"]["now"] for one in ranks]
    return {"number": len(ranks), "sites": dict(sites), "model": dict(model), "places": places}


def churn_of(site: SiteModule) -> list[tuple[int, float, float]]:
    """The churn of a whole site. A rank that chooses the sets of its own rows has counted only these."""
    shard = site.shard
    if shard is None or not site.churn:
        return site.churn
    rows, every = rows_of(site, shard), site.geometry.grid[0]
    weight = 1 / shard.ranks if rows is None else (rows.stop - rows.start) / every
    shares = torch.tensor([entry[1:] for entry in site.churn], dtype=torch.float64, device=site.original.device)
    means = summed({site: weight * shares})[site].tolist()
    return [(step, fwd, bwd) for (step, *_), (fwd, bwd) in zip(site.churn, means, strict=True)]
