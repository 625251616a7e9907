"""A sharded site in a state dict: every tensor that each rank has a part of is a ``DTensor``.

``torch.distributed.checkpoint`` takes a plain tensor as one that all ranks have alike, and would keep the part of one
rank only. If ranks hold whole rows of blocks, reservoir and marks are cut by these rows, so that another number of
ranks can read them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkast.runtime.layout import check_index
from topkast.runtime.state.content.marks import packed, unpacked
from topkast.runtime.state.content.parts import Change, carry_out
from topkast.runtime.state.content.reservoirs import values_outside
from topkast.runtime.state.content.shard import is_sharded, local
from topkast.runtime.state.content.shard_outside import rows_of
from topkast.runtime.state.site import Site

from .saved_index import as_plain


def outside(site: Site) -> dict[str, Tensor]:
    """The reservoir and the marks of a sharded site, by name. The reservoir shares its memory with the site."""
    shard, geometry = site.shard, site.geometry
    assert shard is not None
    total = values_outside(geometry, site.n_fwd, site.n_bwd, site.rule)
    rows, (count, columns) = rows_of(site, shard), geometry.grid
    if rows is None:
        marks, reservoir = site.ever, site.reservoir
        shapes: list[tuple[int, ...]] = [(total,), (-(-geometry.units // 8),)]
    else:
        held = rows.stop - rows.start
        reservoir = site.reservoir.view(held, total // count)
        bits = unpacked(site.ever, held * columns).view(held, columns)
        marks = packed(torch.nn.functional.pad(bits, (0, -columns % 8)).view(-1)).view(held, -(-columns // 8))
        shapes = [(count, total // count), (count, -(-columns // 8))]
    return {
        "reservoir": _distributed(reservoir, shapes[0], shard.values),
        "ever": _distributed(marks, shapes[1], shard.values),
    }


def _distributed(part: Tensor, shape: tuple[int, ...], like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor  # slow to import

    stride = (1,) if len(shape) == 1 else (max(1, shape[1]), 1)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def load(site: Site, state: dict[str, Any], key: dict[str, str], missing: list[str], errors: list[str]) -> None:
    """Load a sharded site's part of a state dict: as a whole or not at all.

    Args:
        site: a sharded site.
        state: the state dict with the tensors.
        key: name of a tensor of the site -> its key in the state dict.
        missing, errors: lists that the function adds to.
    """
    shard = site.shard
    assert shard is not None
    mine = {"values": shard.values, "row_ptr": site.row_ptr, "row_fwd": site.row_fwd, "cols": shard.cols}
    mine |= outside(site)
    found: dict[str, Any] = {name: as_plain(state[key[name]]) for name in key if key[name] in state}
    missing += [key[name] for name in key if name not in found]
    if len(found) < len(key):
        return
    for name, tensor in mine.items():
        given = found[name]
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
    if wrong:
        errors.append(f"{key['cols']}: the index is broken: {wrong}")
        return
    step, refreshed_at = (int(n) for n in found["clock"])
    rows = rows_of(site, shard)

    @torch.no_grad()
    def apply() -> None:
        for name, tensor in mine.items():
            if name != "ever":
                local(tensor).copy_(local(found[name]))
        marks = local(found["ever"])
        if rows is not None:
            bits = unpacked(marks.reshape(-1), marks.numel() * 8).view(marks.shape[0], marks.shape[1] * 8)
            marks = packed(bits[:, : site.geometry.grid[1]].reshape(-1))
        site.ever.copy_(marks)
        site.remember_index()
        fields = {"unread_state_index": None, "step": step, "refreshed_at": refreshed_at}
        site.write(None, Change(fields=fields, after=site.method.forget))

    carry_out([site], apply)
