"""Data parallel training: every rank starts from the sites of rank 0. After that, each rank chooses the same sets
itself.

``DistributedDataParallel`` broadcasts parameters and buffers when it is made, and buffers again in each forward. The
buffers of a site need not be sent again: equal θ gives equal sets on every rank. torch could not send some of them at
all (columns are 16-bit integers), and other state is not in buffers (the clock, the seed, a reservoir in host memory).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from topkast.runtime.errors import ModelError
from topkast.runtime.layout import Index
from topkast.runtime.state.content.background import already_chosen
from topkast.runtime.state.site_module import SiteModule

PART = 2**26  # bytes in one broadcast


def equalise(parallel: DistributedDataParallel, model: nn.Module) -> None:
    """Send the sites of rank 0 to all ranks. All ranks call this while ``parallel`` is made, before its own broadcast.

    Raises:
        ModelError: raised on every rank, if the models of the ranks are not sparse in the same way, or if the method
            grows by a gradient that only one rank has seen.
    """
    found = {path: module for path, module in model.named_modules() if isinstance(module, SiteModule)}
    parallel.parameters_to_ignore |= {f"{path}.{name}" for path, site in found.items() for name in site._buffers}
    group = parallel.process_group
    ranks: list[Any] = [None] * dist.get_world_size(group)
    own = [(s.name, s.geometry, s.n_fwd, s.n_bwd, s.rule.replaced(seed=0)) for s in found.values()]
    clocks = [(s.step, s.refreshed_at, s.rule.seed, s.pending and s.pending.step) for s in found.values()]
    dist.all_gather_object(ranks, (own, clocks), group=group)
    for rank, (other, _) in enumerate(ranks):
        if other != ranks[0][0]:
            raise ModelError(f"model: rank {rank} was converted with other arguments, or is another model, than rank 0")
    if len(ranks) > 1 and any(site.method.watches for site in found.values()):
        raise ModelError("model: method='rigl': each process would grow by its own gradient, so sets would part ways")
    first = dist.get_rank(group) == 0
    for site, (step, refreshed_at, seed, asked) in zip(found.values(), ranks[0][1], strict=True):
        if not first:
            site.drop_pending()
        site.set_clock(step, refreshed_at)
        site.set_seed(seed)
        # Clone the tensors, because a copy of the model may share the tensors of a choice.
        chosen = [] if asked is None else [tensor.clone() for tensor in site.pending_tensors().values()]
        for tensor in (*site.index, site.ever, site.reservoir, *chosen):
            _send(tensor, site.original.device, group)
        site.remember_index()
        if asked is not None and not first:
            site.set_pending(already_chosen(site.name, asked, Index(*chosen)))


def _send(tensor: Tensor, device: torch.device, group: Any) -> None:
    """Send rank 0's bytes to all ranks, through the device that the group can send from."""
    for part in tensor.view(-1).view(torch.uint8).split(PART) if tensor.numel() else ():
        there = part.to(device)
        dist.broadcast(there, group=group, group_src=0)
        if there is not part:
            part.copy_(there)
