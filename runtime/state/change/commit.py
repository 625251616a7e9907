"""Apply a site's change together with the changes of its copies."""

from __future__ import annotations

from torch import Tensor

from topkast.runtime.state.content.parts import Change, Copy, Parts, carry_out
from topkast.runtime.state.site import Site

from .copies import changes_of_copies


def commit(site: Site, live: Parts, change: Change, copy: Copy = Tensor.copy_) -> None:
    """Apply a change as a whole.

    Args:
        live: the site's parts, as they were when the change was prepared.
        change: the change to apply.
        copy: (target, source) -> None, called in the order of the copies.
    """
    change.of_copies = changes_of_copies(site, change)  # before any change, because this call may fail
    carry_out([site], lambda: site.write(live, change, copy))
