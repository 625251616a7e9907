"""Wrappers around a converted model, and the additional work that they must do for its sites.

torch calls a hook for every module that becomes part of another module. So a user's program needs no extra line for any
wrapper.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from topkast.runtime.state.persist.state_dict import STATE
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.state.snapshots import pass_sets_to_copies
from topkast.runtime.training.averaged_models import update_parameters

from .data_parallel import equalise
from .refused import refuse_uneven


def on_registration(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """The hook, called for ``parent.name = child``."""
    if name != "module" or child is None or not isinstance(parent, (AveragedModel, DistributedDataParallel)):
        return
    sites = [module for module in child.modules() if isinstance(module, SiteModule)]
    if not sites:
        return
    if isinstance(parent, AveragedModel):
        parent.update_parameters = MethodType(update_parameters, parent)  # type: ignore[method-assign]
    else:
        for site in sites:
            site.unshare()
        with pass_sets_to_copies(sites):
            equalise(parent, child)
        refuse_uneven(parent)
        parent.register_load_state_dict_pre_hook(_with_prefix)


def _with_prefix(parallel: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before a load: give the tensors of all sites the wrapper's prefix. ``torch.distributed.checkpoint`` gives the
    prefix to parameters and buffers only."""
    inside = f"{prefix}module."
    for key in [key for key in state if f".{STATE}." in f".{key}" and not key.startswith(inside)]:
        state[inside + key.removeprefix(prefix)] = state.pop(key)
