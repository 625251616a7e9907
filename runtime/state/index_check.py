"""Whether somebody else has written to a site's index.

Code that averages all buffers of a model, or makes new ones (``to_empty``), leaves columns that a kernel would follow
out of its memory. So a site remembers the versions of its index tensors and sums over them. A version that is not ours
is a reason to look at the sums; other sums are an error.
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
    """What to remember of an index as it is; None on the meta device, on which it holds nothing."""
    return None if index.cols.is_meta else (_versions(index), _sums(index))


def checked(index: Index, note: Note | None) -> Note | None:
    """What to remember of an index that is still the one that was remembered.

    Raises:
        LookupError: it is another index, or none was remembered.
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
    # The tensors themselves too: others may have been put in their place.
    return [number for t in index for number in (id(t), -1 if t.is_inference() else t._version)]


def _sums(index: Index) -> list[Tensor]:
    # As signed numbers: torch cannot add up unsigned ones on every device.
    tensors = (t.view(torch.int16) if t.dtype == torch.uint16 else t for t in index)
    return [_weighted(t.detach()) for t in tensors]


def _weighted(tensor: Tensor) -> Tensor:
    """The sum, and those of every third and every fifth entry, in one number: an exchange of entries changes it too."""
    sums = [tensor[::step].sum(dtype=torch.int64) for step in (1, 3, 5)]
    return sums[0] + 31 * sums[1] + 37 * sums[2]
