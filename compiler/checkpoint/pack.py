"""Convert nested Python values that hold tensors to JSON and a flat dict of tensors; write and read both as a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from topkast.runtime.errors import CheckpointError
from topkast.runtime.new_file import new_file
from topkast.runtime.state.content.shards.shard import cut_by_rows, is_sharded, local, rows_held

from .schema import DTYPES, check_aliases
from .tensor_file import TensorWriter, data_of, in_order, wrong_sum

# The errors of safetensors and torch about a file's content; a strange dtype, for one, is a KeyError.
DAMAGED = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError)


def pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Convert ``value`` to a form that JSON can hold; its tensors go to ``tensors``, named by their place in the value.

    Args:
        value: numbers, strings, None, tensors, dtypes, and lists, tuples and dicts of them.
        path: the name of this value.
        tensors: this function adds the tensors here.

    Raises:
        CheckpointError: ``value`` holds a value of another kind; the message names the value.
    """
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        # A dict is stored as pairs, because a key may be an integer, and JSON allows only strings as keys.
        pairs = [[pack(key, path, tensors), pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {"dict": pairs}
    raise CheckpointError(f"{path}: a {type(value).__name__} cannot be written; only numbers, strings, tensors, "
                          "and lists, tuples and dicts of them can")  # fmt: skip


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of :func:`pack`, for a value that :func:`topkast.compiler.checkpoint.schema.check_packed` has passed.
    The tensors are copies of the file's tensors."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind == "dtype":
        return DTYPES[content]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in content)
    return {unpack(key, tensors): unpack(item, tensors) for key, item in content}


def named(packed: Any) -> list[str]:
    """Names of all tensors in a packed value."""
    if isinstance(packed, dict):
        if isinstance(packed.get("tensor"), str):
            return [packed["tensor"]]
        packed = list(packed.values())
    return [name for item in packed for name in named(item)] if isinstance(packed, list) else []


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file with checksums, completely or not at all.

    A tensor with several names is stored once; the header lists its other names.

    Raises:
        CheckpointError: the file cannot be written. An older file is unchanged.
    """
    tensors, aliases = without_ties(tensors)
    tensors = in_order(tensors)
    try:
        with new_file(path) as file:
            writer = TensorWriter(file, tensors, {**header, "aliases": json.dumps(aliases)})
            for tensor in tensors.values():
                writer.next_tensor()
                writer.add(data_of(tensor))
            writer.finish()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


def alone(tensor: Tensor) -> Tensor:
    """The tensor as the format needs it: contiguous, and in memory that no other tensor shares."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def read(
    path: Path,
    wanted: Callable[[str], bool] = lambda name: True,
    like: Callable[[str], Tensor | None] = lambda name: None,
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(header, tensors) of a safetensors file.

    Args:
        path: the path of the file.
        wanted: whether to read the tensor of this name. The default reads all tensors.
        like: the model's tensor for a name. If it is a ``DTensor``, only this rank's part is read.

    Raises:
        CheckpointError: the file does not exist, is damaged or has another format.
    """
    try:
        exists = path.is_file()
    except OSError as error:  # a name longer than the file system allows
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not exists:
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: _read(file, name, like(name)) for name in filter(wanted, file.keys())}
        wrong = wrong_sum(path, wanted)
    except DAMAGED as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
    if wrong is not None:
        raise CheckpointError(f"{path}: damaged: the checksum of {wrong} is wrong")
    for alias, name in check_aliases(path, header).items():
        if name in tensors:  # a name without a tensor is reported later with all other missing names
            tensors[alias] = tensors[name]
    return header, tensors


def names(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file that :func:`read` has read before."""
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _read(file: Any, name: str, like: Any) -> Tensor:
    """A tensor of the file; if ``like`` is a ``DTensor`` of the same shape, a ``DTensor`` with its placement."""
    if like is None or not is_sharded(like) or file.get_slice(name).get_shape() != list(like.shape):
        return file.get_tensor(name)
    from torch.distributed.tensor import DTensor, distribute_tensor  # slow to import

    if not cut_by_rows(like):
        return distribute_tensor(
            file.get_tensor(name).to(like.device), like.device_mesh, like.placements, src_data_rank=None
        )
    rows = rows_held(like)
    part = file.get_slice(name)[rows.start : rows.stop].to(like.device)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def without_ties(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(each tensor once, name of each duplicate -> name under which the tensor is stored)."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, local(tensor).data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            kept[name] = tensor
    return kept, aliases
