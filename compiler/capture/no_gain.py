"""Warn once if a model that is compiled for training will save no time, and say why."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch

from topkast.passes.aten import PassLog
from topkast.passes.aten.finish.choose_kernel import is_observed
from topkast.runtime.kernels import native_library
from topkast.runtime.kernels.candidates import DENSE
from topkast.runtime.planner.plan import setting
from topkast.runtime.state.find_sites import relatives
from topkast.runtime.state.site_module import SiteModule

NOT_BUILT = (
    "the native CPU kernels were not built at install (no C++ compiler?): products on the CPU run on the "
    "reference kernels, slower than dense; install again with a compiler"
)
NOTHING_FASTER = (
    "a dense product is faster than every sparse kernel for all products of this graph, on this machine: training "
    "saves memory, but no time. The weights are small, or a batch has few rows. "
    "topkast.estimate(model, example_inputs) shows the times"
)
_given: set[str] = set()  # the warnings that this process has given


def notice_no_gain(log: PassLog, found: Sequence[SiteModule]) -> None:
    """Warn if the planner took dense products only.

    A graph without gradients, or with less than half of a model's sites, says little about training. If the kernels
    were not chosen by their times, or the graph came from a cache, nothing is known. :func:`topkast.estimate` says the
    same in its own words.

    Args:
        log: what the passes did to a graph.
        found: the sites of the graph.
    """
    if not torch.is_grad_enabled() or setting() != "measure" or is_observed():
        return
    taken = {kernel for run in log.runs if run.name == "ChooseKernel" for kernel in run.matches}
    if taken and taken <= set(DENSE) and 2 * len(found) >= len(list(relatives(found))):
        _warn_once(NOT_BUILT if _on_cpu(found) and native_library.library() is None else NOTHING_FASTER)


def _on_cpu(found: Iterable[SiteModule]) -> bool:
    return any(site.original.device.type == "cpu" for site in found)


def _warn_once(text: str) -> None:
    if text not in _given:
        _given.add(text)
        warnings.warn(f"topkast: {text}", stacklevel=2)
