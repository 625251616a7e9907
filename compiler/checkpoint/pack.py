"""Nested Python values that hold tensors, as JSON beside a flat dict of tensors; and the file that carries both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from topkast.runtime.errors import CheckpointError


def pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON-able form of ``value``; tensors in it go to ``tensors``, named by where they stood.

    Args:
        value: numbers, strings, None, tensors, dtypes, and lists, tuples and dicts of them.
        path: name of this value.
        tensors: filled here.

    Raises:
        CheckpointError: names a value of any other kind.
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
        # Pairs, because a key may be an integer, and JSON knows only strings.
        pairs = [[pack(key, path, tensors), pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {"dict": pairs}
    raise CheckpointError(f"{path}: a {type(value).__name__} cannot be written; only numbers, strings, tensors, "
                          "and lists, tuples and dicts of them can")  # fmt: skip


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of :func:`pack`; tensors are copies of what the file holds."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in content)
    return {unpack(key, tensors): unpack(item, tensors) for key, item in content}


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all: to a neighbour first, which then takes the name.

    What several names share is stored once; the header says which other names it has.
    """
    tensors, aliases = _without_ties(tensors)
    header = {**header, "aliases": json.dumps(aliases)}
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({name: _alone(tensor) for name, tensor in tensors.items()}, beside, metadata=header)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _alone(tensor: Tensor) -> Tensor:
    """Contiguous, and without a share of another tensor's memory, as the format wants it."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(header, tensors) of a safetensors file.

    Raises:
        CheckpointError: there is none, or it is torn or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
    aliases = json.loads(header.get("aliases", "{}"))
    # A name whose tensor is gone stays out, and is reported with whatever else is missing.
    tensors.update({alias: tensors[name] for alias, name in aliases.items() if name in tensors})
    return header, tensors


def _without_ties(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors stored once each, name of each duplicate -> name it is stored under)."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            kept[name] = tensor
    return kept, aliases
