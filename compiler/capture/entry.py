"""The entries of a compiled model: the model itself, and every module in the model that has sparse weights.

Programs do not only call ``model(x)``. Lightning calls ``model.training_step``, other programs call ``model.encode``,
and that code then calls modules of the model. Each of these modules is a separate entry, which is compiled at its first
call. While the model itself runs, the module is a part of the model's graphs.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torchs

from topkast.runtime.observers import under_observation
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.training.eager_steps import Watch

from .before_forward import refresh_before_forward
from .own_code import call_of, forward_of

Compile = Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]


class Entries:
    """The data that the entries of one model share.

    Args:
        compile: makes a compiled callable from a module and a function that calls the module.
        kind: a hashable value; two modules share compiled code only if this value is equal too.
        watch: is informed of every call of an entry.
    """

    def __init__(self, compile: Compile, kind: tuple[Any, ...], watch: Watch):
        self.compile, self.kind, self.watch = compile, kind, watch
        self.inside = _Inside()

    def install(self, model: nn.Module) -> None:
        """Make an entry of the model and of each of its modules that holds sites and can be called."""
        _keep_out_of_graphs()
        for module in model.modules():
            if module is model or (
                _can_be_called(module) and any(isinstance(part, SiteModule) for part in module.modules())
            ):
                module._compiled_call_impl = Entry(self, module, module is model)

    def enter(self, entry: Entry, *args: Any, **kwargs: Any) -> Any:
        """Call an entry's module: compiled, unless the call is inside another entry of the model."""
        module, inside = entry.module, self.inside
        if not entry.root and (inside.depth or under_observation()):
            return module._call_impl(*args, **kwargs)
        self.watch.entered += 1
        if entry.root:
            refresh_before_forward(module, args)  # inside a graph this hook does nothing
        call = entry.with_hooks if _has_hooks(module) else entry.without_hooks
        inside.depth += 1
        try:
            return call(*args, **kwargs)
        finally:
            inside.depth -= 1


class _Inside(threading.local):
    """The number of entries of a model that a thread is inside."""

    depth = 0


class Entry:
    """A module's ``_compiled_call_impl``. A copy of the module gets no entry, like torch's own compiled modules."""

    def __init__(self, entries: Entries, module: nn.Module, root: bool):
        self.entries, self.module, self.root = entries, module, root

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> Any:
        """Pickle as None, because compiled code belongs to this process."""
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
        """Hooks stay outside the graph: Dynamo would guard on a hook's counters and compile again at every call."""
        call = call_of(self.module, self.entries.kind) if _left_to_python(self.module) else self.module._call_impl
        return self.entries.compile(self.module, call)


@functools.cache
def _keep_out_of_graphs() -> None:
    """Never compile an entry's own code, even in a frame that runs in Python."""
    from torch._dynamo.eval_frame import skip_code

    for function in (Entries.enter, Entry.__call__):
        skip_code(function.__code__)


def _can_be_called(module: nn.Module) -> bool:
    return not isinstance(module, SiteModule) and getattr(type(module), "forward", None) is not nn.Module.forward


def _has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks besides its forward and topkast's refresh."""
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
    from torch._dynamo import trace_rules

    try:
        return trace_rules.check_verbose(code, frame=SimpleNamespace(f_locals={"self": module})).skipped
    except TypeError:  # a version of torch without this argument
        return trace_rules.check_verbose(code).skipped
