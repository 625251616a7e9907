"""The refresh of a sharded model that is due when the model was loaded.

A sharded model refreshes at the end of a step, so its checkpoint needs no refresh. The checkpoint of one process may
need one before the next forward. This refresh must come before FSDP2 gathers values for the forward, and after the
optimizer's state was loaded.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from topkast.runtime.state.sharding.whole_tensors import reshard

from .refresh import refresh_by_interval
from .site import Site
from .when import due

_waiting: weakref.WeakSet[Site] = weakref.WeakSet()
_handles: list[Any] = []


def refresh_at_next_forward(site: Site) -> None:
    """Refresh a sharded site before the next forward that will be differentiated, if a refresh is still due then."""
    _waiting.add(site)
    if not _handles:
        _handles.append(register_module_forward_pre_hook(_before_forward))


def _before_forward(module: nn.Module, _: Any) -> None:
    if not torch.is_grad_enabled():
        return
    # In the order of the modules, because all ranks must take the same order.
    found = [part for part in module.modules() if isinstance(part, Site) and part in _waiting]
    if found:
        reshard(module)
        refresh_by_interval([site for site in found if due(site)])
        _waiting.difference_update(found)
    if not _waiting:
        while _handles:
            _handles.pop().remove()
