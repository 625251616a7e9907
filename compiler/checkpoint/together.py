"""Write one file together: each rank has a part of the tensors, and one rank writes. Agree on errors.

The writer never holds a whole model: the parts of a tensor come one after the other, and go to the file at once.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from topkast.runtime.errors import CheckpointError
from topkast.runtime.new_file import new_file
from topkast.runtime.state.content.shards.shard import Shard, is_sharded, local

from .pack import without_ties
from .tensor_file import TensorWriter, data_of, in_order

T = TypeVar("T")


def agreed(shard: Shard | None, check: Callable[[], T]) -> T:
    """The result of a check that every rank makes.

    Args:
        shard: of any sharded weight of the model; None: there is only this process.
        check: the check; it raises CheckpointError.

    Raises:
        CheckpointError: the check failed on a rank; raised on every rank.
    """
    failed: list[CheckpointError] = []
    found: list[T] = []
    try:
        found.append(check())
    except CheckpointError as error:
        if shard is None:
            raise
        failed.append(error)
    texts = [str(error) for error in failed]
    for group in () if shard is None else (shard.group, *shard.copies):
        every: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(every, texts, group=group)
        texts = [text for rank in every for text in rank]
    if failed:
        raise failed[0]
    if texts:
        raise CheckpointError(f"another rank: {texts[0]}")
    return found[0]


def write_together(path: Path, tensors: dict[str, Tensor], header: dict[str, str], shard: Shard) -> None:
    """Write a safetensors file as :func:`topkast.compiler.checkpoint.pack.write` does. Every rank calls this.

    Args:
        path: the path of the file on the first rank, which writes.
        tensors: tensors that each rank has, and ``DTensor``s.
        header: the metadata of the file.
        shard: of any sharded weight of the model.

    Raises:
        CheckpointError: the file cannot be written; raised on every rank. An older file is unchanged.
    """
    first = all(dist.get_rank(group) == 0 for group in (shard.group, *shard.copies))
    # Empty parts have no memory, so only the first rank sees which names share a tensor.
    plan: list[Any] = [without_ties(tensors)[1]] if first else [None]
    for group in (shard.group, *shard.copies):
        dist.broadcast_object_list(plan, group=group, group_src=0)
    aliases: dict[str, str] = plan[0]
    kept = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    metadata = {**header, "aliases": json.dumps(aliases)}

    agreed(shard, lambda: _write(path, in_order(kept), metadata, shard, first))


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], shard: Shard, first: bool) -> None:
    file = _NewFile(path, tensors, metadata) if first else None
    try:
        for tensor in tensors.values():
            if file is not None:
                file.next_tensor()
            for part in _parts(tensor, shard, first):
                if file is not None:
                    file.add(part)
        if file is not None:
            file.finish()
    finally:
        if file is not None:
            file.close()


def _parts(tensor: Any, shard: Shard, first: bool) -> Iterator[Any]:
    """The bytes of a tensor, part by part, on the first rank. The other ranks send their parts and get nothing."""
    like = shard.values
    if is_sharded(tensor) and (tensor.device_mesh, tensor.placements) != (like.device_mesh, like.placements):
        tensor = tensor.full_tensor()
    if not is_sharded(tensor):
        if first:
            yield data_of(tensor)
        return
    sends = all(dist.get_rank(group) == 0 for group in shard.copies)
    chunk, row = -(-tensor.shape[0] // shard.ranks), tensor.element_size() * math.prod(tensor.shape[1:])
    for rank in range(shard.ranks):
        size = max(0, min(chunk, tensor.shape[0] - rank * chunk)) * row
        if not size:
            break
        if first and rank == 0:
            yield data_of(local(tensor))
        elif first:
            part = torch.empty(size, dtype=torch.uint8, device=like.device_mesh.device_type)
            dist.recv(part, group=shard.group, group_src=rank)
            yield data_of(part)
        elif sends and rank == shard.rank:
            mine = local(tensor).contiguous().view(-1).view(torch.uint8)
            dist.send(mine.to(like.device_mesh.device_type), group=shard.group, group_dst=0)


class _NewFile:
    """A file that takes the place of ``path`` when it is complete. After an error it drops further bytes, because other
    ranks are still sending them; :meth:`finish` raises the error."""

    def __init__(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        self.path = path
        self.error: OSError | None = None
        self.open = contextlib.ExitStack()
        try:
            self.writer = TensorWriter(self.open.enter_context(new_file(path)), tensors, metadata)
        except OSError as error:
            self._fail(error)

    def next_tensor(self) -> None:
        if self.error is None:
            self.writer.next_tensor()

    def add(self, data: Any) -> None:
        try:
            if self.error is None:
                self._write(data)
        except OSError as error:
            self._fail(error)

    def _write(self, data: Any) -> None:
        self.writer.add(data)

    def finish(self) -> None:
        try:
            if self.error is None:
                self.writer.finish()
                self.open.close()
        except OSError as error:
            self._fail(error)
        if self.error is not None:
            raise CheckpointError(f"{self.path}: cannot be written ({self.error})") from self.error

    def close(self) -> None:
        """Remove the file, unless it is finished."""
        self._fail(self.error or OSError("it is not complete"))

    def _fail(self, error: OSError) -> None:
        self.error = error
        with contextlib.suppress(OSError):
            self.open.__exit__(OSError, error, error.__traceback__)
