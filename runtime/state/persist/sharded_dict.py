"""A sharded site in a state dict: every tensor that each rank has a part of is a ``DTensor``.

``torch.distributed.checkpoint`` takes a plain tensor as one that all ranks have alike, and would keep the part of one
rank only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkast.runtime.layout import check_index
from topkast.runtime.state.content.parts import Change, carry_out
from topkast.runtime.state.content.shards.shard import Shard, is_sharded, local
from topkast.runtime.state.refresh_after_load import refresh_at_next_forward
from topkast.runtime.state.sharding.whole_tensors import adapted
from topkast.runtime.state.site import Site
from topkast.runtime.state.when import due

from . import saved_form
from .saved_index import as_plain


def outside(site: Site) -> dict[str, Tensor]:
    """The values outside B and the marks of a sharded site, by name. The values share their memory with the site."""
    shard, shapes = site.shard, saved_form.outside_shapes(site)
    assert shard is not None
    return {name: _distributed(part, shapes[name], shard.values) for name, part in saved_form.outside(site).items()}


def _distributed(part: Tensor, shape: tuple[int, ...], like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor  # slow to import

    stride = (1,) if len(shape) == 1 else (max(1, shape[1]), 1)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def load(site: Site, state: dict[str, Any], key: dict[str, str], missing: list[str], errors: list[str]) -> None:
    """Load a sharded site's part of a state dict: as a whole or not at all. All ranks call this together.

    Args:
        site: a sharded site.
        state: the state dict with the tensors.
        key: name of a tensor of the site -> its key in the state dict.
        missing, errors: lists that the function adds to.
    """
    shard = site.shard
    assert shard is not None
    mine = {"values": shard.values, "row_ptr": site.row_ptr, "row_fwd": site.row_fwd}
    mine |= {"cols": saved_form.as_saved(site, "cols", shard.cols), **outside(site)}
    found: dict[str, Any] = {name: as_plain(state[key[name]]) for name in key if key[name] in state}
    missing += [key[name] for name in key if name not in found]
    if len(found) < len(key):
        return
    for name, tensor in mine.items():
        # A whole tensor of every rank: a state dict that torch gathered (StateDictOptions(full_state_dict=True)).
        given = found[name] = adapted(found[name], tensor)
        if given.shape != tensor.shape or is_sharded(given) != is_sharded(tensor):
            errors.append(
                f"size mismatch for {key[name]}: {type(given).__name__} {tuple(given.shape)}, expected "
                f"{type(tensor).__name__} {tuple(tensor.shape)}; a sharded model reads what a sharded model saved"
            )
            return
    columns = local(found["cols"]).view(site.own_columns.dtype).view(-1)
    if site.index_is_whole:
        columns = columns[shard.span(shard.slots, shard.slots_of_chunk)]
    wrong = check_index(shard.own_index(found["row_ptr"], found["row_fwd"], columns), site.geometry)
    if _on_any_rank(wrong is not None, shard):
        wrong = wrong or "the part of another rank"
        errors.append(f"{key['cols']}: the index is broken: {wrong}")
        return
    step, refreshed_at = (int(n) for n in found["clock"])

    @torch.no_grad()
    def apply() -> None:
        for name, tensor in mine.items():
            if name != "ever":
                local(tensor).copy_(local(found[name]))
        site.ever.copy_(saved_form.as_held(site, "ever", local(found["ever"])))
        site.remember_index()
        fields = {"unread_state_index": None, "step": step, "refreshed_at": refreshed_at}
        site.write(None, Change(fields=fields, after=site.method.forget))

    carry_out([site], apply)
    if due(site):
        refresh_at_next_forward(site)


def _on_any_rank(here: bool, shard: Shard) -> bool:
    found = torch.tensor([here], dtype=torch.int32, device=shard.values.device)
    for group in (shard.group, *shard.copies):
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=group)
    return bool(found)
