"""Check that all ranks agree on a sharded site.

The environment variable ``TOPKAST_COMPARE_RANKS=1`` asks for a check after every refresh. Without it only the first
optimizer step checks, because each check waits for all ranks.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.errors import ModelError
from topkast.runtime.state.content.shards.shard import Shard, local

VARIABLE = "TOPKAST_COMPARE_RANKS"


def compare_if_asked(site: Any, shard: Shard) -> None:
    """:func:`compare`, if the environment variable asks for it."""
    if os.environ.get(VARIABLE, "0") not in ("", "0"):
        compare(site, shard)


def compare(site: Any, shard: Shard) -> None:
    """Compare everything that ranks must have alike. All ranks call this.

    Raises:
        ModelError: the ranks differ; raised on every rank.
    """
    alike = [site.row_ptr, site.row_fwd]
    if site.index_is_whole:
        alike.append(shard.cols)
    rule = {name: value for name, value in vars(site.rule).items() if name != "reservoir"}
    facts = [site.step, site.refreshed_at, zlib.crc32(repr(sorted(rule.items())).encode())]
    _compare(site.name, [shard.group], [*facts, *map(hashed, alike)], shard)
    part = [local(shard.cols), local(shard.values), site.ever]
    _compare(site.name, shard.copies, [*facts, *map(hashed, part)], shard)


def _compare(name: str, groups: Any, numbers: list[int], shard: Shard) -> None:
    for group in groups:
        mine = torch.tensor(numbers, device=shard.values.device)
        found = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(found, mine, group=group)
        differ = [rank for rank, other in enumerate(found) if not torch.equal(other, found[0])]
        if differ:
            raise ModelError(
                f"{name}: rank {differ[0]} of its group has other sets, options or steps than rank 0; build the model "
                "with the same arguments and from the same weights on every rank, before fully_shard"
            )


def hashed(tensor: Tensor) -> int:
    """A number that depends on every byte of a tensor."""
    return zlib.crc32(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())


def numbers(site: Any) -> list[int]:
    """Numbers that depend on all of a site's weights, while it has all of them."""
    return [hashed(tensor) for tensor in (site.original, *site.index, site.reservoir)]


def make_alike(sites: Iterable[Any], mesh: Any, known: dict[str, list[int]]) -> None:
    """Compare the sites of all ranks before they are sharded, and give every rank the seed of the first rank.

    Args:
        sites: all sites of the model.
        mesh: the mesh that ``fully_shard`` will be called with.
        known: the name of a site that has only a part by now -> its :func:`numbers` from before.

    Raises:
        ModelError: the models of the ranks differ; raised on every rank.
    """
    sites = list(sites)
    for dim in range(mesh.ndim):
        group = mesh.get_group(dim)
        ranks: list[Any] = [None] * torch.distributed.get_world_size(group)
        shapes = [(s.name, s.geometry, s.n_fwd, s.n_bwd, vars(s.rule.replaced(seed=0))) for s in sites]
        own = [known.get(s.name) or numbers(s) for s in sites]
        torch.distributed.all_gather_object(ranks, (shapes, own, [s.rule.seed for s in sites]), group=group)
        for rank, (other, weights, _) in enumerate(ranks):
            if other != ranks[0][0]:
                raise ModelError(f"model: rank {rank} converts with other arguments, or another model, than rank 0")
            if weights != ranks[0][1]:
                raise ModelError(
                    f"model: rank {rank} starts from other weights than rank 0; set the same seed on every rank before "
                    "the model is built, or load the same weights"
                )
        for site, seed in zip(sites, ranks[0][2], strict=True):
            site.set_seed(seed)
