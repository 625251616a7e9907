"""Take units out of a graph that are dead: whose value never depends on the input, or that nothing reads.

An input that is constant is no input: what it adds goes into the bias. So a unit is needed only where something that
cannot be cut reads it, or a needed unit's row of a weight reads it and it is not constant; every other goes, with all
that was computed for it alone. What is left computes the same, up to the rounding of those sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from topkast.passes.onnx.blocks import MAX_BLOCK, Array, Block, digest, fitting
from topkast.passes.onnx.metadata import Shrunk

from .constants import Known, known_constants
from .cut import cut
from .unit_rules import read_units
from .units import Linear, Units


def shrink(
    model: ir.Model, blocks: Iterable[Block] = ((1, 1),), names: Mapping[str, str] | None = None
) -> tuple[list[Shrunk], dict[str, str]]:
    """Change ``model``, which holds its weights itself, in place; where nothing goes, it stays as it is.

    Args:
        model: of dense constants.
        blocks: (rows, columns) of the blocks the model was trained with: no block of them is cut.
        names: what to call a weight, by :func:`topkast.passes.onnx.blocks.digest` of its matrix.

    Returns:
        (what was done at each weight that has dead units, ``names`` with the digests of the weights as they are cut).
    """
    blocks, known_names = set(blocks), dict(names or {})
    whole = (lambda matrix: fitting(matrix, blocks, MAX_BLOCK).block) if blocks - {(1, 1)} else None
    units = read_units(model, whole)
    known, foldable = known_constants(units)
    parts = units.parts()
    reasons = _needed(units, parts, known, foldable)
    keep = np.isin(parts, list(reasons))
    found = []
    for linear in units.linears:
        matrix = _matrix(linear)
        name = known_names.get(digest(matrix), str(linear.at.input(1).name))
        stays = keep[linear.rows], keep[linear.cols]
        if not (stays[0].all() and stays[1].all()) and digest(matrix) in known_names:
            smaller = linear.as_matrix(linear.weight)[np.ix_(*stays)].reshape(int(stays[0].sum()), -1)
            known_names[digest(smaller)] = name
            known_names.setdefault(digest(smaller.T), f"{name}.T")
        found.append(_result(linear, name, parts, reasons, known, foldable[linear.at.node]))
    if not keep.all():
        cut(units, keep, foldable)
    return [one for one in found if one.dead_rows or one.dead_columns or one.rows or one.columns], known_names


def _needed(
    units: Units, parts: Array, known: Mapping[ir.Value, Known], foldable: Mapping[ir.Node, Array]
) -> dict[int, str]:
    """Why each part must stay that must."""
    reasons = dict[int, str]()
    needed = np.zeros(units.count, bool)

    def mark(labels: Array, why: str) -> bool:
        for part in parts[labels][~needed[parts[labels]]].tolist():
            reasons.setdefault(part, why)
        grows = not needed[parts[labels]].all()
        needed[parts[labels]] = True
        return grows

    for label, why in units.needed.items():
        reasons.setdefault(int(parts[label]), why)
    needed[list(reasons)] = True
    grows = True
    while grows:
        grows = False
        for linear in reversed(units.linears):
            at, constant = linear.at, ~np.isnan(foldable[linear.at.node])
            reads = linear.nonzero[needed[parts[linear.rows]]].any(axis=0) & ~constant
            x, weight = known.get(at.input(0)), at.input(1).name
            uneven = x.mask if x is not None and not linear.even and len(x.mask) == len(reads) else constant
            grows |= mark(linear.cols[reads & uneven], f"it is constant, but not at the border that {weight} sees")
            grows |= mark(linear.cols[reads], f"{weight} reads it, or units that go with it")
        # No tensor may become empty; what is in a part of a tensor is in the tensor too, so smaller ones choose first.
        for labels in () if grows else sorted(units.every_axis(), key=len):
            if len(labels) and not needed[parts[labels]].any():
                grows |= mark(labels[:1], "one of its axis must stay")
    return reasons


def _matrix(linear: Linear) -> Array:
    """The weight as [out, the rest]."""
    if linear.at.given.get("group", 1) > 1:
        return linear.weight.reshape(len(linear.weight), -1)
    matrix = linear.as_matrix(linear.weight)
    return matrix.reshape(len(matrix), -1)


def _result(
    linear: Linear, name: str, parts: Array, reasons: Mapping[int, str], known: Mapping[ir.Value, Known], numbers: Array
) -> Shrunk:
    y = known.get(linear.at.y)
    dead = [
        y.mask if y is not None else np.zeros(len(linear.rows), bool),
        ~np.isnan(numbers) | ~linear.nonzero.any(axis=0),
    ]
    owners = [parts[linear.rows].tolist(), parts[linear.cols].tolist()]
    why = Counter(
        f"{side}: {reasons[part]}"
        for side, mask, of in zip(("rows", "columns"), dead, owners, strict=True)
        for part, is_dead in zip(of, mask.tolist(), strict=True)
        if is_dead and part in reasons
    )
    dead_rows, dead_columns = (int(mask.sum()) for mask in dead)
    rows, columns = (sum(part not in reasons for part in of) for of in owners)
    kept = [f"{count} {reason}" for reason, count in why.most_common()]
    return Shrunk(name, (len(linear.rows), len(linear.cols)), dead_rows, dead_columns, rows, columns, kept)
