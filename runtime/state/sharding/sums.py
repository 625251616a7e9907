"""Numbers of sites, added up over the ranks that hold a part of each site."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")


def summed(parts: dict[S, Tensor]) -> dict[S, Tensor]:
    """The sums over all ranks. All sites that are sharded over the same ranks share one message. Every rank calls this.

    Args:
        parts: site -> numbers of the part that this rank has, of one shape and dtype for all sites. The numbers of a
            site that is not sharded are unchanged.
    """
    found, shared = dict(parts), dict[Any, list[S]]()
    for site in parts:
        shard = site.shard  # type: ignore[attr-defined]
        if shard is not None:
            shared.setdefault(shard.group, []).append(site)
    for group, sites in shared.items():
        sums = torch.stack([parts[site] for site in sites])
        torch.distributed.all_reduce(sums, group=group)
        found.update(zip(sites, sums, strict=True))
    return found
