"""Decide for every parameter: sparse, with its view as a matrix, or dense, with the reason in words.

By default the first convolution of an image model stays dense and the last classifier becomes sparse, as in RigL (Evci
et al. 2020, section 3, "uniform"). With the "erk" distribution the first convolution becomes sparse too.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import networkx as nx
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter, is_lazy

from topkast.compiler.capture.parameter_uses import Found, Hit, follow
from topkast.compiler.capture.trace import Capture, capture
from topkast.runtime.errors import ConfigError, ModelError

Owner = tuple[str, str]  # (module path, attribute)
FIRST = "the first convolution of an image model (dense by default, as in RigL, Evci et al. 2020)"


@dataclass
class Use:
    """A parameter that becomes sparse. As a matrix: permuted by `perm`, the first `lead` dimensions are rows (outputs).

    `owners`: every (module path, attribute) that holds the parameter; the pair that `named_parameters` names is first.
    `ops`: the operators that use the parameter, the matrix products and convolutions first. `positions`: multiply-adds
    per weight in the traced forward (for a linear layer the tokens of the batch, for a convolution its output
    positions), or None if shapes are not known.
    """

    owners: list[Owner]
    ops: list[str]
    perm: tuple[int, ...]
    lead: int
    positions: int | None


@dataclass
class Selection:
    """The way the model was read, and the decision for each name that `named_parameters` yields."""

    capture: Capture
    sparse: dict[str, Use]
    dense: dict[str, str]

    @property
    def how(self) -> str:
        return self.capture.how


def select(model: nn.Module, config: Any, example_inputs: Any = None) -> Selection:
    """Decide for each parameter of `model`; `config` has include, exclude (globs or None), min_size, distribution.

    Raises ConfigError for a glob that matches no parameter and ModelError for lazy parameters. The model stays
    unchanged. A model in which nothing can be sparse is no error here.
    """
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        if is_lazy(p) or isinstance(p, UninitializedParameter):
            raise ModelError(f"parameter {name!r} has no shape yet (a lazy module): run one forward pass first")
    owners, shared = _owners(model, parameters)
    included = _matches("include", config.include, owners)
    excluded = _matches("exclude", config.exclude, owners)
    captured = capture(model, example_inputs)
    found = follow(captured, model)
    result = Selection(captured, {}, {})
    for name, p in parameters.items():
        reason = _ruled_out(p, shared.get(name))
        if reason is None and name in excluded:
            reason = f"excluded by {excluded[name]!r}"
        if reason is None and config.include and name not in included:
            reason = "not included"
        decision: Use | str
        if reason is not None:
            decision = reason
        elif captured.graphs:
            decision = _traced(model, name, p, owners[name], found)
        else:
            decision = _by_structure(model, p, owners[name])
        if not isinstance(decision, str) and not _named(name, owners[name], config.include):
            # These reasons do not count if an include names the parameter in full.
            if getattr(config, "distribution", "uniform") != "erk" and _is_first(
                name, found, captured.graphs, result, p
            ):
                decision = FIRST
            elif p.numel() < config.min_size:
                decision = f"{p.numel()} elements, fewer than min_size={config.min_size}"
        if isinstance(decision, str):
            result.dense[name] = decision
        else:
            result.sparse[name] = decision
    return result


def _owners(model: nn.Module, parameters: dict[str, nn.Parameter]) -> tuple[dict[str, list[Owner]], dict[str, str]]:
    """The owners of each parameter, and the parameters that are different objects over the same memory."""
    canonical = {id(p): name for name, p in parameters.items()}
    ties = nx.Graph()  # parameters on one side, owners and storage addresses on the other
    ties.add_nodes_from(parameters)
    owners: dict[str, list[Owner]] = {name: [] for name in parameters}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, p in module._parameters.items():
            if p is not None:
                owners[canonical[id(p)]].append((path, attribute))
                ties.add_edge(canonical[id(p)], (path, attribute))
    for name, p in parameters.items():
        if p.device.type != "meta" and type(p.data).__name__ == "Tensor" and p.numel() and p.data_ptr():
            ties.add_edge(name, (p.device, p.data_ptr()))
    shared = {}
    for component in nx.connected_components(ties):
        tied = [name for name in parameters if name in component] if len(component) > 2 else []
        for name in tied if len(tied) > 1 else []:
            shared[name] = next(other for other in tied if other != name)
    return owners, shared


def _matches(argument: str, globs: Any, owners: dict[str, list[Owner]]) -> dict[str, str]:
    """Canonical name -> the glob that matches any name of the parameter. Each glob must match a parameter."""
    aliases = {".".join(filter(None, owner)): name for name, held in owners.items() for owner in held}
    matched: dict[str, str] = {}
    for glob in globs or ():
        hits = [name for alias, name in aliases.items() if fnmatchcase(alias, glob)]
        if not hits:
            close = difflib.get_close_matches(glob, list(aliases), n=3, cutoff=0.4)
            hint = f"; close names: {', '.join(close)}" if close else ""
            raise ConfigError(f"{argument}: {glob!r} matches no parameter{hint}")
        for name in hits:
            matched.setdefault(name, glob)
    return matched


def _named(name: str, held: list[Owner], include: Any) -> bool:
    return any(alias in (include or ()) for alias in [name, *(".".join(filter(None, owner)) for owner in held)])


def _ruled_out(p: nn.Parameter, shared_with: str | None) -> str | None:
    if not p.is_floating_point():
        return f"{str(p.dtype).removeprefix('torch.')} numbers, not floating point"
    if not p.requires_grad:
        return "frozen (requires_grad is False)"
    return f"shares its memory with {shared_with!r}, another Parameter" if shared_with else None


def _kind(model: nn.Module, held: list[Owner]) -> str | None:
    """The reason why a parameter with these owners' classes must stay dense, or None."""
    modules = [model.get_submodule(path) for path, _ in held]
    if any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in modules):
        return "an embedding" if len(held) == 1 else "an embedding, tied to other uses"
    return "a norm's parameter" if any("norm" in type(m).__name__.lower() for m in modules) else None


def _vector(model: nn.Module, p: nn.Parameter, held: list[Owner]) -> str | None:
    if p.ndim > 1:
        return None
    bias = any("bias" in attribute for _, attribute in held)
    return _kind(model, held) or ("a bias" if bias else "no matrix: fewer than two dimensions")


def _traced(model: nn.Module, name: str, p: nn.Parameter, held: list[Owner], found: Found) -> Use | str:
    hits, others = found.hits.get(name, []), list(dict.fromkeys(found.others.get(name, [])))
    if p.ndim < 2:
        return str(_vector(model, p, held))
    if name in found.embedded:
        return f"tied to an embedding: also used by {_ops(hits)[0]}" if hits else "an embedding"
    if not hits:
        if any(isinstance(model.get_submodule(path), nn.RNNBase) for path, _ in held):
            return _by_structure(model, p, held)  # Dynamo runs RNNs outside its graphs
        if not others:
            return "unused in the trace"
        if any("norm" in op for op in others):
            return "a norm's parameter"
        return f"not consumed by a matrix product or convolution: used by {', '.join(others)}"
    if any(hit.depthwise for hit in hits):
        return "a depthwise convolution"
    work = [hit.macs for hit in hits if hit.macs is not None]
    positions = round(sum(work) / max(p.numel(), 1)) if len(work) == len(hits) else None
    return Use(
        held, [*_ops(hits), *(op for op in others if op not in _ops(hits))], hits[0].perm, hits[0].lead, positions
    )


def _ops(hits: list[Hit]) -> list[str]:
    return list(dict.fromkeys(hit.op for hit in hits))


def _is_first(name: str, found: Found, graphs: list[Any], result: Selection, p: nn.Parameter) -> bool:
    if graphs:
        return any(hit.first for hit in found.hits.get(name, []))
    # The structure alone decides: the first weight in the order of registration, if it is a convolution over an image.
    return p.ndim in (4, 5) and not result.sparse and FIRST not in result.dense.values()


def _by_structure(model: nn.Module, p: nn.Parameter, held: list[Owner]) -> Use | str:
    """The decision by the owners' classes, for a model (or an RNN) that cannot be traced."""
    reason = _vector(model, p, held) or _kind(model, held)
    if reason:
        return reason
    path, attribute = held[0]
    module = model.get_submodule(path)
    if "weight" not in attribute:
        return f"not known as the weight of a matrix product or convolution ({type(module).__name__}.{attribute})"
    perm, op = tuple(range(p.ndim)), "linear" if isinstance(module, nn.Linear) else type(module).__name__.lower()
    if isinstance(module, _ConvNd):
        if module.groups == module.in_channels > 1:
            return "a depthwise convolution"
        if isinstance(module, _ConvTransposeNd):
            perm = (1, 0, *perm[2:])
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers: [in, out]
        perm = (1, 0)
    return Use(held, [op], perm, 1, None)
