"""The ways into a compiled model: calling it, or, from outside of that, any module in it that has sparse weights.

``model(x)`` is not all that programs do: Lightning calls ``model.training_step``, others ``model.encode``, whose code
then calls modules of the model. Each such module is an entry of its own, compiled when it is first entered; while the
model runs it is a part of the model's graphs, as ever.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch._dynamo import trace_rules
from torch._dynamo.eval_frame import skip_code
from torch.nn.modules import module as torchs

from topkast.compiler.convert.sparsify import refresh_before_forward
from topkast.runtime.observers import under_observation
from topkast.runtime.state.site import Site
from topkast.runtime.training.eager_steps import Watch

from .own_code import call_of, forward_of

Compile = Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]


class Entries:
    """What the entries of one model share.

    Args:
        compile: gives a compiled callable for a module and a function that calls it.
        kind: what besides a module decides what is compiled; hashable.
        watch: told of every entering.
    """

    def __init__(self, compile: Compile, kind: tuple[Any, ...], watch: Watch):
        self.compile, self.kind, self.watch = compile, kind, watch
        self.inside = _Inside()

    def install(self, model: nn.Module) -> None:
        """Make entries of the model and of each module of it that holds sites and can be called."""
        for module in model.modules():
            if module is model or (_can_be_called(module) and any(isinstance(part, Site) for part in module.modules())):
                module._compiled_call_impl = Entry(self, module, module is model)

    def enter(self, entry: Entry, *args: Any, **kwargs: Any) -> Any:
        """Call an entry's module, compiled unless it is a part of what runs."""
        module, inside = entry.module, self.inside
        if not entry.root and (inside.depth or under_observation()):
            return module._call_impl(*args, **kwargs)
        self.watch.entered += 1
        if entry.root:
            refresh_before_forward(module, args)  # inside of a graph this hook does nothing
        call = entry.with_hooks if _has_hooks(module) else entry.without_hooks
        inside.depth += 1
        try:
            return call(*args, **kwargs)
        finally:
            inside.depth -= 1


class _Inside(threading.local):
    """How many entries of a model a thread is inside of."""

    depth = 0


class Entry:
    """What a module has as ``_compiled_call_impl``. A copy of the module gets none, as torch has it."""

    def __init__(self, entries: Entries, module: nn.Module, root: bool):
        self.entries, self.module, self.root = entries, module, root

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> Any:
        """Pickled as None: what is compiled belongs to this process."""
        return type(None), ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.module._call_impl(*args, **kwargs)
        return self.entries.enter(self, *args, **kwargs)

    @functools.cached_property
    def without_hooks(self) -> Callable[..., Any]:
        return self.entries.compile(self.module, forward_of(self.module, self.entries.kind))

    @functools.cached_property
    def with_hooks(self) -> Callable[..., Any]:
        """Hooks stay outside of the graph: what they count would be guarded on, and compiled anew at every call."""
        call = call_of(self.module, self.entries.kind) if _left_to_python(self.module) else self.module._call_impl
        return self.entries.compile(self.module, call)


for _function in (Entries.enter, Entry.__call__):  # in a frame that Dynamo has left to Python, they stay there too
    skip_code(_function.__code__)


def _can_be_called(module: nn.Module) -> bool:
    return not isinstance(module, Site) and getattr(type(module), "forward", None) is not nn.Module.forward


def _has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its forward, beside our refresh."""
    before = module._forward_pre_hooks
    return bool(
        module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or (before and any(hook is not refresh_before_forward for hook in before.values()))
        or torchs._has_any_global_hook()
    )


def _left_to_python(module: nn.Module) -> bool:
    """Whether Dynamo skips the frame of a module's forward, as older versions do for all of torch.nn."""
    code: Any = getattr(type(module).forward, "__code__", None)
    if code is None:
        return False
    try:
        return trace_rules.check_verbose(code, frame=SimpleNamespace(f_locals={"self": module})).skipped
    except TypeError:  # a version without that argument
        return trace_rules.check_verbose(code).skipped
