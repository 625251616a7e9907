"""A site's change is put in force, and with it what its copies do."""

from __future__ import annotations

from torch import Tensor

from .copies import changes_of_copies
from .parts import Change, Copy, Parts, carry_out
from .site import Site


def commit(site: Site, live: Parts, change: Change, copy: Copy = Tensor.copy_) -> None:
    """Put a change in force, as a whole.

    Args:
        live: the site's parts, as they were when the change was prepared.
        change: what is to be.
        copy: (target, source) -> None, made in the order of the calls.
    """
    change.of_copies = changes_of_copies(site, change)  # before anything changes: it may fail
    carry_out([site], lambda: site.write(live, change, copy))
