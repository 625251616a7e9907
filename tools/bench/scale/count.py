"""Count the bytes that a rank holds and sends, from the tensors of a model under ``fully_shard``.

A rank sends its part to each other rank once for every gather, and receives as much: algorithms in a ring and direct
ones agree in this. Adding gradients costs the same in a ring; gloo adds all of them everywhere, which is twice as much.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from topkast.runtime.state.content.reservoirs import values_outside
from topkast.runtime.state.content.shards.shard import local
from topkast.runtime.state.content.shards.shard_outside import rows_of
from topkast.runtime.state.site_module import SiteModule

STATES = 2  # tensors of AdamW for each value


def _sites(module: nn.Module) -> list[SiteModule]:
    return [part for part in module.modules() if isinstance(part, SiteModule)]


def held(module: nn.Module) -> Counter[str]:
    """The bytes that this rank holds between two steps, by place, with gradients and the state of AdamW."""
    found: Counter[str] = Counter()
    sites = _sites(module)
    assert all(site.shard is not None for site in sites)  # a site cuts its reservoir when it notices its part
    for parameter in module.parameters():
        size = local(parameter).nbytes
        if parameter.requires_grad:
            found += Counter({"values": size, "gradient": size, "optimizer": STATES * size})
        else:
            found["index"] += size
    for site in sites:
        found["index"] += site.row_ptr.nbytes + site.row_fwd.nbytes
        found["reservoir"] += site.reservoir.nbytes + site.ever.nbytes
    return found


def gathered(block: nn.Module) -> int:
    """The bytes of a block while it computes: everything that its ranks gather."""
    group: Any = block._get_fsdp_state()._fsdp_param_group  # type: ignore[operator]
    return sum(one.sharded_param.numel() * _compute(group, one) for one in group.fsdp_params)


def sent_in_a_step(module: nn.Module, ranks: int, adding: int = 1) -> int:
    """The bytes that a rank sends in a step with one forward and one backward.

    Args:
        ranks: the number of ranks.
        adding: 1 for a reduce-scatter in a ring; 2 for gloo's.
    """
    total = 0
    for part in module.modules():
        group: Any = part._get_fsdp_state()._fsdp_param_group if isinstance(part, FSDPModule) else None
        gathers = 1 if group is None or group.post_forward_mesh_info is None else 2
        for one in () if group is None else group.fsdp_params:
            numbers, reduced = one._sharded_param_data.numel(), group.mp_policy.reduce_dtype or one.sharded_param.dtype
            total += gathers * numbers * _compute(group, one)
            total += adding * numbers * reduced.itemsize if one.sharded_param.requires_grad else 0
    # The size of A of all sites, one number for each site, is added up in float64.
    return (ranks - 1) * total + 2 * (ranks - 1) * 8 * len(_sites(module)) // ranks


def _compute(group: Any, one: Any) -> int:
    """Bytes of a number of a parameter while it computes."""
    kind = one.sharded_param.dtype
    return (group.mp_policy.param_dtype or kind).itemsize if kind.is_floating_point else kind.itemsize


def sent_in_a_refresh(module: nn.Module, ranks: int) -> int:
    """The bytes that a rank sends in a refresh of all sites, with gradients and the state of AdamW."""
    total = 0
    for site in _sites(module):
        shard = site.shard
        assert shard is not None
        if rows_of(site, shard) is not None:
            continue
        numbers = shard.slots_of_chunk * site.geometry.unit
        outside = values_outside(site.geometry, site.n_fwd, site.n_bwd, site.rule)
        total += (2 + STATES) * numbers * shard.values.element_size()
        marks = -(-site.geometry.units // 8)
        total += -(-outside // ranks) * shard.values.element_size() + -(-marks // ranks)
        total += shard.slots_of_chunk * site.own_columns.element_size()
    return (ranks - 1) * total
