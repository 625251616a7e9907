"""Check whether other code has written to a site's index.

Code that averages all buffers of a model, or that makes new buffers (``to_empty``), leaves wrong columns; with these a
kernel would read outside its memory. So a site remembers the versions of its index tensors and sums over the tensors.
If a version differs, the sums are compared; different sums are an error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime.layout import Index

Note = tuple[list[int], list[Tensor]]

WRITTEN = (
    "its index was written to by code that is not topkast's (an average of all buffers, to_empty, ...), so its weights "
    "cannot be read"
)


def remembered(index: Index) -> Note | None:
    """The versions and sums of an index; None on the meta device, where the index holds no numbers."""
    return None if index.cols.is_meta else (_versions(index), _sums(index))


def checked(index: Index, note: Note | None) -> Note | None:
    """The new note for an index that still equals the remembered index.

    Raises:
        LookupError: the index differs, or no index was remembered.
    """
    if index.cols.is_meta:
        return note
    if note is None:
        raise LookupError
    versions, sums = note
    now = _versions(index)
    if now == versions:
        return note
    if not all(int(old) == int(new) for old, new in zip(sums, _sums(index), strict=True)):
        raise LookupError
    return now, sums


def _versions(index: Index) -> list[int]:
    # The ids of the tensors are included, because other tensors may be in their place.
    return [number for t in index for number in (id(t), -1 if t.is_inference() else t._version)]


def _sums(index: Index) -> list[Tensor]:
    # View as signed numbers, because torch cannot add unsigned numbers on every device.
    tensors = (t.view(torch.int16) if t.dtype == torch.uint16 else t for t in index)
    return [_weighted(t.detach()) for t in tensors]


def _weighted(tensor: Tensor) -> Tensor:
    """The sums of all, every third and every fifth entry in one number: an exchange of two entries changes it too."""
    sums = [tensor[::step].sum(dtype=torch.int64) for step in (1, 3, 5)]
    return sums[0] + 31 * sums[1] + 37 * sums[2]
