"""Where the values of θ outside B sit between two refreshes: on the device, in host memory, or in a mapped file."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

import torch
from torch import Tensor

from topkast.runtime.errors import ReservoirError
from topkast.runtime.layout import Geometry
from topkast.runtime.rule import Rule

_forks = 0  # how often this process, and those that it came from, have been forked


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_forked, after_in_child=_forked)

PART = 2**20  # bytes that are written at once
KINDS = ("device", "host", "disk")


def values_outside(geometry: Geometry, n_fwd: int, n_bwd: int, rule: Rule) -> int:
    """How many values a site's reservoir must have room for: those outside B, or, if exploration ends, outside A."""
    return (geometry.units - (n_bwd if rule.stop_exploring_after is None else n_fwd)) * geometry.unit


def check_disk(size: int) -> None:
    """Raise ReservoirError unless the disk has room for ``size`` bytes."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ReservoirError(_too_full(folder, size, free))


def allocate(kind: str, numel: int, like: Tensor) -> Tensor:
    """Room for ``numel`` values.

    Args:
        kind: "device" (beside ``like``), "host" (pinned where there is a GPU), or "disk" (a file in the temporary
            directory, gone with the process).
        like: gives dtype, and for "device" the place.

    Raises:
        ReservoirError: the disk has no room for it.
    """
    if kind == "device":
        return like.new_zeros(numel)
    if kind == "host" or numel == 0:  # no file can be mapped without bytes
        return torch.zeros(numel, dtype=like.dtype, device="cpu", pin_memory=torch.cuda.is_available())
    handle, path = tempfile.mkstemp(prefix="topkast-", suffix=".reservoir")
    try:
        _reserve(handle, path, numel * like.element_size())
        mapped = torch.from_file(path, shared=True, size=numel, dtype=like.dtype, device="cpu")
        mapped.mapped_at = _forks  # type: ignore[attr-defined]
        return mapped
    finally:
        os.close(handle)
        os.unlink(path)  # the mapping keeps the file alive, nothing is left behind after a crash


def unshared(reservoir: Tensor) -> Tensor:
    """A reservoir that may be written to: itself, or a copy if it is a file that was mapped before a fork.

    Parent and child have the same file mapped, and either may be the first to write. None knows whether the other one
    still reads, so each takes a file of its own before it writes, and the old one goes with the last that maps it.

    Raises:
        ReservoirError: the disk has no room for it.
    """
    if getattr(reservoir, "mapped_at", _forks) == _forks:
        return reservoir
    return allocate("disk", reservoir.numel(), reservoir).copy_(reservoir)


def _reserve(handle: int, path: str, size: int) -> None:
    """Let a file have ``size`` bytes that are the disk's already: a mapped one that only says so kills the process when
    it is written to."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:  # macOS: writing is what reserves
            for begin in range(0, size, PART):
                os.pwrite(handle, bytes(min(PART, size - begin)), begin)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        folder = os.path.dirname(path)
        raise ReservoirError(_too_full(folder, size, shutil.disk_usage(folder).free)) from error


def _too_full(folder: str, size: int, free: int) -> str:
    return (
        f"reservoir='disk': the values outside B need {size} bytes in {folder}, which has {free} bytes free; set "
        "TMPDIR to a folder on a larger disk, or take reservoir='host'"
    )
