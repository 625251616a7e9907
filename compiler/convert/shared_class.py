"""The classes of modules with sparse weights: as their own, but what is read as the weight is W_A.

Modules of one class that are sparse in the same attributes share one class. Dynamo guards on the class of every module
it reads: with a class for each module, each model of one kind would be compiled anew, and the ninth not at all. A class
made here is kept on the class that it extends and lives as long, so that one defined inside a function can be freed.
"""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from topkast.runtime.errors import ModelError
from topkast.runtime.state.saved import STATE

_MADE = "_topkast_classes"  # on the class that was extended: attributes -> the class that is sparse in them
_ATTRIBUTES = "_topkast_attributes"  # on a class made here: which these are

# These modules of torch replace a weight by one that is computed, and read the weight before they change anything.
REPLACING = {"torch.nn.utils.weight_norm", "torch.nn.utils.prune"}

Finish = Callable[[Any], None]


class SparseState(nn.Module):
    """Holds a module's sites, by the names of their weights.

    A ``ModuleDict`` could not hold a weight that is called as one of its methods is (``values``, ``keys``).
    """


def share_class(module: nn.Module, attributes: frozenset[str], complete: Finish) -> None:
    """Give a module the class in which these attributes are sparse.

    Args:
        module: of any class, one made here included.
        attributes: names of parameters; none: its own class again.
        complete: called with each class that is new, before any module has it.
    """
    kind: Any = type(module)
    ours = next((made for made in kind.__mro__ if _ATTRIBUTES in vars(made)), None)
    foreign = is_foreign(module)
    base = ours.__bases__[0] if ours else kind.__bases__[0] if foreign else kind
    found = sparse_class(base, attributes, complete) if attributes else base
    if foreign:
        found = type(kind)(kind.__name__, (found,), inherited(kind))
    module.__class__ = found


def is_foreign(module: nn.Module) -> bool:
    """Whether torch has made a module's class for the module alone, and will put the first of its bases back."""
    return _ATTRIBUTES not in vars(type(module)) and parametrize.is_parametrized(module)


def inherited(kind: Any) -> dict[str, Any]:
    """The entries of a class that the class itself has, for one that is made anew."""
    return {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}


def sparse_class(base: Any, attributes: frozenset[str], complete: Finish) -> Any:
    """The class that extends ``base`` and is sparse in these attributes."""
    if _MADE not in vars(base):
        setattr(base, _MADE, {})
    made = vars(base)[_MADE]
    if attributes not in made:
        own: dict[str, Any] = {name: _weight(name) for name in attributes}
        own |= {_ATTRIBUTES: attributes, "__module__": base.__module__, "parametrizations": property(_not_ours)}
        own |= {"__reduce_ex__": _reduce, "__prepare_scriptable__": _not_scriptable}
        kind = type(base)(f"Sparse{base.__name__}", (base,), own)
        complete(kind)
        made[attributes] = kind  # a whole one only: an interrupt may come before
    return made[attributes]


def _weight(name: str) -> property:
    """Reads W_A of the modules that have a site of that name, and of others the parameter."""

    def get(self: Any) -> Any:
        if name not in self._parameters:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if not torch.compiler.is_compiling() and sys._getframe(1).f_globals.get("__name__") in REPLACING:
            raise ModelError(_refusal(type(self).__name__, name))
        values, sites = self._parameters[name], self._modules[STATE]._modules
        if name not in sites or values is None or values.size() == sites[name].geometry.shape:
            return values  # a dense tensor, put there by functional_call or by an assignment
        return sites[name](values)

    def put(self: Any, value: Tensor) -> None:
        # torch's older spectral_norm has given the parameter another name by now.
        if name not in self._parameters and f"{name}_orig" in self._parameters:
            others = dict(self._parameters)
            self._parameters.clear()
            self._parameters.update({name: others.pop(f"{name}_orig")} | others)
        raise ModelError(_refusal(type(self).__name__, name))

    return property(get, put)


def _refusal(kind: str, name: str) -> str:
    return (
        f"{kind}.{name}: a sparse weight, which cannot be parametrized or replaced by a computed tensor; do that "
        "before topkast.compile, or take topkast.densify(model)"
    )


def _not_ours(self: nn.Module) -> Any:
    """``module.parametrizations``: torch's own, if there are any.

    ``register_parametrization`` asks for them before it changes anything, and so does torch's quantization, which finds
    layers by their class: for a sparse weight the answer is an error.
    """
    caller: Any = None if torch.compiler.is_compiling() else sys._getframe(1)
    for _ in range(2):
        if caller is not None and caller.f_code is parametrize.register_parametrization.__code__:
            name = caller.f_locals["tensor_name"]
            if name in self._modules.get(STATE, nn.Module())._modules:  # type: ignore[union-attr]
                raise ModelError(_refusal(type(self).__name__, name))
        if caller is not None and caller.f_code is parametrize.type_before_parametrizations.__code__:
            raise ModelError(
                f"{type(self).__name__}: torch's quantization and fusion replace layers by their class, and would "
                "leave sparse ones out; quantize topkast.densify(model), or the file of topkast.export"
            )
        caller = caller and caller.f_back
    if "parametrizations" in self._modules:
        return self._modules["parametrizations"]
    raise AttributeError("parametrizations")


def _not_scriptable(self: nn.Module) -> Any:
    """``torch.jit.script`` asks for this before it looks at a module's code."""
    raise ModelError(
        f"{type(self).__name__}: torch.jit.script cannot read a sparse weight; script topkast.densify(model), or use "
        "topkast.export"
    )


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickled as any module is, but the class by what it extends: nobody could find the class by its name."""
    kind: Any = type(self)
    ours: Any = next(made for made in kind.__mro__ if _ATTRIBUTES in vars(made))
    if isinstance(self, torch.fx.GraphModule):
        raise ModelError(
            f"{kind.__name__}: a GraphModule is pickled as its graph's code, which reads the weights as dense; use "
            "topkast.save(model, path), or pickle topkast.densify(model)"
        )
    found = super(ours, self).__reduce_ex__(protocol)
    if _ATTRIBUTES in vars(kind) and found[0] is copyreg.__newobj__ and found[1][0] is kind:  # type: ignore[attr-defined]
        return (_made_again, (kind.__bases__[0], vars(kind)[_ATTRIBUTES], *found[1][1:]), *found[2:])
    return found


def _made_again(base: Any, attributes: frozenset[str], *args: Any) -> Any:
    from .attach import complete

    kind = sparse_class(base, attributes, complete)
    return kind.__new__(kind, *args)
