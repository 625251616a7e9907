"""What topkast remembers about a whole model, and how to find it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .eager_steps import Watch
from .errors import ModelError
from .site import Site


@dataclass
class Record:
    """Kept on the model as ``_topkast``, copied with it.

    Args:
        config: what the user asked for.
        sites: parameter name -> (module path, attribute) of each owner; the first is the one in the name.
        dense: parameter name -> why it stayed dense.
        ops: parameter name -> the ops that use it, as the trace saw them.
        positions: parameter name -> matrix products a weight takes part in per traced call, None if not known.
        how: how the model was traced.
        keys: the keys of the original ``state_dict``, in order.
        order: module path -> its original parameters, in order.
        warnings: what the user should know, for the report.
        scaled: parameter name -> what θ was multiplied by at the start, see :mod:`topkast.compiler.initial`.
        watch: of a compiled model, sees to it that what is not run compiled is told.
    """

    config: Any
    sites: dict[str, list[tuple[str, str]]]
    dense: dict[str, str]
    ops: dict[str, list[str]]
    positions: dict[str, int | None]
    how: str
    keys: list[str]
    order: dict[str, list[str]]
    backend: str = "not compiled"
    warnings: list[str] = field(default_factory=list)
    scaled: dict[str, float] = field(default_factory=dict)
    watch: Watch | None = None


def find(model: Any) -> tuple[nn.Module, Record]:
    """The converted module inside ``model`` (itself, or below a wrapper such as ``torch.compile``'s) and its record.

    Raises:
        ModelError: nothing in it was converted by topkast, or a part of it only: an answer for that part would look
            like one for the whole.
    """
    if "_topkast" in getattr(model, "__dict__", ()):  # nearly always, and some ask at every step
        return model, model.__dict__["_topkast"]
    converted: dict[str, nn.Module] = {}
    if isinstance(model, nn.Module):
        converted = {name: module for name, module in model.named_modules() if "_topkast" in module.__dict__}
    if not converted:
        raise ModelError(f"model: a {type(model).__name__} that topkast.compile or topkast.sparsify has not converted")
    root = next(iter(converted.values()))
    # A wrapper has no parameters of its own; an average of models has a buffer.
    inside = {id(parameter) for parameter in root.parameters()}
    if any(id(parameter) not in inside for parameter in model.parameters()):
        parts = ", ".join(f"model.{name}" for name in converted)
        raise ModelError(f"model: of this {type(model).__name__} only {parts} was converted; pass that")
    return root, root.__dict__["_topkast"]


def sites(model: Any) -> dict[str, Site]:
    """Original parameter name -> site, in the model's order."""
    root, record = find(model)
    found: dict[str, Site] = {}
    for name, owners in record.sites.items():
        path, attribute = owners[0]
        owner: Any = root.get_submodule(path)
        found[name] = owner.parametrizations[attribute]
    return found
