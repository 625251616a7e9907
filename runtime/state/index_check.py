"""Whether somebody else has written to a site's index.

Code that averages all buffers of a model, or makes new ones (``to_empty``), leaves columns that a kernel would follow
out of its memory. So a site remembers the versions of its index tensors and sums over them. A version that is not ours
is a reason to look at the sums; other sums are an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from topkast.runtime.layout import Index

if TYPE_CHECKING:
    from .site import Site

Note = tuple[list[int], list[Tensor]]

WRITTEN = (
    "its index was written to by code that is not topkast's (an average of all buffers, to_empty, ...), so its weights "
    "cannot be read"
)


def note(site: Site) -> None:
    """Remember the index as it is: the site has written it, or holds other tensors for good."""
    site.noted = None if site.cols.is_meta else (_versions(site.index), _sums(site.index))


def written(site: Site) -> bool:
    """Whether the index is another one than the last that was noted, or was never noted: on the meta device it holds
    nothing."""
    if site.cols.is_meta:
        return False
    if site.noted is None:
        return True
    versions, sums = site.noted
    now = _versions(site.index)
    if now == versions:
        return False
    if not all(int(old) == int(new) for old, new in zip(sums, _sums(site.index), strict=True)):
        return True
    site.noted = now, sums
    return False


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
