"""The record that topkast keeps for a whole model, and functions that find the record and the sites."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from topkast.runtime.errors import ModelError
from topkast.runtime.state.content.family import Family

from .find_sites import joined, sites_of
from .site_module import SiteModule


@dataclass
class Record:
    """The record of a model. It is stored on the model as ``_topkast`` and is copied with the model.

    Args:
        config: the options that the user gave.
        dense: parameter name -> why the parameter stayed dense.
        ops: parameter name -> the ops that use the parameter, as the trace saw them.
        positions: parameter name -> matrix products that use the weight in each traced call; None if not known.
        how: how the model was traced.
        family: the mark of the model's sites.
        warnings: warnings for the user, shown in the report.
        scaled: parameter name -> the factor that θ was multiplied by at the start, see
            :mod:`topkast.compiler.convert.initial`.
        watch: for a compiled model: warns if a part does not run compiled.
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
    watch: Any = None


def find(model: Any) -> tuple[nn.Module, Record]:
    """The converted module inside ``model`` (itself, or below a wrapper such as ``torch.compile``'s) and its record.

    Raises:
        ModelError: topkast has not converted the model, or only a part of it. A result for that part would look like a
            result for the whole model.
    """
    if "_topkast" in getattr(model, "__dict__", ()):  # the common case; some callers ask at every step
        return model, model.__dict__["_topkast"]
    converted: dict[str, nn.Module] = {}
    if isinstance(model, nn.Module):
        converted = {name: module for name, module in model.named_modules() if "_topkast" in module.__dict__}
    if not converted:
        raise ModelError(f"model: a {type(model).__name__} that topkast.compile or topkast.sparsify has not converted")
    root = next(iter(converted.values()))
    # A wrapper has no parameters of its own. An average of models has its own buffer.
    inside = {id(parameter) for parameter in root.parameters()}
    if any(id(parameter) not in inside for parameter in model.parameters()):
        parts = ", ".join(f"model.{name}" for name in converted)
        raise ModelError(f"model: of this {type(model).__name__} only {parts} was converted; pass that")
    return root, root.__dict__["_topkast"]


def sites(model: Any) -> dict[str, SiteModule]:
    """Parameter name -> site, in the model's order. The names are the current names of the weights, also after layers
    were moved, wrapped or removed."""
    return {name: site for name, (site, _) in owned(model).items()}


def owned(model: Any) -> dict[str, tuple[SiteModule, list[tuple[str, str]]]]:
    """Parameter name -> (site, (module path, attribute) of each owner; the owner in the parameter name comes first)."""
    return owned_by(find(model)[0])


def owned_by(root: nn.Module) -> dict[str, tuple[SiteModule, list[tuple[str, str]]]]:
    """The same for any module; its names are relative to the module. Without sparse weights the result is empty."""
    found: dict[int, tuple[str, Any, list[tuple[str, str]]]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        for attribute, site in sites_of(module).items():
            found.setdefault(id(site), (joined(path, attribute), site, []))[2].append((path, attribute))
    return {name: (site, owners) for name, site, owners in found.values()}
