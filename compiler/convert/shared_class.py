"""The classes of modules with sparse weights. Each extends the module's own class; a read of the weight gives W_A.

Modules of one class with the same sparse attributes share one class, because Dynamo guards on the class of every module
that it reads. If each module had its own class, each model of the same kind would be compiled again, and the ninth not
at all. A class made here is stored on the class that it extends and lives as long. Therefore a class that is defined
inside a function can be freed.
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
from topkast.runtime.state.content.shards.shard import is_sharded
from topkast.runtime.state.persist.state_dict import STATE

_MADE = "_topkast_classes"  # on the class that was extended: attributes -> the class that is sparse in them
_ATTRIBUTES = "_topkast_attributes"  # on a class made here: its sparse attributes

# These modules of torch replace a weight by a computed weight, and read the weight before they change anything.
REPLACING = {"torch.nn.utils.weight_norm", "torch.nn.utils.prune"}

# This module of torch reads every tensor by its name, between two steps of a load. W_A is not defined there.
CHECKPOINTS = "torch.distributed.checkpoint.state_dict"

Finish = Callable[[Any], None]


def share_class(module: nn.Module, attributes: frozenset[str], complete: Finish) -> None:
    """Give a module the class in which these attributes are sparse.

    Args:
        module: of any class; a class made here is allowed.
        attributes: names of parameters; if empty, the module gets its own class back.
        complete: called with each new class before a module gets the class.
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
    """Whether torch made the module's class for this module alone, and will later restore the first of its bases."""
    return _ATTRIBUTES not in vars(type(module)) and parametrize.is_parametrized(module)


def inherited(kind: Any) -> dict[str, Any]:
    """The entries that the class itself defines, for a new class made from them."""
    return {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}


def sparse_class(base: Any, attributes: frozenset[str], complete: Finish) -> Any:
    """The class that extends ``base`` and is sparse in these attributes."""
    if _MADE not in vars(base):
        setattr(base, _MADE, {})
    made = vars(base)[_MADE]
    if attributes not in made:
        own: dict[str, Any] = {name: _weight(name) for name in attributes}
        own |= {_ATTRIBUTES: attributes, "__module__": base.__module__, "parametrizations": property(_not_ours)}
        own |= {"_complete": staticmethod(complete)}  # pickled with its name, to make the class again
        own |= {"__reduce_ex__": _reduce, "__prepare_scriptable__": _not_scriptable}
        kind = type(base)(f"Sparse{base.__name__}", (base,), own)
        complete(kind)
        made[attributes] = kind  # only a finished class is stored, because an interrupt may come before
    return made[attributes]


def _weight(name: str) -> property:
    """A property that gives W_A if the module has a site of that name, and otherwise the parameter."""

    def get(self: Any) -> Any:
        if name not in self._parameters:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if not torch.compiler.is_compiling():
            reader = sys._getframe(1).f_globals.get("__name__")
            if reader in REPLACING:
                raise ModelError(_refusal(type(self).__name__, name))
            if reader == CHECKPOINTS:
                return self._parameters[name]
        values, sites = self._parameters[name], self._modules[STATE]._modules
        if name not in sites or values is None or values.size() == sites[name].geometry.shape:
            return values  # a dense tensor, put there by functional_call or by an assignment
        if not torch.compiler.is_compiling() and is_sharded(values):
            # Between forwards the weight is the sharded parameter, as without topkast. FSDP2 reads it here before
            # it gathers it for the first time; so the site finds its part here at the latest.
            sites[name].shard  # noqa: B018
            return values
        return sites[name](values)

    def put(self: Any, value: Tensor) -> None:
        # torch's older spectral_norm has already given the parameter another name.
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
    """``module.parametrizations``: torch's own, if the module has any.

    ``register_parametrization`` reads this property before it changes anything. torch's quantization, which finds
    layers by their class, does the same. For a sparse weight both get an error.
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
    """Refuse ``torch.jit.script``, which calls this function before it reads a module's code."""
    raise ModelError(
        f"{type(self).__name__}: torch.jit.script cannot read a sparse weight; script topkast.densify(model), or use "
        "topkast.export"
    )


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickle like any module, but store the base class: pickle could not find the made class by its name."""
    kind: Any = type(self)
    ours: Any = next(made for made in kind.__mro__ if _ATTRIBUTES in vars(made))
    if isinstance(self, torch.fx.GraphModule):
        raise ModelError(
            f"{kind.__name__}: a GraphModule is pickled as its graph's code, which reads the weights as dense; use "
            "topkast.save(model, path), or pickle topkast.densify(model)"
        )
    found = super(ours, self).__reduce_ex__(protocol)
    if _ATTRIBUTES in vars(kind) and found[0] is copyreg.__newobj__ and found[1][0] is kind:  # type: ignore[attr-defined]
        return (_made_again, (kind._complete, kind.__bases__[0], vars(kind)[_ATTRIBUTES], *found[1][1:]), *found[2:])
    return found


def _made_again(complete: Finish, base: Any, attributes: frozenset[str], *args: Any) -> Any:
    kind = sparse_class(base, attributes, complete)
    return kind.__new__(kind, *args)
