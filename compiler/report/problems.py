"""The problems of a converted model that its user should know, the most important first."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, auto

import torch
from torch import Tensor

from topkast.compiler.capture.no_gain import NOT_BUILT
from topkast.runtime.kernels import native_library
from topkast.runtime.layout import slot_units
from topkast.runtime.state.model import Record
from topkast.runtime.state.sharding.sums import summed
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.training.exploration_decay import MOST_DECAY
from topkast.runtime.training.standing_clock import standing_facts

from .how_it_ran import eager_facts

COLLAPSED = 0.5  # if more than this share of a set's members is zero, the set is mostly chosen by index order


class Kind(IntEnum):
    """The kinds of problems. A smaller number is more important: wrong results, then lost speed, then good to know."""

    NOT_FINITE = auto()
    DEAD = auto()
    NO_STEP_COUNTED = auto()
    LATE_REFRESH = auto()
    COLLAPSED = auto()
    EAGER = auto()
    NOT_BUILT = auto()
    FROZEN = auto()
    EMPTY_ROWS = auto()
    CONVERSION = auto()
    DECAY_CAPPED = auto()


def problems_of(record: Record, found: dict[str, SiteModule]) -> list[str]:
    """Sentences about problems, the most important first; among equals, the largest share of a weight first.

    Args:
        record: the record of the model.
        found: parameter name -> site.
    """
    of_model = [(kind, 1.0, text) for kind, text in _of_model(record, found)]
    counts = summed({site: _counts(site) for site in found.values()})
    of_sites = [
        (kind, share, f"{name}: {text}")
        for name, site in found.items()
        for kind, share, text in _of_site(site, *map(int, counts[site]))
    ]
    return [text for _, _, text in sorted(of_model + of_sites, key=lambda one: (one[0], -one[1]))]


def _of_model(record: Record, found: dict[str, SiteModule]) -> Iterator[tuple[Kind, str]]:
    """(kind, sentence) of each problem that belongs to no single weight."""
    for text in record.warnings:
        yield Kind.CONVERSION, text
    for text in eager_facts(record, found):
        yield Kind.EAGER, text
    for text in standing_facts(found.values()):
        yield Kind.NO_STEP_COUNTED, text
    # The default decay is expected to be capped at SGD's learning rates; only a decay that the user set is warned of.
    fastest, asked = max((site.decayed_by for site in found.values()), default=0.0), record.config.exploration_decay
    if fastest > MOST_DECAY and asked is not None:
        yield (
            Kind.DECAY_CAPPED,
            f"exploration_decay={asked:g}: exploration_decay × lr is {fastest:.3g}; the decay is capped at "
            f"{MOST_DECAY:g} per step",
        )
    if native_library.library() is None:
        yield (
            Kind.NOT_BUILT,
            NOT_BUILT,
        )


def _counts(site: SiteModule) -> Tensor:
    """Of the part of a site that this rank has: (values that are not finite, blocks in A, zero blocks in A, blocks in
    B, zero blocks in B)."""
    values, index = site.stored()
    units, in_a = slot_units(index, site.geometry)
    values, in_b = values.view(-1, site.geometry.unit), units < site.geometry.units
    zero = (values == 0).all(1)
    bad = (~values.isfinite()).sum() + (~site.reservoir.isfinite()).sum().to(values.device)
    return torch.stack([bad, in_a.sum(), zero[in_a].sum(), in_b.sum(), zero[in_b].sum()])


def _of_site(
    site: SiteModule, bad: int, in_a: int, zero_a: int, in_b: int, zero_b: int
) -> Iterator[tuple[Kind, float, str]]:
    """(kind, the affected share of the weight, sentence) of each problem of a site, from its :func:`_counts`."""
    if bad:
        yield Kind.NOT_FINITE, 1, "holds NaN or infinite values"
    if not site.original.requires_grad:
        yield Kind.FROZEN, 1, "frozen (requires_grad is False): sparse for inference only, it stands still"
    if site.late:
        yield (
            Kind.LATE_REFRESH,
            1,
            f"{site.late} refreshes came after a step, not before a forward: the graphs were compiled by a "
            'backend that is not ours; use torch.compile(model, backend="topkast")',
        )
    rows = site.row_fwd.numel()
    empty = int((site.row_fwd == site.row_ptr[:-1]).sum())
    if empty:
        share = empty / rows
        yield (
            Kind.EMPTY_ROWS,
            share,
            f"{empty} of {rows} output rows ({share:.1%}) have no weight in A: always zero",
        )
    if zero_a == in_a:
        yield Kind.DEAD, 1, "every weight of A is zero: a dead layer"
    for label, members, zero in (("A", in_a, zero_a), ("B", in_b, zero_b)):
        share = zero / members
        if share >= COLLAPSED:
            yield (
                Kind.COLLAPSED,
                share,
                f"{share:.0%} of {label} is exactly zero: the set has collapsed, its members are ties",
            )
