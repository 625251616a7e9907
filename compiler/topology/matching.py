"""Match the neurons of two models: find the permutations of interchangeable neurons for which the two models' sets
overlap most.

With all other classes held, the best permutation of one class is a linear assignment, solved exactly; the classes take
turns until none improves. That is a local optimum: finding the best for all at once is a quadratic assignment, for
which no fast method is known. It is begun twice, from no permutation and from one by the neurons' colours (what a
neuron is connected to, and those to what, in the manner of Weisfeiler and Leman, in floating point), which finds the
permutation of a permuted copy; the better end counts.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .dimensions import Dim
from .interchangeable import Interchangeable

Sets = dict[str, Tensor]  # parameter name -> bool [sets, *shape]
Found = dict[int, np.ndarray]

WIDTH, ROUNDS = 8, 4  # numbers in a colour; how far a neuron looks


def match(found: Interchangeable, one: Sets, two: Sets) -> tuple[Found, int]:
    """Permutations of ``two`` (see :meth:`Interchangeable.index`) and the members that it then shares with ``one``."""
    starts: tuple[Found, ...] = ({}, _by_colour(found, _colours(found, one), _colours(found, two)))
    return max((_climb(found, one, two, start) for start in starts), key=lambda end: end[1])


def overlap(found: Interchangeable, one: Sets, two: Sets, permutations: Found) -> int:
    """Members that ``one`` and the permuted ``two`` share, over all parameters and sets."""
    return sum(int((mask & _permuted(found, name, two[name], permutations)).sum()) for name, mask in one.items())


def _climb(found: Interchangeable, one: Sets, two: Sets, start: Found) -> tuple[Found, int]:
    best, score = start, overlap(found, one, two, start)
    classes = [atom for atom in found.sizes if atom not in found.inner and _places(found, one, atom)]
    stale = 0
    while stale < len(classes):
        for atom in classes:
            tried = {**best, **_renewed(found, one, two, best, atom)}
            reached = overlap(found, one, two, tried)
            stale += 1
            if reached > score:  # can be false if a class is on both sides of one matrix: its gain is not linear
                best, score, stale = tried, reached, 1
            if stale == len(classes):
                break
    return best, score


def _permuted(found: Interchangeable, name: str, sets: Tensor, permutations: Found) -> Tensor:
    for d, dim in enumerate(found.dims[name]):
        sets = _take(found, sets, d, dim, permutations)
    return sets


def _take(found: Interchangeable, sets: Tensor, d: int, dim: Dim, permutations: Found) -> Tensor:
    if not any(atom in permutations for segment in dim for atom in segment):
        return sets
    return sets.index_select(d + 1, torch.from_numpy(found.index(dim, permutations)))


def _places(found: Interchangeable, names: Sets, atom: int) -> list[tuple[str, int, int, tuple[int, ...]]]:
    """(parameter, dimension, first index, segment) of every segment that holds the atom."""
    places = []
    for name in names:
        for d, dim in enumerate(found.dims[name]):
            start = 0
            for segment in dim:
                if atom in segment:
                    places.append((name, d, start, segment))
                start += found.count(segment)
    return places


def _renewed(found: Interchangeable, one: Sets, two: Sets, held: Found, atom: int) -> Found:
    """The best permutation of one atom and of its inner atoms, while all other atoms stay fixed."""
    inner = [a for a, outer in found.inner.items() if outer == atom]
    others = {a: p for a, p in held.items() if a != atom and a not in inner}
    n = found.sizes[atom]
    gain = torch.zeros(n, n)
    within = {a: torch.zeros(n * found.sizes[a], n * found.sizes[a]) for a in inner}
    for name, d, start, segment in _places(found, one, atom):
        other = two[name]
        for e, dim in enumerate(found.dims[name]):
            other = _take(found, other, e, dim, others if e == d else held)
        at = segment.index(atom)
        nested = segment[at + 1] if at + 1 < len(segment) and segment[at + 1] in within else None
        before, after = found.count(segment[:at]), found.count(segment[at + 1 + (nested is not None) :])
        rows = []
        for sets in (one[name], other):
            part = sets.narrow(d + 1, start, found.count(segment)).movedim(d + 1, 0)
            part = part.reshape(before, -1, after, part[0].numel()).transpose(0, 1)
            rows.append(part.reshape(part.shape[0], -1).float())
        (gain if nested is None else within[nested]).add_(rows[0] @ rows[1].T)
    return _assign(atom, gain, within)


def _assign(atom: int, gain: Tensor, within: dict[int, Tensor]) -> Found:
    """Pair the indices of an atom; for each pair that could be, pair the inner indices first."""
    n = len(gain)
    total = gain.double().numpy().copy()
    pairs: dict[int, np.ndarray] = {}
    for a, inner in within.items():
        m = len(inner) // n
        blocks = inner.double().numpy().reshape(n, m, n, m)
        pairs[a] = np.empty((n, n, m), np.int64)
        for i in range(n):
            for j in range(n):
                rows, pairs[a][i, j] = linear_sum_assignment(blocks[i, :, j], maximize=True)
                total[i, j] += blocks[i, rows, j, pairs[a][i, j]].sum()
    chosen = linear_sum_assignment(total, maximize=True)[1]
    return {atom: chosen, **{a: p[np.arange(n), chosen] for a, p in pairs.items()}}


def _random(seed: str, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(zlib.crc32(seed.encode())))


def _colours(found: Interchangeable, sets: Sets) -> dict[int, Tensor]:
    """For each atom [size, WIDTH], for an inner one [outer size, size, WIDTH]: numbers that a permutation of the model
    only permutes. A fixed index has its own colour from the start; a free index gets a colour from its connections."""
    colours = {atom: _random(f"fixed {atom}", size, WIDTH) for atom, (size, _) in found.fixed.items()}
    for atom, size in found.sizes.items():
        outer = (found.sizes[found.inner[atom]],) if atom in found.inner else ()
        colours[atom] = torch.ones(*outer, size, WIDTH, dtype=torch.float64)
    for turn in range(ROUNDS):
        sums = {atom: torch.zeros_like(colours[atom]) for atom in found.sizes}
        for name, masks in sets.items():
            dims = found.dims[name]
            weights = [_random("sets", len(masks), WIDTH), *(_compose(found, dim, colours) for dim in dims)]
            for d, dim in enumerate(dims):
                message = masks.movedim(d + 1, 0).flatten(1).double() @ _mixed(weights, d + 1, f"{name} {d} {turn}")
                message = torch.tanh(message / math.sqrt(1 + masks.sum() / len(message)))
                for atom, part in _shares(found, dim, message):
                    sums[atom] += part
        for atom, part in sums.items():
            colours[atom] = torch.tanh(colours[atom] @ _random(f"{atom} {turn}", WIDTH, WIDTH) / 3 + part)
    return colours


def _mixed(weights: list[Tensor], but: int, seed: str) -> Tensor:
    """Colour of every combination of the indices of all dimensions but one: [combinations, WIDTH]."""
    mixed = torch.zeros(1, WIDTH, dtype=torch.float64)
    for e, colour in enumerate(weights):
        if e != but:
            mixed = (mixed[:, None] + colour @ _random(f"{seed} {e}", WIDTH, WIDTH)).flatten(0, 1)
    return torch.cos(mixed)


def _compose(found: Interchangeable, dim: Dim, colours: dict[int, Tensor]) -> Tensor:
    """Colour of every index of a dimension, [length, WIDTH]."""
    parts = []
    for s, segment in enumerate(dim):
        part = _random(f"segment {s}", WIDTH)
        for k, atom in enumerate(segment):
            own = colours[atom] @ _random(f"place {s} {k}", WIDTH, WIDTH)
            part = part.unsqueeze(-2) + own  # an inner atom's own has its outer one's dimension too
        parts.append(part.reshape(-1, WIDTH))
    return torch.cat(parts)


def _shares(found: Interchangeable, dim: Dim, message: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The colours that each free atom of a dimension receives: the mean over all other atoms of its segment."""
    start = 0
    for s, segment in enumerate(dim):
        part = message[start : start + found.count(segment)].reshape(*(found.size(atom) for atom in segment), WIDTH)
        start += found.count(segment)
        for k, atom in enumerate(segment):
            if atom in found.sizes:
                kept = {k, k - 1} if atom in found.inner else {k}
                gone = [i for i in range(len(segment)) if i not in kept]
                sums = part.mean(gone) if gone else part
                yield atom, sums @ _random(f"share {s} {k}", WIDTH, WIDTH)


def _by_colour(found: Interchangeable, one: dict[int, Tensor], two: dict[int, Tensor]) -> Found:
    made: Found = {}
    for atom in found.sizes:
        if atom not in found.inner:
            inner = [a for a, outer in found.inner.items() if outer == atom]
            made |= _assign(atom, -_apart(one[atom], two[atom]), {a: -_apart(one[a], two[a]) for a in inner})
    return made


def _apart(one: Tensor, two: Tensor) -> Tensor:
    return torch.cdist(one.reshape(-1, WIDTH), two.reshape(-1, WIDTH), compute_mode="donot_use_mm_for_euclid_dist")
