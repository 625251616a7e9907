"""View a model as a function from named tensors to named tensors, because a graph format can hold only tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from topkast.runtime.errors import ExportError


@dataclass(frozen=True)
class Slot:
    """The place of a tensor: its number, and the example tensor in that place."""

    number: int
    tensor: Tensor


class Inputs:
    """Example inputs, split into named tensors.

    Args:
        model: the signature of its ``forward`` gives the names.
        example_inputs: a tuple or list of positional arguments, a dict of keywords, or one tensor.

    Raises:
        ExportError: the inputs do not fit the signature, or hold no tensor.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        args, kwargs = arguments(example_inputs)
        try:
            self._signature = inspect.signature(model.forward)
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ExportError(f"example_inputs: do not fit {type(model).__name__}.forward ({error})") from error
        leaves, self._spec = pytree.tree_flatten((args, kwargs))
        # Numbers, flags and None are no inputs of the graph: they become constants in the graph.
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if not self._slots:
            raise ExportError("example_inputs: hold no tensor")
        self.tensors = [leaves[i].detach().cpu() for i in self._slots]
        named = _named(self._signature, bound)
        paths = {id(leaf): _join(path) for path, leaf in pytree.tree_flatten_with_path(named)[0]}
        self.names = [paths[id(leaves[i])] for i in self._slots]
        if len(set(self.names)) < len(self.names):  # the same tensor given twice
            self.names = [f"{name}_{i}" for i, name in enumerate(self.names)]

    def call(self, model: Any, tensors: Any) -> Any:
        """Call ``model`` with these tensors in the places of the examples."""
        leaves = list(self._leaves)
        for i, tensor in zip(self._slots, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return model(*args, **kwargs)

    def given(self) -> dict[str, Any]:
        """The arguments by name, with a :class:`Slot` in the place of each tensor."""
        leaves = list(self._leaves)
        for number, (i, tensor) in enumerate(zip(self._slots, self.tensors, strict=True)):
            leaves[i] = Slot(number, tensor)
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return _named(self._signature, self._signature.bind(*args, **kwargs).arguments)


def _named(signature: inspect.Signature, bound: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name; arguments in ``**kwargs`` have their own names."""
    named: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        named.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return named


def arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional arguments, keywords) of a tuple or list, a dict, or one tensor; ExportError for another value."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise ExportError(
        f"example_inputs: a {type(example_inputs).__name__}, must be a tuple of positional arguments, a dict of "
        "keyword arguments, or a tensor"
    )


def _join(path: tuple[Any, ...]) -> str:
    parts = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path)
    return "_".join(map(str, parts))


def flatten_outputs(output: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in a model's output, by name; values that are no tensors (caches, None) are left out.

    Args:
        output: a tensor, or nested sequences, mappings and dataclasses of tensors.
        name: prefix of the names; a single tensor without a prefix is called "output".
    """
    if isinstance(output, Tensor):
        return {name or "output": output}
    if isinstance(output, Mapping):
        items = list(output.items())
    elif isinstance(output, (tuple, list)):
        items = list(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
        name = name or ("" if hasattr(output, "_fields") else "output")
    elif is_dataclass(output):
        items = [(field.name, getattr(output, field.name)) for field in fields(output)]
    else:
        return {}
    found: dict[str, Tensor] = {}
    for key, value in items:
        found.update(flatten_outputs(value, f"{name}_{key}" if name else str(key)))
    return found


class Flat(nn.Module):
    """``model`` with only tensors as inputs and outputs, in the order of ``inputs``.

    Args:
        model: the module that is called, with its hooks.
        inputs: gives the place of each tensor in the arguments.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self._inputs = inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(*tensors).values())

    def named(self, *tensors: Tensor) -> dict[str, Tensor]:
        return flatten_outputs(self._inputs.call(self.model, tensors))


def without_cache(model: nn.Module) -> None:
    """Configure a transformers model not to return its key-value cache, because the cache is no tensor. The module
    ``cache`` exports a decoder with its cache."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False  # type: ignore[union-attr]
