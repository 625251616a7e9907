"""Where the values of θ outside B sit between two refreshes: on the device, in host memory, or in a mapped file."""

from __future__ import annotations

import os
import tempfile

import torch
from torch import Tensor

KINDS = ("device", "host", "disk")


def allocate(kind: str, numel: int, like: Tensor) -> Tensor:
    """Room for ``numel`` values.

    Args:
        kind: "device" (beside ``like``), "host" (pinned where there is a GPU), or "disk" (a file in the temporary
            directory, gone with the process).
        like: gives dtype, and for "device" the place.
    """
    if kind == "device":
        return like.new_zeros(numel)
    if kind == "host" or numel == 0:  # no file can be mapped without bytes
        return torch.zeros(numel, dtype=like.dtype, device="cpu", pin_memory=torch.cuda.is_available())
    handle, path = tempfile.mkstemp(prefix="topkast-", suffix=".reservoir")
    try:
        os.ftruncate(handle, numel * like.element_size())
        return torch.from_file(path, shared=True, size=numel, dtype=like.dtype, device="cpu")
    finally:
        os.close(handle)
        os.unlink(path)  # the mapping keeps the file alive, nothing is left behind after a crash
