"""Functions that Dynamo compiles separately.

Dynamo stores compiled code, and its decision to run a function in Python, with the function's code object. Dynamo stops
after some recompilations (``recompile_limit``). All models of a class share one ``forward``; plain models of torch.nn's
classes share it too, and Dynamo never starts a graph at a frame of torch.nn. Therefore a model is called by a function
with its own code object, which is shared only with models that look the same.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from torch import nn

_CODES: weakref.WeakValueDictionary[Any, CodeType] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def forward_of(module: nn.Module, kind: tuple[Any, ...]) -> Callable[..., Any]:
    """A function that calls a module's ``forward``, without hooks.

    Args:
        module: the module that is called.
        kind: a hashable value; two modules share code only if this value is equal too.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        return module.forward(*args, **kwargs)

    return _with_own_code(forward, module, kind)


def call_of(module: nn.Module, kind: tuple[Any, ...]) -> Callable[..., Any]:
    """A function that calls a module with its hooks; arguments as for :func:`forward_of`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    return _with_own_code(call, module, kind)


def own_codes() -> list[CodeType]:
    """The code objects of all functions that were made here and are still in use."""
    return list(_CODES.values())


def _with_own_code(function: Any, module: nn.Module, kind: tuple[Any, ...]) -> FunctionType:
    key = function.__name__, kind, _look(module)
    code = _CODES.get(key)
    if code is None:
        # The name must be new too, because Dynamo remembers by file, line and name which sizes vary between calls.
        name = f"{function.__name__}_{next(_numbers)}"
        code = _CODES[key] = function.__code__.replace(co_name=name)
    function.__code__ = code
    return function


def _look(module: nn.Module) -> tuple[Any, ...]:
    """The facts by which graphs of modules differ: their classes (which may be freed), plain attributes, shapes."""
    return tuple(
        (
            path,
            weakref.ref(type(part)),
            tuple((name, value) for name, value in vars(part).items() if _plain(value) and name != "training"),
            tuple((name, tuple(p.shape), p.dtype) for name, p in part._parameters.items() if p is not None),
        )
        for path, part in module.named_modules()
    )


def _plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)
