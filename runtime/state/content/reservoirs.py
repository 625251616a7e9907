"""The place of the values of θ outside B between two refreshes: the device, host memory, or a mapped file."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from topkast.runtime.errors import ReservoirError
from topkast.runtime.layout import Geometry
from topkast.runtime.memory_pages import leave_pages
from topkast.runtime.rule import Rule

_forks = 0  # the number of forks of this process and of its ancestors


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_forked, after_in_child=_forked)

PART = 2**20  # bytes in one write


def values_outside(geometry: Geometry, n_fwd: int, n_bwd: int, rule: Rule) -> int:
    """The number of values in a site's reservoir: the values outside B, or, if B shrinks, outside the
    last A."""
    return (geometry.units - (n_fwd if rule.shrinks else n_bwd)) * geometry.unit


class Reservoir(ABC):
    """A place for the values outside B.

    Attributes:
        name: the value of the option ``reservoir`` for this place.
        follows_model: whether the values move with the model, as a buffer does.
        comes_up: whether a GPU chooses the sets: the values come to it and go back, one layer at a time.
    """

    name: ClassVar[str]
    follows_model: ClassVar[bool] = False
    comes_up: ClassVar[bool] = False

    @abstractmethod
    def allocate(self, numel: int, like: Tensor) -> Tensor:
        """Memory for ``numel`` values with the dtype of ``like``.

        Raises:
            ReservoirError: there is not enough memory or disk space.
        """

    def unshared(self, reservoir: Tensor) -> Tensor:
        """A reservoir that may be written to: the same tensor, or a copy if another process shares the tensor."""
        return reservoir

    def rest(self, reservoir: Tensor) -> None:  # noqa: B027 (only OnDisk can take memory from values and keep them)
        """Take as little memory as possible until the next access. The values do not change."""

    def check_room(self, size: int) -> None:  # noqa: B027 (only OnDisk knows in advance how much is free)
        """Raise ReservoirError if there is no room for ``size`` bytes, as far as this is known in advance."""


class OnDevice(Reservoir):
    """On the device of B's values."""

    name = "device"
    follows_model = True

    def allocate(self, numel: int, like: Tensor) -> Tensor:
        return like.new_zeros(numel)


class InHostMemory(Reservoir):
    """In host memory, pinned if there is a GPU."""

    name = "host"
    comes_up = True

    def allocate(self, numel: int, like: Tensor) -> Tensor:
        return torch.zeros(numel, dtype=like.dtype, device="cpu", pin_memory=torch.cuda.is_available())


class OnDisk(Reservoir):
    """In a file in the temporary directory. The file is mapped into memory and disappears with the process."""

    name = "disk"

    def allocate(self, numel: int, like: Tensor) -> Tensor:
        if numel == 0:  # a file without bytes cannot be mapped
            return InHostMemory().allocate(numel, like)
        handle, path = tempfile.mkstemp(prefix="topkast-", suffix=".reservoir")
        try:
            _reserve(handle, path, numel * like.element_size())
            mapped = torch.from_file(path, shared=True, size=numel, dtype=like.dtype, device="cpu")
            mapped.mapped_at = _forks  # type: ignore[attr-defined]
            return mapped
        finally:
            os.close(handle)
            os.unlink(path)  # the mapping keeps the file alive, and after a crash no file remains

    def unshared(self, reservoir: Tensor) -> Tensor:
        """A reservoir that may be written to. After a fork, parent and child have mapped the same file, and either of
        them may write first. Neither process knows whether the other process still reads the file. So each process
        makes its own file before it writes. The old file disappears when no process maps it any more."""
        if getattr(reservoir, "mapped_at", _forks) == _forks:
            return reservoir
        return self.allocate(reservoir.numel(), reservoir).copy_(reservoir)

    def rest(self, reservoir: Tensor) -> None:
        if hasattr(reservoir, "mapped_at"):  # an empty reservoir is not mapped
            leave_pages(reservoir)

    def check_room(self, size: int) -> None:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if size > free:
            raise ReservoirError(_too_full(folder, size, free))


RESERVOIRS: dict[str, Reservoir] = {place.name: place for place in (OnDevice(), InHostMemory(), OnDisk())}
KINDS = tuple(RESERVOIRS)


def _reserve(handle: int, path: str, size: int) -> None:
    """Reserve ``size`` bytes on the disk for a file. If a mapped file has this size without reserved space, a write to
    the file can kill the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:  # macOS: only a write reserves space
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
