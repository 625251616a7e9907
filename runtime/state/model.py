"""What topkast remembers about a whole model, and how to find it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from topkast.runtime.errors import ModelError
from topkast.runtime.training.eager_steps import Watch

from .registry import Family
from .saved import joined, sites_of
from .site import Site


@dataclass
class Record:
    """Kept on the model as ``_topkast``, copied with it.

    Args:
        config: what the user asked for.
        dense: parameter name -> why it stayed dense.
        ops: parameter name -> the ops that use it, as the trace saw them.
        positions: parameter name -> matrix products a weight takes part in per traced call, None if not known.
        how: how the model was traced.
        family: the mark of its sites.
        warnings: what the user should know, for the report.
        scaled: parameter name -> what θ was multiplied by at the start, see :mod:`topkast.compiler.convert.initial`.
        watch: of a compiled model, sees to it that what is not run compiled is told.
    """

    config: Any
    dense: dict[str, str]
    ops: dict[str, list[str]]
    positions: dict[str, int | None]
    how: str
    family: Family
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
    """Parameter name -> site, in the model's order. The names are those that the weights have now, after layers were
    moved, wrapped or removed too."""
    return {name: site for name, (site, _) in owned(model).items()}


def owned(model: Any) -> dict[str, tuple[Site, list[tuple[str, str]]]]:
    """Parameter name -> (site, (module path, attribute) of each owner, the one in the name first)."""
    root, _ = find(model)
    found: dict[int, tuple[str, Site, list[tuple[str, str]]]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        for attribute, site in sites_of(module).items():
            found.setdefault(id(site), (joined(path, attribute), site, []))[2].append((path, attribute))
    return {name: (site, owners) for name, site, owners in found.values()}
