"""Refuse ways to train on several devices that would give each device its own sets, before anything has changed.

Code that cuts a model's parameters into pieces first reads an attribute of each module, and a site raises an error at
this read. For other readers the attribute does not exist, as in any module.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from topkast.runtime.errors import ModelError, OptimizerError
from topkast.runtime.state.site_module import SiteModule

from .shardable import check_shardable

INSTEAD = "use torch.nn.parallel.DistributedDataParallel, without join(), and an optimizer of torch.optim"

FULLY_SHARD = "fully_shard"

# Function that reads the attribute before it divides a module -> name of the tool in the error.
ASKERS = {
    "_is_composable_with_fsdp": FULLY_SHARD,
    "is_composable_with_replicate": "replicate",
    "_is_fully_sharded": "replicate",
    "_get_ignored_modules": "FullyShardedDataParallel",
    "distribute_module": "parallelize_module",
}


def _answer(self: nn.Module) -> Any:
    frame: Any = sys._getframe(1)
    # The caller that reads the attribute, and up to two helper functions of torch between.
    for _ in range(3):
        if frame is not None and frame.f_code.co_name in ASKERS:
            tool = ASKERS[frame.f_code.co_name]
            if tool != FULLY_SHARD:
                refuse(tool)
            check_shardable([self] if isinstance(self, SiteModule) else [], _given(frame))
            break
        frame = frame and frame.f_back
    raise AttributeError("not there")


def _given(frame: Any) -> Iterator[nn.Module]:
    """The modules that ``fully_shard`` was called with, and their modules. frame: a frame below the call."""
    while frame is not None and frame.f_code.co_name != FULLY_SHARD:
        frame = frame.f_back
    roots = frame.f_locals["module"] if frame is not None else ()
    for root in [roots] if isinstance(roots, nn.Module) else roots:
        yield from root.modules()


def _replicate(self: nn.Module) -> NoReturn:
    refuse("nn.DataParallel")


def keep_whole(kind: Any) -> None:
    """Make modules of this class refuse to be distributed."""
    kind._replicate_for_data_parallel = _replicate
    kind._distribute_module_applied = property(_answer)
    if torch.distributed.is_available():
        from torch.distributed._composable.contract import REGISTRY_KEY

        setattr(kind, REGISTRY_KEY, property(_answer))


def refuse(tool: str) -> NoReturn:
    """Refuse a tool. Raises: ModelError, always."""
    raise ModelError(
        f"model: converted by topkast, and {tool} would give each process or device its own sets; {INSTEAD}"
    )


def refuse_engine() -> None:
    """Raise ModelError if DeepSpeed's engine has called the current forward. The engine flattens the parameters of all
    layers and steps with the flat copies, so the model's own clock would stand still."""
    frame: Any = sys._getframe(1) if "deepspeed" in sys.modules else None
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("deepspeed.runtime."):
            refuse("DeepSpeed's engine")
        frame = frame.f_back


def refuse_optimizer(optimizer: Any) -> None:
    """Raise OptimizerError if an optimizer updates different weights on different ranks."""
    loaded = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    if loaded is not None and isinstance(optimizer, loaded.ZeroRedundancyOptimizer):
        raise OptimizerError(
            "ZeroRedundancyOptimizer: each process makes the steps of some of the weights only, so their sets would "
            f"part ways; {INSTEAD}"
        )


def refuse_uneven(parallel: DistributedDataParallel) -> None:
    """Make a wrapper of a converted model refuse ``join()`` and hooks that make an optimizer's steps."""
    # Set attributes of the object, not of the class: dense models in the same process must work as before.
    parallel.join = functools.partial(_join, parallel)  # type: ignore[method-assign]
    parallel.join_hook = _join_hook  # type: ignore[method-assign]
    parallel.register_comm_hook = functools.partial(_register_comm_hook, parallel)  # type: ignore[method-assign]


def _join(parallel: DistributedDataParallel, *args: Any, **options: Any) -> Any:
    if options.get("enable", args[1] if len(args) > 1 else True):
        return DistributedDataParallel.join(parallel, *args, **options)
    return contextlib.nullcontext()


def _join_hook(**options: Any) -> NoReturn:
    raise ModelError(
        "join: a process that has no inputs left makes no steps, so its sets would part from the others'; "
        f"give every process as many inputs (drop_last, or a sampler that fills up); {INSTEAD}"
    )


def _register_comm_hook(parallel: DistributedDataParallel, state: Any, hook: Callable[..., Any]) -> None:
    for cell in getattr(hook, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell
            refuse_optimizer(cell.cell_contents)
    DistributedDataParallel.register_comm_hook(parallel, state, hook)


def parallel_already(parameters: Iterable[nn.Parameter]) -> str | None:
    """The tool that already trains some of these parameters on several ranks; None if there is none.

    Such a tool has buckets or pieces for the current parameters. A model has no reference to its wrapper, so the
    function searches all objects for wrappers, but only in programs with several processes.
    """
    parameters = list(parameters)
    if any(hasattr(parameter, "_fsdp_flattened") for parameter in parameters):
        return "FullyShardedDataParallel"
    held = set(map(id, parameters))
    if torch.distributed.is_available() and torch.distributed.is_initialized() and _wrapped(held):
        gc.collect()  # a wrapper that is no longer used may still exist
        if _wrapped(held):
            return "DistributedDataParallel"
    return None


def _wrapped(held: set[int]) -> bool:
    # A process has millions of objects and few kinds of them. Not isinstance, which runs code of the objects.
    every = gc.get_objects()
    kinds = {kind for kind in set(map(type, every)) if DistributedDataParallel in kind.__mro__}
    wrappers = [one for one in every if type(one) in kinds] if kinds else []
    return any(id(parameter) in held for one in wrappers for parameter in one.parameters())
