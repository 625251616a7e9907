"""Dense tensors of a sharded model: each rank's part, or whole tensors on the first rank."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.state.content.shards.shard import is_sharded


def stored(value: Any, like: Any, full: bool) -> Any:
    """A tensor as a dense state dict of the model holds it.

    Args:
        value: a whole tensor, or a ``DTensor``.
        like: a tensor of the model; if it is not sharded, the value is unchanged.
        full: whether rank 0 gets the whole tensor, in host memory, and the other ranks an empty tensor. If False, each
            rank gets its part.
    """
    if not is_sharded(like):
        return value
    if not full:
        return value if is_sharded(value) else distributed(value, like)
    whole = value.full_tensor() if is_sharded(value) else value
    # A copy also with one rank, whose whole tensor is the model's own memory.
    return whole.to("cpu", copy=True) if has_full_state() else torch.empty(0)


def has_full_state() -> bool:
    """Whether this process gets whole tensors: it is rank 0, or the only process."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def distributed(value: Tensor, like: Any) -> Tensor:
    """A whole tensor that every rank has, as a ``DTensor`` with the mesh and the placements of another one. Nothing is
    sent."""
    from torch.distributed.tensor import distribute_tensor  # slow to import

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole(value: Any) -> Any:
    """A tensor with all its entries; every rank calls this for a ``DTensor``."""
    return value.full_tensor() if is_sharded(value) else value


def adapted(value: Any, like: Any) -> Any:
    """A tensor in the form in which the model's own tensor ``like`` can be loaded."""
    return distributed(value, like) if is_sharded(like) and type(value) is Tensor else value


def reshard(model: nn.Module) -> None:
    """Let every module that ``fully_shard`` has sharded give up its gathered parameters. After an evaluation the root
    keeps them, and the next forward would not see a change."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):  # type: ignore[union-attr]
            module.reshard()
