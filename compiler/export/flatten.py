"""A model seen as a function from named tensors to named tensors: what a graph format can hold."""

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
    """The place of a tensor: its number, and what stands there in the examples."""

    number: int
    tensor: Tensor


class Inputs:
    """Example inputs, taken apart into named tensors.

    Args:
        model: gives the names, by the signature of its ``forward``.
        example_inputs: a tuple or list of positional arguments, a dict of keywords, or one tensor.

    Raises:
        ExportError: they do not fit the signature, or hold no tensor.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        args, kwargs = _arguments(example_inputs)
        try:
            self._signature = inspect.signature(model.forward)
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ExportError(f"example_inputs: do not fit {type(model).__name__}.forward ({error})") from error
        leaves, self._spec = pytree.tree_flatten((args, kwargs))
        # Numbers, flags and None are not inputs of the graph: they are part of what it computes.
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
        """``model`` called with these tensors in the places of the examples."""
        leaves = list(self._leaves)
        for i, tensor in zip(self._slots, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return model(*args, **kwargs)

    def given(self) -> dict[str, Any]:
        """The arguments by name, each tensor in them as its :class:`Slot`."""
        leaves = list(self._leaves)
        for number, (i, tensor) in enumerate(zip(self._slots, self.tensors, strict=True)):
            leaves[i] = Slot(number, tensor)
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return _named(self._signature, self._signature.bind(*args, **kwargs).arguments)


def _named(signature: inspect.Signature, bound: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, those of ``**kwargs`` by their own."""
    named: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        named.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return named


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
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
    """Named tensors of whatever a model returns; what is no tensor (caches, None) is left out.

    Args:
        output: a tensor, or sequences, mappings, dataclasses of them, nested.
        name: prefix of the names; a single tensor without one is called "output".
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
    """``model`` with tensors only, in and out, in the order of ``inputs``.

    Args:
        model: is called, with its hooks.
        inputs: says where the tensors go.
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
    """Tell a transformers model not to return its key-value cache, which is no tensor."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False  # type: ignore[union-attr]
