"""Functions that Dynamo compiles apart from each other.

Dynamo keeps what it has compiled, and its decision to leave a function to Python, with the function's code, and stops
after some recompilations (``recompile_limit``). All models of a class have one ``forward``, those of torch.nn's own
classes too, which are plain models' as well; and frames of torch.nn it does not take as roots at all. So a model is
called by a function with code of its own, shared only with models that look the same.
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
        module: to be called.
        kind: what besides the module decides what its graphs are; hashable.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        return module.forward(*args, **kwargs)

    return _with_own_code(forward, module, kind)


def call_of(module: nn.Module, kind: tuple[Any, ...]) -> Callable[..., Any]:
    """The same with the module's hooks."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    return _with_own_code(call, module, kind)


def own_codes() -> list[CodeType]:
    """The code of all functions that were given here and are still in use."""
    return list(_CODES.values())


def _with_own_code(function: Any, module: nn.Module, kind: tuple[Any, ...]) -> FunctionType:
    key = function.__name__, kind, _look(module)
    code = _CODES.get(key)
    if code is None:
        # A name of its own too: by file, line and name Dynamo remembers which sizes vary between calls.
        name = f"{function.__name__}_{next(_numbers)}"
        code = _CODES[key] = function.__code__.replace(co_name=name)
    function.__code__ = code
    return function


def _look(module: nn.Module) -> tuple[Any, ...]:
    """What makes graphs of modules differ: their classes (which may be freed), plain attributes, shapes."""
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
