"""Check a site before ``fully_shard`` cuts its values."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable

from torch import nn

from topkast.runtime.errors import ModelError
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.site_module import SiteModule

_warned: weakref.WeakSet[Family] = weakref.WeakSet()


def check_shardable(sites: Iterable[SiteModule], inside: Iterable[nn.Module]) -> None:
    """Refuse sites that cannot be sharded, before anything has changed. Warn, once per model, if the index of the sites
    was not prepared for this.

    Args:
        sites: the sites that are about to be sharded.
        inside: the modules that ``fully_shard`` was called with, and their modules.

    Raises:
        ModelError: the message names the weight and says what to do.
    """
    inside = set(inside)
    for site in sites:
        if any(owner not in inside for owner in site.owners):
            raise ModelError(
                f"{site.name}: a tied weight, and fully_shard was called with only some of the modules that share it; "
                "call fully_shard once with all of them: fully_shard([first, second])"
            )
        if site.method.watches:
            raise ModelError(
                f"{site.name}: method={site.method.name!r}: each process would grow by its own gradient, so sets would "
                "part ways"
            )
        if state := site.method.saved(site.set_state()):
            raise ModelError(
                f"{site.name}: method={site.method.name!r}: it keeps {', '.join(sorted(state))} beside the sets, which "
                "fully_shard cannot cut into parts; use DistributedDataParallel"
            )
        if site.rule.refresh_in_background:
            raise ModelError(
                f"{site.name}: refresh_in_background: a thread of each process would choose sets for all of θ, which "
                "no process of fully_shard has; convert with refresh_in_background=False"
            )
        if site.copies or site.copied:
            raise ModelError(
                f"{site.name}: the model has copies (topkast.averaged, copy.deepcopy), which must follow its sets and "
                "cannot be sharded with it; call fully_shard without copies"
            )
        if site.index_is_whole and site.family not in _warned:
            _warned.add(site.family)
            warnings.warn(
                "topkast: fully_shard of a model that was converted without mesh: every process keeps the positions "
                "of all sparse weights, and receives them at each refresh; topkast.sparsify(model, mesh=mesh) lets "
                "each process keep its own",
                stacklevel=2,
            )
