"""Eager code reads a sparse weight as a tensor that raises an error if code writes to it.

Each read builds a new W_A. A write into this tensor would be lost without a message, so a write raises an error. An
assignment to ``weight.data``, as in code that merges adapters, replaces θ. ``requires_grad_`` applies to the values.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from topkast.runtime.errors import ModelError
from topkast.runtime.observers import under_observation

from .content.plain_copy import plain_deep_copy

# How to replace a weight; the end of error messages about writes into W_A.
REPLACE = "topkast.load_dense_state_dict(model, {name: tensor}, strict=False)"
ALLOWED = {"requires_grad_", "retain_grad", "share_memory_", "__setstate__"}
# ``weight.data += delta`` first computes on the tensor that ``weight.data`` returned, and then assigns the result.
AUGMENTED = {"__iadd__", "__isub__", "__imul__", "__itruediv__"}


class Replaceable(Protocol):
    """The site whose weight was read."""

    name: str

    @property
    def original(self) -> nn.Parameter: ...

    def load_theta(self, theta: Tensor) -> None:
        """Replace all of θ."""


class SparseWeight(Tensor):
    """W_A of a site, or ``.data`` of W_A: an ordinary tensor for every read, and an error for every write."""

    site: Replaceable
    is_data: bool

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        target = _target(args, kwargs)
        if target is not None:
            site = target.site
            if func == _DATA.__set__:
                return site.load_theta(args[1].detach())
            if name == "requires_grad_" or func == _REQUIRES_GRAD.__set__:
                site.original.requires_grad_(*args[1:], **kwargs)
                return target
            if _writes(name, kwargs) and not (target.is_data and name in AUGMENTED):
                raise ModelError(
                    f"{site.name}: {name or 'a write'} into a sparse weight: what was read is W_A, put together "
                    f"for this read, so the write would be lost; {REPLACE} replaces the weight"
                )
        # One call, not a with-block: an interrupt at its end would turn off every tensor subclass, and tracing by fx,
        # in this thread.
        found = torch._C._disabled_torch_function_impl(func, types, args, kwargs)
        return guard(found, target.site, is_data=True) if target is not None and func == _DATA.__get__ else found

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain tensor."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        memo[id(self)] = twin = plain_deep_copy(self, memo)
        return twin


_DATA: Any = Tensor.data
_REQUIRES_GRAD: Any = Tensor.requires_grad


def guard(weight: Tensor, site: Replaceable, is_data: bool = False) -> Tensor:
    """The tensor as a tensor that refuses writes. While other code traces or transforms operators: the same tensor.

    Args:
        weight: W_A of the site, dense.
        site: receives an assignment to ``data``.
        is_data: whether the tensor was returned by ``weight.data``.
    """
    if type(weight) is not Tensor or under_observation() or torch._C._len_torch_function_stack() > 0:
        return weight
    guarded = weight.as_subclass(SparseWeight)
    guarded.site, guarded.is_data = site, is_data
    return guarded


def _target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> SparseWeight | None:
    """The sparse weight that a call would write to, if the call writes."""
    first = kwargs["out"] if "out" in kwargs else args[0] if args else next(iter(kwargs.values()), None)
    several = first if isinstance(first, (list, tuple)) else [first]
    return next((one for one in several if isinstance(one, SparseWeight)), None)


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    if "out" in kwargs or name in ("__setitem__", *AUGMENTED):
        return True
    return name.endswith("_") and not name.endswith("__") and name not in ALLOWED
