"""The distance between the sets of two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkast.compiler.checkpoint.dense_state import masks
from topkast.runtime.errors import ConfigError
from topkast.runtime.extras import need

from .interchangeable import Interchangeable, interchangeable

Pair = tuple[float, float]
Masks = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MaskDistance:
    """The result of :func:`mask_distance`; every figure is a share from 0 (the same set) to 1 (nothing in common).

    Attributes:
        forward, backward: of A and of B, over all parameters together.
        parameters: name -> (A, B).
        permutations: by which neurons of the second model were matched (see :meth:`Interchangeable.index`); None where
            no matching was asked for.
    """

    forward: float
    backward: float
    parameters: dict[str, Pair]
    permutations: dict[int, np.ndarray] | None = None


def mask_distance(a: Any, b: Any, *, match: bool | Interchangeable = False, example_inputs: Any = None) -> MaskDistance:
    """Measure the distance between the sets of two models.

    The distance is the share of the sets' members that the other set does not have, ``|X Δ Y| / (|X| + |Y|)``. Two sets
    that are drawn at random with the density d are about 1 - d apart.

    Args:
        a, b: models converted by topkast (or wrappers of them), or what :func:`topkast.masks` gave of one, in any mix.
        match: neurons have no order: two models can differ only in the order of neurons. True permutes the
            interchangeable neurons of ``b`` (one permutation for a hidden dimension, for its producers and its
            consumers) so that the two models overlap most, in A and B together. The permutation is a local optimum, so
            the distance is an upper bound. Any two sets have some overlap, so compare with a control such as shuffled
            masks. To trace once for many distances, pass a result of :func:`topkast.topology.interchangeable`.
        example_inputs: for ``match=True``, to trace a model with; see :func:`topkast.topology.interchangeable`.

    Raises:
        ConfigError: ``match`` is another value, the two differ in parameters or shapes, or ``match=True`` and neither
            is a model.
        MissingPackageError: a match was asked for, and the extra ``topkast[statistics]`` (scipy) is not installed.
        ModelError: a model was not converted or could not be traced.
    """
    if not isinstance(match, (bool, Interchangeable)):
        raise ConfigError(f"match={match!r}: must be True, False, or a result of topkast.topology.interchangeable")
    one, two = (given if isinstance(given, Mapping) else masks(given) for given in (a, b))
    _check(one, two)
    if match is True:
        model = next((given for given in (a, b) if not isinstance(given, Mapping)), None)
        if model is None:
            raise ConfigError(
                "match=True: needs a model among a and b, or pass topkast.topology.interchangeable(model)"
            )
        match = interchangeable(model, example_inputs)
    sets = [{name: torch.stack(pair).cpu() for name, pair in given.items()} for given in (one, two)]
    permutations = None
    if isinstance(match, Interchangeable):
        need("statistics", "mask_distance(match=...)")
        from .matching import match as best_match  # scipy takes a while to import

        unknown = [name for name in one if name not in match.dims]
        if unknown:
            raise ConfigError(f"match: found in another model, without {', '.join(unknown)}")
        permutations = best_match(match, *sets)[0]
        sets[1] = {
            name: torch.stack([match.permute(name, mask, permutations) for mask in both])
            for name, both in sets[1].items()
        }
    counts = {name: _counts(sets[0][name], sets[1][name]) for name in one}
    forward, backward = (_share(sum(c[:, i] for c in counts.values())) for i in range(2))
    parameters = {name: (_share(c[:, 0]), _share(c[:, 1])) for name, c in counts.items()}
    return MaskDistance(forward, backward, parameters, permutations)


def _counts(one: Tensor, two: Tensor) -> np.ndarray:
    """[apart, members of both] by [A, B]."""
    return np.array(
        [[int(t.count_nonzero()) for t in one ^ two], [int(x.sum() + y.sum()) for x, y in zip(one, two, strict=True)]]
    )


def _share(counts: Any) -> float:
    apart, members = counts
    return float(apart / members) if members else 0.0


def _check(one: Masks, two: Masks) -> None:
    missing = sorted(one.keys() ^ two.keys())
    if missing:
        raise ConfigError(f"a and b: sparse in only one of the two: {', '.join(missing)}")
    for name, (fwd, _) in one.items():
        if fwd.shape != two[name][0].shape:
            raise ConfigError(f"{name}: shape {tuple(fwd.shape)} in a, {tuple(two[name][0].shape)} in b")
