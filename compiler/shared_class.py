"""Modules of one class that are sparse in the same attributes share one class too.

Dynamo guards on the class of every module it reads. With a class for each module, as ``torch.nn.utils.parametrize``
makes them, each model of one kind would be compiled anew, and the ninth not at all. What is made for a class is kept on
that class and lives as long, so that one defined inside a function can still be freed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

_MADE = "_topkast_classes"  # on the class that was extended: attributes -> the class that is sparse in them
_ATTRIBUTES = "_topkast_attributes"  # on a shared class: which these are


def shares_class(module: nn.Module) -> bool:
    """Whether a module's class is one of those that :func:`share_class` gives."""
    return _ATTRIBUTES in vars(type(module))


def share_class(module: nn.Module, attribute: str, finish: Callable[[nn.Module], None]) -> None:
    """Give a module the class in which ``attribute`` is read through its parametrization, beside those that are so.

    Args:
        module: of a plain class, or of one that this function gave it; has ``parametrizations`` without that attribute.
        attribute: a name that is no parameter of the module any more.
        finish: called with the module once for each new class, to complete that class.
    """
    attributes = frozenset({attribute}) | vars(type(module)).get(_ATTRIBUTES, frozenset())
    base: Any = type(module).__bases__[0] if shares_class(module) else type(module)
    if _MADE not in vars(base):
        setattr(base, _MADE, {})
    made = vars(base)[_MADE]
    if attributes not in made:
        kind = module.__class__ = _new_class(module, base, attributes)
        finish(module)
        made[attributes] = kind  # a whole one only: an interrupt may come before
    module.__class__ = made[attributes]


def _new_class(module: nn.Module, base: Any, attributes: frozenset[str]) -> Any:
    module.__class__ = base
    parametrize._inject_new_class(module)
    template: Any = type(module)
    own = {name: value for name, value in vars(template).items() if name not in ("__dict__", "__weakref__")}
    own |= {_ATTRIBUTES: attributes, **{name: _parametrized(name) for name in attributes}}
    metaclass: Any = type(template)
    return _shared_kind(metaclass)(template.__name__, (base,), own)


@functools.cache
def _shared_kind(kind: Any) -> Any:
    """The metaclass of shared classes, for bases of that metaclass.

    torch puts a property into a module's class when the module gets a parametrization, and deletes it when the module
    loses that. In a class with many modules either is for the one module: others keep what they have.
    """

    def put(cls: Any, name: str, value: Any) -> None:
        torchs = isinstance(value, property) and getattr(value.fget, "__module__", "") == parametrize.__name__
        kind.__setattr__(cls, name, _parametrized(name) if torchs else value)

    def drop(cls: Any, name: str) -> None:
        if not isinstance(vars(cls).get(name), _Parametrized):
            kind.__delattr__(cls, name)

    return type("SharedKind", (kind,), {"__setattr__": put, "__delattr__": drop})


class _Parametrized(property):
    """Reads a parametrization of the modules that have one of that name, and of others the tensor."""


def _parametrized(name: str) -> _Parametrized:
    """As torch's own, which is tied to one module: it keeps that alive, and ``parametrize.cached`` keys by it."""

    def get(self: Any) -> Any:
        if name in self.parametrizations:
            chain = self.parametrizations[name]
            return _cached(self, name, chain) if parametrize._cache_enabled else chain()
        for tensors in (self._parameters, self._buffers):
            if name in tensors:
                return tensors[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def put(self: Any, value: Any) -> None:
        if name not in self.parametrizations:
            raise AttributeError(f"{type(self).__name__!r} object has no parameter or buffer {name!r}")
        self.parametrizations[name].right_inverse(value)

    return _Parametrized(get, put)


def _cached(module: nn.Module, name: str, chain: Callable[[], Any]) -> Any:
    if torch._C._get_tracing_state() is not None:
        raise RuntimeError("Cannot trace a model while caching parametrizations.")
    key = id(module), name
    if key not in parametrize._cache:
        parametrize._cache[key] = chain()
    return parametrize._cache[key]
